// The choice of one (row, owner): which units rank above the cut.
#include <functional>

#include "kernels/cpu/select_call.h"

namespace lacuna::kernels::cpu {
namespace {

double Sum(std::span<const float> scores) {
  double sum = 0;
  for (const float score : scores) sum += score;
  return sum;
}

}  // namespace

void SelectCall::Choose(int64_t row, int64_t owner, Worker& worker) {
  const Row& state = StateOf(row);
  worker.choice.assign(static_cast<size_t>(CeilDiv(state.tokens, kBlockTokens)), 0);
  worker.mass = 0;
  if (state.act == Row::Act::kKeep) {
    ReadChoice(row, owner, worker);
  } else if (state.act == Row::Act::kChoose && ScoresHeads(row, owner)) {
    worker.mass = ChooseUnits(row, owner, worker);
    if (refines_) worker.mass *= Refine(row, owner, worker);
    KeepChoice(row, owner, worker);
  }
  if (state.act != Row::Act::kDense) {
    worker.seen = worker.choice;
    AddForced(row, &worker.seen);
  }
  MakeLists(row, owner, worker);
}

// Returns the share of the mass that the chosen and forced units hold.
double SelectCall::ChooseUnits(int64_t row, int64_t owner, Worker& worker) {
  const Row& state = StateOf(row);
  const auto units = [&](int64_t unit_row) {
    return std::span<const float>(UnitScores(state, unit_row), static_cast<size_t>(state.units));
  };
  if (!per_head_) {
    TakeUnits(row, units(owner), CutOf(row, units(owner), worker.cut), worker);
    return MassOf(row, units(owner), worker);
  }
  const bool in_turn = args_.path.reduce == ReduceKind::kRoundRobin;
  if (in_turn) TakeInTurn(row, owner, worker);
  const OwnerHeads heads = HeadsOf(owner);
  double mass = 0;
  int64_t count = 0;
  for (int64_t i = heads.first * heads_; i < heads.end * heads_; ++i) {
    if (HasWindow(row, i / heads_)) continue;
    if (!in_turn) TakeUnits(row, units(i), CutOf(row, units(i), worker.cut), worker);
    ++count;
  }
  for (int64_t i = heads.first * heads_; i < heads.end * heads_; ++i) {
    if (!HasWindow(row, i / heads_)) mass += MassOf(row, units(i), worker);
  }
  return mass / static_cast<double>(count);
}

// `all`: scores of all units, forced ones too, which come first in a walk to a mass.
uint64_t SelectCall::CutOf(int64_t row, std::span<const float> all, CutScratch& cut) const {
  const SelectRow& what = RowOf(row);
  const DecodeCounts& counts = what.counts;
  const auto sink = static_cast<size_t>(counts.sink_units);
  const auto between = all.subspan(sink, static_cast<size_t>(counts.candidates()));
  int64_t count = counts.ranked_units_max;
  if (args_.path.select == SelectKind::kTopP) {
    const double forced = Sum(all.first(sink)) + Sum(all.subspan(sink + between.size()));
    const MassWalk walk{.mass = forced,
                        .target = what.p * (forced + Sum(between)),
                        .inclusive = args_.path.inclusive,
                        .keep_first = between.size() == all.size()};
    count = CountOfMass(between, walk, cut);
  } else if (args_.path.select == SelectKind::kThreshold) {
    // A head's own threshold has been taken from its scores.
    count = CountOfThreshold(between, args_.path.head_thresholds ? 0.0f : what.threshold);
  }
  count =
      std::min<int64_t>(std::max<int64_t>(count, counts.ranked_units_min), counts.ranked_units_max);
  return CutOfCount(between, sink, count, cut);
}

void SelectCall::AddUnit(int64_t unit, std::vector<uint64_t>* blocks) const {
  const int64_t tokens = args_.path.unit_tokens, first = unit * tokens;
  (*blocks)[static_cast<size_t>(first / kBlockTokens)] |=
      BlockMask(first % kBlockTokens, first % kBlockTokens + tokens);
}

void SelectCall::TakeUnits(int64_t row, std::span<const float> scores, uint64_t cut,
                           Worker& worker) const {
  const DecodeCounts& counts = RowOf(row).counts;
  const int64_t end = counts.sink_units + counts.candidates();
  if (cut == kCutNone) return;
  if (args_.path.unit_tokens > 1) {
    for (int64_t unit = counts.sink_units; unit < end; ++unit) {
      if (RankOf(scores[static_cast<size_t>(unit)], unit) >= cut) AddUnit(unit, &worker.choice);
    }
    return;
  }
  for (int64_t unit = counts.sink_units; unit < end;) {
    const int64_t stop = std::min(end, (unit / kBlockTokens + 1) * kBlockTokens);
    uint64_t mask = 0;
    const int64_t block = unit / kBlockTokens;
    for (; unit < stop; ++unit) {
      const bool taken = RankOf(scores[static_cast<size_t>(unit)], unit) >= cut;
      mask |= uint64_t{taken} << unit % kBlockTokens;
    }
    worker.choice[static_cast<size_t>(block)] |= mask;
  }
}

// Every head's best unit, then every head's second, and so on, without repeats, until the budget is
// full.
void SelectCall::TakeInTurn(int64_t row, int64_t owner, Worker& worker) {
  const Row& state = StateOf(row);
  const DecodeCounts& counts = RowOf(row).counts;
  const OwnerHeads heads = HeadsOf(owner);
  const auto rows = static_cast<size_t>((heads.end - heads.first) * heads_);
  if (worker.rankings.size() < rows) worker.rankings.resize(rows);
  size_t used = 0;
  for (int64_t i = heads.first * heads_; i < heads.end * heads_; ++i) {
    if (HasWindow(row, i / heads_)) continue;
    const float* scores = UnitScores(state, i);
    const std::span<const float> between(scores + counts.sink_units,
                                         static_cast<size_t>(counts.candidates()));
    const uint64_t cut =
        CutOfCount(between, counts.sink_units, counts.ranked_units_max, worker.cut);
    std::vector<uint64_t>& ranking = worker.rankings[used++];
    ranking.clear();
    for (int64_t k = 0; k < counts.candidates(); ++k) {
      const int64_t unit = counts.sink_units + k;
      const uint64_t rank = RankOf(scores[unit], unit);
      if (cut != kCutNone && rank >= cut) ranking.push_back(rank);
    }
    std::ranges::sort(ranking, std::greater<>());
  }
  int64_t left = std::min(counts.ranked_units_max, counts.candidates());
  for (size_t turn = 0; left > 0; ++turn) {
    for (size_t i = 0; i < used && left > 0; ++i) {
      const auto unit = int64_t{~static_cast<uint32_t>(worker.rankings[i][turn])};
      const int64_t token = unit * args_.path.unit_tokens;
      const uint64_t block = worker.choice[static_cast<size_t>(token / kBlockTokens)];
      if ((block >> token % kBlockTokens & 1) != 0) continue;
      AddUnit(unit, &worker.choice);
      --left;
    }
  }
}

// Share of what is chosen or forced: of probabilities as they are, else of the softmax of scores.
// Margins over a head's own threshold may be negative: these hold nothing.
double SelectCall::MassOf(int64_t row, std::span<const float> scores, Worker& worker) const {
  if (args_.stats == nullptr) return 0;
  std::span<const float> weights = scores;
  if (!normalises_) {
    float max = 0, sum = 0;
    const auto count = static_cast<int64_t>(scores.size());
    kernels_.max_sum(scores.data(), count, &max, &sum);
    worker.weights.resize(scores.size());
    const float* from = scores.data();
    const float none = 0;
    kernels_.reduce({.rows = &from,
                     .shifts = &max,
                     .offsets = &none,
                     .count = 1,
                     .kind = ReduceJob::kSum,
                     .exponential = true,
                     .entries = count,
                     .out = worker.weights.data()});
    weights = worker.weights;
  }
  worker.seen = worker.choice;
  AddForced(row, &worker.seen);
  double held = 0, all = 0;
  const int64_t unit_tokens = args_.path.unit_tokens;
  for (size_t unit = 0; unit < weights.size(); ++unit) {
    const int64_t token = static_cast<int64_t>(unit) * unit_tokens;
    const uint64_t seen = worker.seen[static_cast<size_t>(token / kBlockTokens)];
    const double weight = std::max(weights[unit], 0.0f);
    all += weight;
    if ((seen >> token % kBlockTokens & 1) != 0) held += weight;
  }
  return all > 0 ? held / all : 0;
}

uint64_t SelectCall::ForcedIn(int64_t row, int64_t block) const {
  const DecodeCounts& counts = RowOf(row).counts;
  const int64_t unit = args_.path.unit_tokens, first = block * kBlockTokens;
  return BlockMask(-first, counts.sink_units * unit - first) |
         BlockMask((counts.units - counts.local_units) * unit - first,
                   scratch_.rows[static_cast<size_t>(row)].tokens - first);
}

// Few blocks at both ends have some.
void SelectCall::AddForced(int64_t row, std::vector<uint64_t>* blocks) const {
  const DecodeCounts& counts = RowOf(row).counts;
  const int64_t unit = args_.path.unit_tokens, count = static_cast<int64_t>(blocks->size());
  const int64_t sink_end = std::min(CeilDiv(counts.sink_units * unit, kBlockTokens), count);
  const int64_t local_first = (counts.units - counts.local_units) * unit / kBlockTokens;
  for (int64_t block = 0; block < count; ++block) {
    if (block == sink_end) block = std::max(block, local_first);
    if (block < count) (*blocks)[static_cast<size_t>(block)] |= ForcedIn(row, block);
  }
}

uint64_t* SelectCall::ChoiceOf(int64_t row, int64_t owner) const {
  return args_.choices.masks +
         (RowOf(row).choice * args_.choices.owners + owner) * args_.choices.pages_max;
}

// A later step may read more pages than there are now; what is chosen at each step is not read.
void SelectCall::KeepChoice(int64_t row, int64_t owner, const Worker& worker) const {
  uint64_t* to = ChoiceOf(row, owner);
  const int64_t pages = scratch_.rows[static_cast<size_t>(row)].pages;
  const int64_t per_block = kBlockTokens / page_tokens_;
  const uint64_t full = BlockMask(0, page_tokens_);
  if (per_block == 1) std::copy_n(worker.choice.begin(), pages, to);
  for (int64_t page = 0; per_block > 1 && page < pages; ++page) {
    const uint64_t block = worker.choice[static_cast<size_t>(page / per_block)];
    to[page] = block >> page % per_block * page_tokens_ & full;
  }
  if (args_.path.refresh != RefreshKind::kEveryStep) {
    std::fill(to + pages, to + args_.choices.pages_max, 0);
  }
}

void SelectCall::ReadChoice(int64_t row, int64_t owner, Worker& worker) const {
  const uint64_t* from = ChoiceOf(row, owner);
  const int64_t pages = scratch_.rows[static_cast<size_t>(row)].pages;
  const int64_t per_block = kBlockTokens / page_tokens_;
  for (int64_t page = 0; page < pages; ++page) {
    worker.choice[static_cast<size_t>(page / per_block)] |= from[page]
                                                            << page % per_block * page_tokens_;
  }
}

}  // namespace lacuna::kernels::cpu
