// The second choice: among the tokens that the first one and the forced units left, by their
// probability within these.
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/select_call.h"

namespace lacuna::kernels::cpu {

// Replaces worker.choice; returns the share of the survivors' mass that stays.
double SelectCall::Refine(int64_t row, int64_t owner, Worker& worker) {
  worker.blocks.clear();
  for (size_t block = 0; block < worker.choice.size(); ++block) {
    const auto at = static_cast<int64_t>(block);
    if ((worker.choice[block] | ForcedIn(row, at)) != 0) {
      worker.blocks.push_back(static_cast<int32_t>(block));
    }
  }
  if (worker.blocks.empty()) return 1;
  ScoreSurvivors(row, owner, worker);
  worker.refined.assign(worker.choice.size(), 0);
  worker.weights.resize(worker.blocks.size() * kBlockTokens);
  const bool each = args_.path.refine_reduce == ReduceKind::kUnion;
  const auto rows = static_cast<int64_t>(worker.rows.size());
  const int64_t together = each ? 1 : rows;
  double mass = 0;
  for (int64_t first = 0; first < rows; first += together) {
    ReduceJob job{};
    job.rows = worker.rows.data() + first;
    job.shifts = worker.row_shifts.data() + first;
    job.offsets = worker.row_offsets.data() + first;
    job.count = static_cast<int32_t>(together);
    job.kind = ReduceJobKind(args_.path.refine_reduce);
    job.exponential = true;
    job.entries = static_cast<int64_t>(worker.weights.size());
    job.out = worker.weights.data();
    kernels_.reduce(job);
    mass += RefineBy(row, worker);
  }
  std::swap(worker.choice, worker.refined);
  return mass / static_cast<double>(each ? rows : 1);
}

uint64_t SelectCall::SurvivorsIn(int64_t row, int64_t block, const Worker& worker) const {
  const int64_t tokens = scratch_.rows[static_cast<size_t>(row)].tokens;
  return (worker.choice[static_cast<size_t>(block)] | ForcedIn(row, block)) &
         BlockMask(0, tokens - block * kBlockTokens);
}

// Logits of the blocks' tokens for each query row, -inf where a token is no survivor, and the log
// of the sum of their exponentials.
void SelectCall::ScoreSurvivors(int64_t row, int64_t owner, Worker& worker) {
  const Row& state = StateOf(row);
  const auto blocks = static_cast<int64_t>(worker.blocks.size());
  const int64_t tokens = blocks * kBlockTokens, per_block = kBlockTokens / page_tokens_;
  const OwnerHeads heads = HeadsOf(owner);
  worker.scores.resize(static_cast<size_t>((heads.end - heads.first) * heads_ * tokens));
  worker.rows.clear();
  worker.row_shifts.clear();
  const float* plain = scratch_.queries.data() + state.query_at;
  const bool keys = !args_.path.refine_metadata.any();
  float* to = worker.scores.data();
  for (int64_t kv = heads.first; kv < heads.end; ++kv) {
    if (HasWindow(row, kv)) continue;
    worker.slabs.clear();
    for (const int32_t block : worker.blocks) {
      for (int64_t i = 0; i < per_block; ++i) {  // past the end: any page, its scores are dropped
        const int64_t page = std::min(block * per_block + i, state.pages - 1);
        const int32_t id = args_.pages.pages[state.first_entry + page];
        worker.slabs.push_back(keys ? args_.pool.Slab(id, kv) : args_.refine_metadata.Slab(id, kv));
      }
    }
    ScoreJob job{};
    job.slabs = worker.slabs.data();
    job.pages = static_cast<int64_t>(worker.slabs.size());
    job.heads = static_cast<int32_t>(heads_);
    job.q = plain + kv * heads_ * head_dim_;
    job.q_sums = plain + plain_floats_ + scored_floats_ + kv * heads_;
    job.scale = args_.scale;
    job.stride = tokens;
    job.scores = to;
    RunScores(refine_layout_, keys, job);
    for (int64_t h = 0; h < heads_; ++h, to += tokens) {
      for (int64_t b = 0; b < blocks; ++b) {
        const uint64_t mask = SurvivorsIn(row, worker.blocks[static_cast<size_t>(b)], worker);
        for (uint64_t left = ~mask; left != 0; left &= left - 1) {
          to[b * kBlockTokens + std::countr_zero(left)] = -std::numeric_limits<float>::infinity();
        }
      }
      float max = 0, sum = 0;
      kernels_.max_sum(to, tokens, &max, &sum);
      worker.rows.push_back(to);
      worker.row_shifts.push_back(max + std::log(sum));
    }
  }
  worker.row_offsets.assign(worker.rows.size(), 0.0f);
}

// One choice by worker.weights, the tokens' probabilities; adds to worker.refined.
double SelectCall::RefineBy(int64_t row, Worker& worker) {
  const SelectRow& what = RowOf(row);
  const int64_t unit = args_.path.refine_unit_tokens;
  double forced_mass = 0, mass = 0;
  bool any_forced = false;
  worker.entries.clear();
  worker.candidates.clear();
  for (size_t b = 0; b < worker.blocks.size(); ++b) {
    const int64_t block = worker.blocks[b];
    const uint64_t forced = ForcedIn(row, block), survivors = SurvivorsIn(row, block, worker);
    any_forced |= forced != 0;
    const float* weights = worker.weights.data() + static_cast<int64_t>(b) * kBlockTokens;
    for (uint64_t left = survivors; left != 0;) {  // units that hold some, ascending
      const int64_t first = std::countr_zero(left) / unit * unit;
      const uint64_t tokens = BlockMask(first, first + unit);
      left &= ~tokens;
      float sum = 0;
      for (int64_t t = first; t < first + unit; ++t) sum += weights[t];
      if ((forced & tokens & (~tokens + 1)) != 0) {  // its first token
        forced_mass += sum;
        continue;
      }
      mass += sum;
      worker.entries.push_back(sum);
      worker.candidates.push_back(
          static_cast<int32_t>(static_cast<int64_t>(b) * kBlockTokens + first));
    }
  }
  const auto most = static_cast<int64_t>(worker.entries.size());
  int64_t count = what.counts.refine_units;
  if (args_.path.refine == RefineKind::kTopP) {
    const MassWalk walk{.mass = forced_mass,
                        .target = what.refine_p * (forced_mass + mass),
                        .inclusive = args_.path.refine_inclusive,
                        .keep_first = !any_forced};
    count = CountOfMass(worker.entries, walk, worker.cut);
  }
  count = std::min<int64_t>(std::max<int64_t>(count, what.counts.refine_units_min), most);
  const uint64_t cut = CutOfCount(worker.entries, 0, count, worker.cut);
  double held = forced_mass;
  for (int64_t i = 0; i < most && cut != kCutNone; ++i) {
    const float score = worker.entries[static_cast<size_t>(i)];
    if (RankOf(score, i) < cut) continue;
    const int32_t at = worker.candidates[static_cast<size_t>(i)];  // its first token
    const int32_t block = worker.blocks[static_cast<size_t>(at / kBlockTokens)];
    const int64_t first = at % kBlockTokens;
    worker.refined[static_cast<size_t>(block)] |= BlockMask(first, first + unit);
    held += score;
  }
  const double all = forced_mass + mass;
  return all > 0 ? held / all : 0;
}

}  // namespace lacuna::kernels::cpu
