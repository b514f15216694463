#include "engine/execute/step_order.h"

#include <algorithm>
#include <bit>

#include "kernels/core/checked_math.h"
#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

using kernels::KeyRanges;
using kvcache::SparsePlan;

// What stands together: 0 is dense.
struct Key final {
  uint64_t path = 0;
  int rank = 0;  // audited rows before others; chunks with shapes alone before sparse ones
  auto operator<=>(const Key&) const = default;
};

Key DecodeKey(const StepSequence& sequence, const HeadLaunches& launches) {
  const SparsePlan* plan = sequence.plan;
  if (plan == nullptr || (!launches.TakesShapes(*plan) && sequence.select.counts.dense)) return {};
  return {.path = plan->path_fingerprint, .rank = sequence.audit ? 0 : 1};
}

Key ChunkKey(const StepSequence& sequence, const HeadLaunches& launches) {
  const SparsePlan* plan = sequence.plan;
  if (plan == nullptr) return {};
  const bool dense = kvcache::DensePrefill(*plan, sequence.prompt_tokens);
  if (dense && !launches.TakesShapes(*plan)) return {};
  return {.path = plan->path_fingerprint, .rank = dense ? 0 : 1};
}

}  // namespace

bool IsDecode(const StepSequence& sequence) {
  return sequence.decode && sequence.tokens.size() == 1;
}

namespace {

// The classes of decode rows, or of chunks, of an ordered part.
class ClassMaker final {
 public:
  ClassMaker(const StepBatch& batch, std::span<const Key> keys, bool decode, int64_t tiles_max,
             std::vector<StepOrder::Class>& classes)
      : batch_(batch), keys_(keys), decode_(decode), tiles_max_(tiles_max), classes_(classes) {}

  void Add(size_t index, int64_t place) {
    const Key& key = keys_[index];
    if (key.path == 0) return;
    const StepSequence& sequence = batch_.sequences[index];
    const int64_t tiles =
        CeilDiv(static_cast<int64_t>(sequence.tokens.size()), KeyRanges::kQueryTileTokens);
    const bool joins =
        key.path == last_.path &&
        (decode_ || (key.rank == last_.rank && (key.rank == 0 || tiles_ + tiles <= tiles_max_)));
    if (!joins) {
      classes_.push_back({.plan = sequence.plan, .first = place, .sparse = key.rank == 1});
      tiles_ = 0;
    }
    last_ = key;
    tiles_ += tiles;
    StepOrder::Class& one = classes_.back();
    ++one.count;
    if (decode_ && key.rank == 0) ++one.audited;
  }

 private:
  const StepBatch& batch_;
  std::span<const Key> keys_;
  const bool decode_;
  const int64_t tiles_max_;
  std::vector<StepOrder::Class>& classes_;
  Key last_;
  int64_t tiles_ = 0;
};

// Each part has the rows that `rows_of` gives for its sequences.
template <typename Fn>
void PlaceRows(StepOrder& order, Fn&& rows_of) {
  const int64_t dense = order.decode.empty() ? order.decode_sequences : order.decode[0].first;
  order.dense_rows = order.decode_rows = rows_of(dense);
  for (StepOrder::Class& one : order.decode) {
    one.row = order.decode_rows;
    one.rows = rows_of(one.count);
    order.decode_rows += one.rows;
  }
}

}  // namespace

void OrderStep(const StepBatch& batch, const HeadLaunches& launches, int64_t tiles_max,
               StepOrder& order) {
  const size_t count = batch.sequences.size();
  order.sequences.clear();
  order.decode.clear();
  order.prefill.clear();
  std::vector<Key> keys(count);
  bool plain = true;
  for (const bool decode : {true, false}) {
    for (size_t i = 0; i < count; ++i) {
      const StepSequence& sequence = batch.sequences[i];
      if (IsDecode(sequence) != decode) continue;
      order.sequences.push_back(i);
      if (sequence.plan == nullptr) continue;
      keys[i] = decode ? DecodeKey(sequence, launches) : ChunkKey(sequence, launches);
      plain = plain && keys[i].path == 0;
    }
    if (decode) order.decode_sequences = static_cast<int64_t>(order.sequences.size());
  }
  if (!plain) {
    const auto by_key = [&](size_t a, size_t b) { return keys[a] < keys[b]; };
    const auto chunks = order.sequences.begin() + order.decode_sequences;
    std::stable_sort(order.sequences.begin(), chunks, by_key);
    std::stable_sort(chunks, order.sequences.end(), by_key);
    for (const bool decode : {true, false}) {
      ClassMaker maker(batch, keys, decode, tiles_max, decode ? order.decode : order.prefill);
      int64_t place = 0;
      for (const size_t i : decode ? order.DecodeRows() : order.Chunks()) maker.Add(i, place++);
    }
  }
  PlaceRows(order, [](int64_t sequences) { return sequences; });
}

int64_t PaddedRows(int64_t count, int64_t rows_max) {
  int64_t rows = count;
  for (int64_t power = 1; power < count; power *= 2) {  // 1, 2, 3, 4, 6, 8, 12, 16, ...
    rows = count <= power + power / 2 ? power + power / 2 : 2 * power;
  }
  return std::min(rows, rows_max);
}

void PadOrder(int64_t rows_max, StepOrder& order) {
  const bool classes = !order.decode.empty();
  PlaceRows(order, [=](int64_t sequences) {
    const int64_t power =
        static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(sequences, 1))));
    return classes ? PaddedRows(sequences, rows_max) : std::min(power, rows_max);
  });
}

}  // namespace lacuna::engine
