// ScheduledSequence: what the scheduler knows about one sequence. The engine's Sequence derives
// from it and is its only writer, but for the fields that say so. Engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/core/ids.h"
#include "kvcache/kv_cache.h"

namespace lacuna::engine {

struct ScheduledSequence {
  RequestId id;
  int32_t priority = 0;   // lower runs first
  uint64_t arrival = 0;   // grows with each submit; unique
  bool promoted = false;  // the scheduler's: passed over long enough to go before all others
  bool reuse_prefix = true;
  // Full pages within its first so many tokens may be taken from the cache and given to it.
  int64_t shared_tokens_max = std::numeric_limits<int64_t>::max();
  // Tokens behind the prompt are computed one a step, as decode rows, also when a preempted
  // sequence computes them again: a chunk would give other bits.
  bool replays_output = false;

  std::vector<TokenId> tokens;  // the prompt, then what was generated
  int64_t prompt_tokens = 0;
  int64_t tokens_max = std::numeric_limits<int64_t>::max();  // prompt and output; it ends there
  // Logits are wanted from this position on; -1: of the last known token only.
  int64_t logits_from_position = -1;
  kvcache::SequenceKv kv;
  // Of steps launched whose results the engine has not seen: tokens that they compute, and tokens
  // that they choose. Both are 0 between steps unless steps overlap.
  int64_t in_flight_tokens = 0;
  int64_t pending_tokens = 0;

  int64_t known_tokens() const { return static_cast<int64_t>(tokens.size()); }
  // Known, or being chosen.
  int64_t expected_tokens() const { return known_tokens() + pending_tokens; }
  // Computed, or being computed.
  int64_t launched_tokens() const { return kv.computed_tokens + in_flight_tokens; }
  // The token being chosen is its last one, which is never computed.
  bool ends_in_flight() const { return pending_tokens > 0 && expected_tokens() >= tokens_max; }
  int64_t left_tokens() const {
    return ends_in_flight() ? 0 : expected_tokens() - launched_tokens();
  }
  // Computes one generated token, and nothing else is left to do.
  bool decodes() const { return left_tokens() == 1 && expected_tokens() > prompt_tokens; }
  int64_t first_logits_position() const {
    return logits_from_position >= 0 ? logits_from_position : expected_tokens() - 1;
  }
  // Of tokens [begin, begin + count): a decode row, not a chunk of a prompt.
  bool RunsAsDecode(int64_t begin, int64_t count) const {
    return decodes() || (replays_output && count == 1 && begin >= prompt_tokens);
  }
  // The most of [begin, begin + count) that ends where a chunk may: at the end of a grain or of the
  // prompt.
  int64_t CutTokens(int64_t begin, int64_t count) const {
    const int64_t end = begin + count;
    if (kv.grain_tokens == 0 || end >= prompt_tokens) return count;
    return std::max<int64_t>(0, end - end % kv.grain_tokens - begin);
  }
  // Logit rows of a step that computes tokens [begin, end).
  int64_t LogitRows(int64_t begin, int64_t end) const {
    return std::max<int64_t>(0, end - std::max(begin, first_logits_position()));
  }
};

}  // namespace lacuna::engine
