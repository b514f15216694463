#include "engine/sample/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace lacuna::engine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kTemperatureMin = 1e-6;  // below, 1 / temperature would overflow a float
constexpr float kLogprobFloor = -9999.0f;

struct Candidate final {
  float logit = kMinusInfinity;
  TokenId token = std::numeric_limits<TokenId>::max();

  // The one order of tokens: more likely first, then the lower id.
  bool Before(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && token < other.token);
  }
};

bool IsBefore(const Candidate& a, const Candidate& b) { return a.Before(b); }

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

TokenId ArgMax(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<TokenId>(best);
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
Candidate FindCutoff(std::span<const float> logits, float floor, const SamplingParams& params) {
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= floor && logits[i] != kMinusInfinity) {
      candidates.push_back({logits[i], static_cast<TokenId>(i)});
    }
  }
  std::span<Candidate> kept(candidates);
  const size_t k = static_cast<size_t>(std::max(params.top_k, 0));
  if (k > 0 && k < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + static_cast<ptrdiff_t>(k) - 1, kept.end(),
                     IsBefore);
    kept = kept.first(k);
  }
  if (params.top_p < 1.0) return LastOfTopMass(kept, params.top_p);
  return *std::max_element(kept.begin(), kept.end(), IsBefore);
}

// Temperature, then min_p, then top_k, then top_p, each on what the one before left (as vLLM); the
// draw walks the tokens by id, so that it depends on no partial order. Overwrites the logits.
TokenId Draw(std::span<float> logits, const SamplingParams& params, double uniform) {
  const float greatest = logits[static_cast<size_t>(ArgMax(logits))];
  const float inverse = static_cast<float>(1.0 / std::max(params.temperature, kTemperatureMin));
  for (float& logit : logits) logit = (logit - greatest) * inverse;

  const float floor =
      params.min_p > 0.0 ? static_cast<float>(std::log(params.min_p)) : kMinusInfinity;
  Candidate cutoff{kMinusInfinity, std::numeric_limits<TokenId>::max()};
  if (params.top_k > 0 || params.top_p < 1.0) cutoff = FindCutoff(logits, floor, params);

  double total = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate{logits[i], static_cast<TokenId>(i)};
    const bool kept = logits[i] >= floor && !cutoff.Before(candidate);
    logits[i] = kept ? std::exp(logits[i]) : 0.0f;
    total += static_cast<double>(logits[i]);
  }
  const double target = uniform * total;
  double mass = 0.0;
  size_t chosen = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == 0.0f) continue;
    chosen = i;
    mass += static_cast<double>(logits[i]);
    if (mass > target) break;
  }
  return static_cast<TokenId>(chosen);
}

bool InRange(TokenId token, std::span<const float> logits) {
  return token >= 0 && static_cast<size_t>(token) < logits.size();
}

}  // namespace

TokenLogprob ComputeLogprob(std::span<const float> logits, TokenId token, int32_t top) {
  TokenLogprob out{.token = token, .logprob = kLogprobFloor, .top = {}};
  if (logits.empty()) return out;
  // A NaN must not break the order that the selection relies on.
  const auto at = [logits](TokenId id) {
    const float logit = logits[static_cast<size_t>(id)];
    return std::isnan(logit) ? kMinusInfinity : logit;
  };
  const double greatest = static_cast<double>(logits[static_cast<size_t>(ArgMax(logits))]);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - greatest);
  const double log_sum = greatest + std::log(sum);
  const auto logprob = [&](TokenId id) {
    const double value = static_cast<double>(at(id)) - log_sum;
    return value > static_cast<double>(kLogprobFloor) ? static_cast<float>(value) : kLogprobFloor;
  };
  if (InRange(token, logits)) out.logprob = logprob(token);
  if (top <= 0) return out;

  // A heap of the best so far: its front is the one to beat.
  const auto before = [&](TokenId a, TokenId b) {
    return at(a) > at(b) || (at(a) == at(b) && a < b);
  };
  const size_t count = std::min(static_cast<size_t>(top), logits.size());
  std::vector<TokenId> best;
  best.reserve(count + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    const TokenId id = static_cast<TokenId>(i);
    if (best.size() == count && !before(id, best.front())) continue;
    best.push_back(id);
    std::push_heap(best.begin(), best.end(), before);
    if (best.size() <= count) continue;
    std::pop_heap(best.begin(), best.end(), before);
    best.pop_back();
  }
  std::sort_heap(best.begin(), best.end(), before);
  out.top.reserve(best.size());
  for (const TokenId id : best) out.top.emplace_back(id, logprob(id));
  return out;
}

Sampler::Sampler(const SamplingParams& params, std::span<const TokenId> prompt,
                 std::span<const TokenId> eos)
    : params_(params), barred_early_(params.stop_token_ids) {
  // An ignored eos ends nothing, so there is no reason to bar it.
  if (!params_.ignore_eos) barred_early_.insert(barred_early_.end(), eos.begin(), eos.end());
  if (params_.repetition_penalty != 1.0) {
    prompt_tokens_.assign(prompt.begin(), prompt.end());
    std::ranges::sort(prompt_tokens_);
    prompt_tokens_.erase(std::unique(prompt_tokens_.begin(), prompt_tokens_.end()),
                         prompt_tokens_.end());
  }
}

void Sampler::Penalize(std::span<float> logits) const {
  const float repetition = static_cast<float>(params_.repetition_penalty);
  const auto repeat = [&](TokenId token) {
    if (!InRange(token, logits)) return;
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0.0f ? logit / repetition : logit * repetition;
  };
  for (const TokenId token : prompt_tokens_) repeat(token);  // empty without that penalty
  for (const auto& [token, count] : output_count_) {
    if (!InRange(token, logits)) continue;
    if (params_.repetition_penalty != 1.0 && !std::ranges::binary_search(prompt_tokens_, token)) {
      repeat(token);
    }
    logits[static_cast<size_t>(token)] -= static_cast<float>(
        params_.presence_penalty + params_.frequency_penalty * static_cast<double>(count));
  }
}

Result<Sampler::Choice> Sampler::Sample(std::span<float> logits, int64_t index) {
  if (logits.empty() || HasNanOrPlusInfinity(logits)) {
    return InternalError("the model gave a logit that is not a number");
  }
  Choice choice;
  const bool wants_logprob = params_.logprobs >= 0;
  std::vector<float> raw;  // logprobs are those of the distribution before all that follows
  if (wants_logprob) raw.assign(logits.begin(), logits.end());

  for (const auto& [token, bias] : params_.logit_bias) {
    if (InRange(token, logits)) logits[static_cast<size_t>(token)] += bias;
  }
  if (index < params_.min_tokens) {
    for (const TokenId token : barred_early_) {
      if (InRange(token, logits)) logits[static_cast<size_t>(token)] = kMinusInfinity;
    }
  }
  Penalize(logits);

  const TokenId greedy = ArgMax(logits);
  if (!std::isfinite(logits[static_cast<size_t>(greedy)])) {
    return InternalError("no token is possible: every logit is minus infinity");
  }
  choice.token =
      params_.temperature == 0.0 ? greedy : Draw(logits, params_, Uniform(params_.seed, index));
  if (wants_logprob) choice.logprob.push_back(ComputeLogprob(raw, choice.token, params_.logprobs));
  return choice;
}

void Sampler::Accept(TokenId token) { ++output_count_[token]; }

}  // namespace lacuna::engine
