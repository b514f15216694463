#include "kernels/cpu/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace lacuna::kernels::cpu {
namespace {

using Candidate = SampleCandidate;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kTemperatureMin = 1e-6;  // below, 1 / temperature would overflow a float
constexpr float kLogprobFloor = -9999.0f;
constexpr Candidate kLastOfAll{kMinusInfinity, std::numeric_limits<int32_t>::max()};

// The one order of tokens: more likely first, then the lower id.
bool IsBefore(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Finalizer of SplitMix64 (Steele et al. 2014): a bijection whose output bits all depend on all
// input bits.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// In [0, 1), 53 bits, a function of (seed, index) alone.
double Uniform(uint64_t seed, int64_t index) {
  const uint64_t bits = Mix(Mix(seed) ^ std::rotl(Mix(static_cast<uint64_t>(index)), 32));
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

// Integer tests, so that the loop vectorizes.
bool HasNanOrPlusInfinity(std::span<const float> logits) {
  uint32_t found = 0;
  for (const float logit : logits) {
    const uint32_t bits = std::bit_cast<uint32_t>(logit);
    found |= static_cast<uint32_t>((bits & 0x7fffffffu) > 0x7f800000u);
    found |= static_cast<uint32_t>(bits == 0x7f800000u);
  }
  return found != 0;
}

int32_t ArgMax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

void ApplyMask(std::span<float> logits, const uint32_t* mask) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((mask[i / 32] >> (i % 32) & 1u) == 0) logits[i] = kMinusInfinity;
  }
}

void ApplyEdits(std::span<float> logits, const SampleRow& row, std::span<const LogitEdit> edits) {
  for (const LogitEdit& edit : edits) {
    if (edit.token < 0 || static_cast<size_t>(edit.token) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(edit.token)];
    logit += edit.bias;
    if ((edit.flags & LogitEdit::kBarred) != 0) logit = kMinusInfinity;
    if ((edit.flags & LogitEdit::kRepeated) != 0) {
      logit = logit > 0.0f ? logit / row.repetition : logit * row.repetition;
    }
    if (edit.output_count > 0) {
      logit -= static_cast<float>(static_cast<double>(row.presence) +
                                  static_cast<double>(row.frequency) * edit.output_count);
    }
  }
}

// The smallest prefix of the candidates, in their order, whose mass reaches top_p of all of it:
// returns its last one. Selection by halves: each round sums one half and keeps one, so O(n).
Candidate LastOfTopMass(std::span<Candidate> range, double top_p) {
  double total = 0.0;
  for (const Candidate& c : range) total += std::exp(static_cast<double>(c.logit));
  double wanted = top_p * total;
  while (range.size() > 1) {
    const size_t half = range.size() / 2;
    std::nth_element(range.begin(), range.begin() + static_cast<ptrdiff_t>(half), range.end(),
                     IsBefore);
    double mass = 0.0;
    for (const Candidate& c : range.first(half)) mass += std::exp(static_cast<double>(c.logit));
    if (mass >= wanted) {
      range = range.first(half);
    } else {
      wanted -= mass;
      range = range.subspan(half);
    }
  }
  return range.front();
}

// The last candidate that top_k and top_p keep; everything not after it stays. `logits` are scaled
// so that the greatest is 0; those under `floor` are out already (min_p).
Candidate FindCutoff(std::span<const float> logits, float floor, const SampleRow& row,
                     std::vector<Candidate>& candidates) {
  candidates.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= floor && logits[i] != kMinusInfinity) {
      candidates.push_back({logits[i], static_cast<int32_t>(i)});
    }
  }
  std::span<Candidate> kept(candidates);
  const size_t k = static_cast<size_t>(std::max(row.top_k, 0));
  if (k > 0 && k < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + static_cast<ptrdiff_t>(k) - 1, kept.end(),
                     IsBefore);
    kept = kept.first(k);
  }
  if (row.top_p < 1.0f) return LastOfTopMass(kept, static_cast<double>(row.top_p));
  return *std::max_element(kept.begin(), kept.end(), IsBefore);
}

// Temperature, then min_p, then top_k, then top_p, each on what the one before left (as vLLM); the
// draw walks the tokens by id, so that it depends on no partial order. Overwrites the logits.
int32_t Draw(std::span<float> logits, float greatest, const SampleRow& row,
             std::vector<Candidate>& candidates) {
  const float inverse =
      static_cast<float>(1.0 / std::max(static_cast<double>(row.temperature), kTemperatureMin));
  for (float& logit : logits) logit = (logit - greatest) * inverse;

  const float floor = row.min_p > 0.0f
                          ? static_cast<float>(std::log(static_cast<double>(row.min_p)))
                          : kMinusInfinity;
  Candidate cutoff = kLastOfAll;
  if (row.top_k > 0 || row.top_p < 1.0f) cutoff = FindCutoff(logits, floor, row, candidates);

  double total = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const bool kept = logits[i] >= floor && !IsBefore(cutoff, {logits[i], static_cast<int32_t>(i)});
    logits[i] = kept ? std::exp(logits[i]) : 0.0f;
    total += static_cast<double>(logits[i]);
  }
  const double target = Uniform(row.seed, row.index) * total;
  double mass = 0.0;
  size_t chosen = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == 0.0f) continue;
    chosen = i;
    mass += static_cast<double>(logits[i]);
    if (mass > target) break;
  }
  return static_cast<int32_t>(chosen);
}

// log softmax of result.token and of the likeliest `top` tokens. No NaN among the logits.
void FillLogprobs(std::span<const float> logits, int32_t top, SampleResult& result) {
  const double greatest = static_cast<double>(logits[static_cast<size_t>(ArgMax(logits))]);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - greatest);
  const double log_sum = greatest + std::log(sum);
  const auto logprob = [&](float logit) {
    const double value = static_cast<double>(logit) - log_sum;
    return value > static_cast<double>(kLogprobFloor) ? static_cast<float>(value) : kLogprobFloor;
  };
  const auto token = static_cast<size_t>(result.token);
  result.logprob = token < logits.size() ? logprob(logits[token]) : kLogprobFloor;

  // A heap of the best so far: its front is the one to beat.
  const size_t count =
      std::min(static_cast<size_t>(std::clamp(top, 0, SampleResult::kLogprobsMax)), logits.size());
  Candidate best[SampleResult::kLogprobsMax + 1];
  size_t held = 0;
  for (size_t i = 0; count > 0 && i < logits.size(); ++i) {
    const Candidate candidate{logits[i], static_cast<int32_t>(i)};
    if (held == count && !IsBefore(candidate, best[0])) continue;
    best[held++] = candidate;
    std::push_heap(best, best + held, IsBefore);
    if (held > count) std::pop_heap(best, best + held--, IsBefore);
  }
  std::sort_heap(best, best + held, IsBefore);
  result.top_count = static_cast<int32_t>(held);
  for (size_t i = 0; i < held; ++i) {
    result.top_tokens[i] = best[i].token;
    result.top_logprobs[i] = logprob(best[i].logit);
  }
}

}  // namespace

SampleResult SampleOneRow(std::span<float> logits, const SampleRow& row,
                          std::span<const LogitEdit> edits, const uint32_t* mask,
                          SampleScratch& scratch) {
  SampleResult result;
  const auto fail = [&result](SampleResult::Status status) {
    result.status = status;
    return result;
  };
  if (HasNanOrPlusInfinity(logits)) return fail(SampleResult::kNotANumber);
  if (row.forced_token >= 0) {
    if (!std::isfinite(logits[static_cast<size_t>(ArgMax(logits))])) {
      return fail(SampleResult::kImpossible);
    }
    result.token = row.forced_token;
    FillLogprobs(logits, row.logprobs, result);
    return result;
  }
  if (row.logprobs >= 0) scratch.raw.assign(logits.begin(), logits.end());
  ApplyEdits(logits, row, edits);
  if (mask != nullptr) ApplyMask(logits, mask);
  const int32_t greedy = ArgMax(logits);
  const float greatest = logits[static_cast<size_t>(greedy)];
  if (!std::isfinite(greatest)) return fail(SampleResult::kImpossible);
  result.token = row.temperature == 0.0f ? greedy : Draw(logits, greatest, row, scratch.candidates);
  if (row.logprobs >= 0) FillLogprobs(scratch.raw, row.logprobs, result);
  return result;
}

Status SampleCpu(const SampleArgs& args, ThreadPool& pool, std::span<SampleScratch> scratch) {
  const auto vocab = static_cast<size_t>(args.logits.dim(1));
  const size_t mask_words = (vocab + 31) / 32;
  pool.ParallelFor(args.logits.dim(0), [&](int64_t i, int worker) {
    const SampleRow& row = args.rows[i];
    const std::span<float> logits(args.logits.as<float>() + i * args.logits.stride(0), vocab);
    std::span<const LogitEdit> edits;
    if (row.edits_end > row.edits_begin) {
      edits = {args.edits + row.edits_begin, args.edits + row.edits_end};
    }
    const uint32_t* mask =
        args.mask != nullptr ? args.mask + static_cast<size_t>(i) * mask_words : nullptr;
    args.results[i] = SampleOneRow(logits, row, edits, mask, scratch[static_cast<size_t>(worker)]);
    args.tokens[i] = args.results[i].token;
  });
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
