// The reference of RangeWorld: what each tile reads, in double precision, from the methods' cards.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ops/range_limits.h"
#include "tests/ops/range_world.h"

namespace lacuna::kernels {

double RangeWorld::scale() const {
  return spec_.scale != 0.0f ? double{spec_.scale} : 1.0 / std::sqrt(double(spec_.head_dim));
}

double RangeWorld::Dot(int position, int head, int key) {
  if (position >= spec_.tokens || key >= spec_.tokens) return 0;
  double sum = 0;
  const int kv_head = head / (spec_.q_heads / spec_.kv_heads);
  for (int i = 0; i < spec_.head_dim; ++i) {
    sum += double{q(position, head, i)} * double{k(key, kv_head, i)};
  }
  return sum;
}

int RangeWorld::BlockEnd(int block) const {
  return std::min((block + 1) * spec_.path.block_tokens, spec_.tokens);
}

namespace {

// Forced units first, then by score, then by id.
std::vector<int> Ranked(const std::vector<double>& scores, int head_units, int tail) {
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto forced = [&](int i) { return i < head_units || i >= tail; };
  std::ranges::sort(order, [&](int a, int b) {
    if (forced(a) != forced(b)) return forced(a);
    const double x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return forced(a) || x == y ? a < b : x > y;
  });
  return order;
}

}  // namespace

RangeWorld::Kept RangeWorld::ChooseCount(const std::vector<double>& scores, int head_units,
                                         int tail, int count) const {
  Kept kept{std::vector<bool>(scores.size()), true};
  const std::vector<int> order = Ranked(scores, head_units, tail);
  const auto forced = [&](int i) { return i < head_units || i >= tail; };
  int used = 0;
  double last = 0;
  for (const int unit : order) {
    const double score = scores[static_cast<size_t>(unit)];
    if (!forced(unit) && used >= count) {
      if (last > 0 && last - score < 1e-4 * last) kept.sure = false;
      break;
    }
    kept.units[static_cast<size_t>(unit)] = true;
    last = forced(unit) ? 0 : score;
    ++used;
  }
  return kept;
}

RangeWorld::Kept RangeWorld::ChooseMass(const std::vector<double>& scores, int head_units, int tail,
                                        double p, bool inclusive, int min, int max) const {
  Kept kept{std::vector<bool>(scores.size()), true};
  const std::vector<int> order = Ranked(scores, head_units, tail);
  const auto forced = [&](int i) { return i < head_units || i >= tail; };
  const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  double mass = 0, last = 0;
  int used = 0;
  for (const int unit : order) {
    const double score = scores[static_cast<size_t>(unit)];
    if (!forced(unit)) {
      const double reached = inclusive ? mass : mass + score;
      const bool fits = p >= 1 || (inclusive ? reached < p * total : reached <= p * total);
      if (p < 1 && std::abs(reached - p * total) < 1e-5 * total) kept.sure = false;
      if ((max > 0 && used >= max) || (!fits && used >= min && used > 0)) {
        if (last > 0 && last - score < 1e-4 * last) kept.sure = false;
        break;
      }
    }
    kept.units[static_cast<size_t>(unit)] = true;
    mass += score;
    last = forced(unit) ? 0 : score;
    ++used;
  }
  return kept;
}

namespace {

void Softmax(std::vector<double>* logits) {
  const double top = std::ranges::max(*logits);
  double sum = 0;
  for (double& x : *logits) sum += x = std::exp(x - top);
  for (double& x : *logits) x /= sum;
}

}  // namespace

std::vector<int> RangeWorld::BandChannels(bool low) const {
  const int half = spec_.head_dim / 2;
  const int count = (low ? spec_.dials.low_channels : spec_.dials.high_channels) / 2;
  std::vector<int> channels;
  for (int i = 0; i < count; ++i) {
    channels.push_back(low ? half - count + i : i);
    channels.push_back(low ? spec_.head_dim - count + i : half + i);
  }
  return channels;
}

// Means of q and k per block; with fewer channels than all, Prism's logits: energies of the cell's
// query blocks and of all key blocks up to the cell's end.
std::vector<double> RangeWorld::PooledRow(int head, int block, const std::vector<int>& channels) {
  const int size = spec_.path.block_tokens;
  const int kv_head = head / (spec_.q_heads / spec_.kv_heads);
  const auto mean = [&](bool of_query, int b, int channel) {
    double sum = 0;
    for (int t = b * size; t < BlockEnd(b); ++t) {
      sum += of_query ? double{q(t, head, channel)} : double{k(t, kv_head, channel)};
    }
    return sum / (BlockEnd(b) - b * size);
  };
  double factor = scale();
  if (static_cast<int>(channels.size()) < spec_.head_dim) {
    const int cell = block * size / cell_tokens();
    const int first = cell * cell_tokens() / size;
    const int end =
        static_cast<int>(CeilDiv(std::min((cell + 1) * cell_tokens(), spec_.tokens), size));
    const auto rms = [&](bool of_query, const std::vector<int>& of) {
      double sum = 0;
      const int from = of_query ? first : 0;
      for (int b = from; b < end; ++b) {
        for (const int channel : of) sum += std::pow(mean(of_query, b, channel), 2);
      }
      return std::sqrt(sum / ((end - from) * static_cast<double>(of.size())));
    };
    std::vector<int> all(static_cast<size_t>(spec_.head_dim));
    std::iota(all.begin(), all.end(), 0);
    const double dims = static_cast<double>(channels.size());
    const double temperature = std::sqrt(dims / spec_.head_dim) *
                               (rms(true, channels) / rms(true, all)) *
                               (rms(false, channels) / rms(false, all));
    factor = 1 / (std::sqrt(dims) * temperature);
  }
  std::vector<double> query;
  for (const int channel : channels) query.push_back(mean(true, block, channel));
  std::vector<double> row;
  for (int b = 0; b <= block; ++b) {
    double sum = 0;
    for (size_t i = 0; i < channels.size(); ++i) sum += query[i] * mean(false, b, channels[i]);
    row.push_back(factor * sum);
  }
  Softmax(&row);
  return row;
}

std::vector<double> RangeWorld::AntidiagonalRow(int head, int block) {
  const int stride = spec_.path.stride_tokens, size = spec_.path.block_tokens;
  std::vector<double> scores(static_cast<size_t>(block) + 1);
  for (int i = block * size / stride; i * stride < BlockEnd(block); ++i) {
    std::vector<double> row;
    for (int j = 0; j <= i; ++j) {
      double sum = 0;
      for (int r = 0; r < stride; ++r) {
        sum += Dot(i * stride + stride - 1 - r, head, j * stride + r);
      }
      row.push_back(sum * scale() / stride);
    }
    Softmax(&row);
    for (int j = 0; j <= i; ++j) {
      scores[static_cast<size_t>(j * stride / size)] += row[static_cast<size_t>(j)];
    }
  }
  return scores;
}

// (blocks that hold the sinks, first block that holds a newest token of any row of the block)
std::pair<int, int> RangeWorld::ForcedBlocks(int block) const {
  const int size = spec_.path.block_tokens;
  int tail = 1 << 30;
  for (int t = block * size; t < BlockEnd(block); ++t) {
    const int local =
        std::max(spec_.dials.local_tokens, static_cast<int>(spec_.dials.local_fraction * t));
    if (local > 0) tail = std::min(tail, std::max(t - local + 1, 0) / size);
  }
  return {static_cast<int>(CeilDiv(spec_.dials.sink_tokens, size)), tail};
}

const RangeWorld::Kept& RangeWorld::RowChoice(int head, int block) {
  const auto found = row_choices_.find({head, block});
  if (found != row_choices_.end()) return found->second;
  const PrefillDials& d = spec_.dials;
  const PrefillHead& of_head = spec_.heads[static_cast<size_t>(head)];
  const int size = spec_.path.block_tokens;
  const auto units = [&](int tokens) { return static_cast<int>(CeilDiv(tokens, size)); };
  const auto [sinks, tail] = ForcedBlocks(block);
  std::vector<std::vector<double>> maps;
  std::vector<int> all(static_cast<size_t>(spec_.head_dim));
  std::iota(all.begin(), all.end(), 0);
  if (of_head.pattern.kind == PatternKind::kBlocks || spec_.path.pool == PrefillPool::kMean) {
    maps.push_back(PooledRow(head, block, all));
  } else if (spec_.path.pool == PrefillPool::kAntidiagonal) {
    maps.push_back(AntidiagonalRow(head, block));
  } else {
    maps = {PooledRow(head, block, BandChannels(true)),
            PooledRow(head, block, BandChannels(false))};
  }
  Kept kept{std::vector<bool>(static_cast<size_t>(block) + 1), true};
  for (const std::vector<double>& scores : maps) {
    Kept one;
    if (of_head.pattern.kind == PatternKind::kBlocks) {
      one = ChooseCount(scores, sinks, tail, of_head.pattern.a);
    } else if (spec_.path.select == PrefillSelectKind::kTopK) {
      const int tokens = d.budget_tokens + static_cast<int>(d.fraction * BlockEnd(block));
      one = ChooseCount(scores, sinks, tail, std::max(units(tokens), 1));
    } else {
      one = ChooseMass(scores, sinks, tail, double{of_head.p}, spec_.path.inclusive,
                       units(d.min_tokens), units(d.max_tokens));
    }
    kept.sure = kept.sure && one.sure;
    for (size_t i = 0; i < one.units.size(); ++i) kept.units[i] = kept.units[i] || one.units[i];
  }
  return row_choices_[{head, block}] = kept;
}

// Of the cell's map, the row of `block`: entries numbered by column, then row.
RangeWorld::Kept RangeWorld::MapChoice(int head, int cell, int block) {
  const int size = spec_.path.block_tokens, rows = cell_tokens() / size;
  std::vector<int> all(static_cast<size_t>(spec_.head_dim));
  std::iota(all.begin(), all.end(), 0);
  const int first = cell * rows;
  const int count = std::min(rows, static_cast<int>(CeilDiv(spec_.tokens, size)) - first);
  std::vector<double> scores;
  std::vector<int> entry_column, entry_row;
  std::vector<std::vector<double>> maps;
  for (int r = 0; r < count; ++r) {
    maps.push_back(spec_.path.pool == PrefillPool::kAntidiagonal ? AntidiagonalRow(head, first + r)
                                                                 : PooledRow(head, first + r, all));
  }
  // Forced entries are numbered first, so that a head of units holds them.
  for (const bool forced : {true, false}) {
    for (int column = 0; column < first + count; ++column) {
      for (int r = 0; r < count; ++r) {
        const auto [sinks, tail] = ForcedBlocks(first + r);
        if (column > first + r || forced != (column < sinks || column >= tail)) continue;
        scores.push_back(maps[static_cast<size_t>(r)][static_cast<size_t>(column)]);
        entry_column.push_back(column);
        entry_row.push_back(r);
      }
    }
  }
  int forced_count = 0;
  for (int r = 0; r < count; ++r) {
    const auto [sinks, tail] = ForcedBlocks(first + r);
    for (int column = 0; column <= first + r; ++column) {
      forced_count += column < sinks || column >= tail;
    }
  }
  const Kept kept =
      ChooseMass(scores, forced_count, 1 << 30, double{spec_.heads[static_cast<size_t>(head)].p},
                 spec_.path.inclusive, 0, 0);
  Kept row{std::vector<bool>(static_cast<size_t>(block) + 1), kept.sure};
  for (size_t i = 0; i < scores.size(); ++i) {
    if (kept.units[i] && entry_row[i] == block - first) {
      row.units[static_cast<size_t>(entry_column[i])] = true;
    }
  }
  return row;
}

void RangeWorld::Probe(int head, int cell, std::vector<double>* columns,
                       std::vector<double>* distances, std::vector<int>* rows) {
  const PrefillDials& d = spec_.dials;
  const int first = cell * cell_tokens();
  const int end = std::min(first + cell_tokens(), spec_.tokens);
  int runs = 1;
  if (spec_.path.probe_place == ProbePlace::kTails) {
    runs = std::max(
        1, static_cast<int>(std::lround(double{d.probe_fraction} * cell_tokens() / d.probe_rows)));
  }
  for (int run = 0; run < runs; ++run) {
    const int begin = first + run * cell_tokens() / runs;
    const int stop = std::min(first + (run + 1) * cell_tokens() / runs, end);
    for (int t = std::max(begin, stop - d.probe_rows); t < stop; ++t) rows->push_back(t);
  }
  columns->assign(static_cast<size_t>(end), 0);
  distances->assign(static_cast<size_t>(end), 0);
  for (const int t : *rows) {
    std::vector<double> row;
    for (int key = 0; key <= t; ++key) row.push_back(scale() * Dot(t, head, key));
    Softmax(&row);
    for (int key = 0; key <= t; ++key) {
      (*columns)[static_cast<size_t>(key)] += row[static_cast<size_t>(key)];
      (*distances)[static_cast<size_t>(t - key)] += row[static_cast<size_t>(key)];
    }
  }
}

namespace {

std::vector<double> PoolUnits(const std::vector<double>& tokens, int size) {
  std::vector<double> units(
      static_cast<size_t>(CeilDiv(static_cast<int64_t>(tokens.size()), size)));
  for (size_t i = 0; i < tokens.size(); ++i) units[i / static_cast<size_t>(size)] += tokens[i];
  return units;
}

}  // namespace

double RangeWorld::Divergence(int head, int cell, const std::vector<double>& columns,
                              const std::vector<int>& rows) {
  const int size = spec_.path.block_tokens;
  const int kv_head = head / (spec_.q_heads / spec_.kv_heads);
  const int end = std::min((cell + 1) * cell_tokens(), spec_.tokens);
  std::vector<double> pooled, probed = PoolUnits(columns, size);
  for (int block = 0; block * size < end; ++block) {
    double sum = 0;
    for (int i = 0; i < spec_.head_dim; ++i) {
      double query = 0, key = 0;
      for (const int t : rows) query += double{q(t, head, i)};
      for (int t = block * size; t < std::min(BlockEnd(block), end); ++t) {
        key += double{k(t, kv_head, i)};
      }
      sum += query / static_cast<double>(rows.size()) * key / (BlockEnd(block) - block * size);
    }
    pooled.push_back(scale() * sum);
  }
  Softmax(&pooled);
  double divergence = 0;
  for (size_t i = 0; i < pooled.size(); ++i) {
    const double a = pooled[i], b = probed[i] / static_cast<double>(rows.size());
    if (a > 0) divergence += a * std::log(2 * a / (a + b)) / 2;
    if (b > 0) divergence += b * std::log(2 * b / (a + b)) / 2;
  }
  return std::sqrt(divergence);
}

const RangeWorld::CellChoice& RangeWorld::CellOf(int head, int cell) {
  const auto found = cell_choices_.find({head, cell});
  if (found != cell_choices_.end()) return found->second;
  const PrefillDials& d = spec_.dials;
  const PrefillHead& of_head = spec_.heads[static_cast<size_t>(head)];
  const int last = std::min((cell + 1) * cell_tokens(), spec_.tokens) - 1;
  const int local = std::max(d.local_tokens, static_cast<int>(d.local_fraction * last));
  std::vector<double> columns, distances;
  std::vector<int> rows;
  Probe(head, cell, &columns, &distances, &rows);
  CellChoice choice;
  if (spec_.path.select == PrefillSelectKind::kVerticalSlash) {
    choice.columns = ChooseCount(columns, d.sink_tokens, 1 << 30, of_head.pattern.a);
    choice.distances = ChooseCount(distances, local, 1 << 30, of_head.pattern.b);
    return cell_choices_[{head, cell}] = choice;
  }
  const int size = spec_.path.block_tokens;
  const auto units = [&](int tokens) { return static_cast<int>(CeilDiv(tokens, size)); };
  bool sure = true;
  if (spec_.path.estimate == EstimateKind::kProbePooled) {
    const double divergence = Divergence(head, cell, columns, rows);
    choice.reads_map = divergence < double{d.js_threshold};
    sure = std::abs(divergence - double{d.js_threshold}) > 1e-5;
  }
  columns = PoolUnits(columns, size);
  distances = PoolUnits(distances, size);
  if (choice.reads_map) {
    choice.columns = ChooseCount(columns, units(d.sink_tokens), 1 << 30, units(d.min_tokens));
    choice.distances = ChooseCount(distances, units(local), 1 << 30, units(d.min_tokens));
  } else {
    choice.columns = ChooseMass(columns, units(d.sink_tokens), 1 << 30, double{of_head.p}, true,
                                units(d.min_tokens), units(d.max_tokens));
    choice.distances = ChooseMass(distances, units(local), 1 << 30, double{of_head.p}, true,
                                  units(d.min_tokens), units(d.max_tokens));
  }
  choice.columns.sure = choice.columns.sure && sure;
  return cell_choices_[{head, cell}] = choice;
}

RangeWorld::Expected RangeWorld::Reference(int head, int tile) {
  const PrefillDials& d = spec_.dials;
  const PrefillHead& of_head = spec_.heads[static_cast<size_t>(head)];
  const int first = tile * 64, end = std::min(first + 64, spec_.tokens);
  const bool slash = spec_.path.select == PrefillSelectKind::kVerticalSlash;
  Expected expected{std::vector<bool>(static_cast<size_t>(CeilDiv(end, 16))), true};
  const auto read = [&](int key) {
    if (key >= 0 && key < end) expected.groups[static_cast<size_t>(key / 16)] = true;
  };
  int dense_from = spec_.tokens - d.last_rows;
  if (spec_.path.correct != PrefillCorrectKind::kNone) {
    const int whole = spec_.tokens / d.correct_stride_rows * d.correct_stride_rows;
    dense_from = std::min(dense_from, whole - d.correct_last_rows);
  }
  const bool window =
      !spec_.shapes.empty() &&
      spec_.shapes[static_cast<size_t>(head / (spec_.q_heads / spec_.kv_heads))].window_tokens > 0;
  if (end > dense_from || spec_.tokens < d.dense_below_tokens || window ||
      spec_.path.select == PrefillSelectKind::kAll) {
    expected.groups.assign(expected.groups.size(), true);
    return expected;
  }
  const bool blocks =
      spec_.path.estimate == EstimateKind::kPooled || of_head.pattern.kind == PatternKind::kBlocks;
  if (!blocks) {  // what each query sees in any case
    for (int key = 0; key < d.sink_tokens; ++key) read(key);
    for (int t = first; t < end; ++t) {
      const int local = std::max(d.local_tokens, static_cast<int>(d.local_fraction * t));
      for (int key = t - local + 1; key <= t; ++key) read(key);
    }
  }
  const auto read_blocks = [&](const Kept& kept) {
    expected.sure = expected.sure && kept.sure;
    for (size_t b = 0; b < kept.units.size(); ++b) {
      for (int i = 0; kept.units[b] && i < spec_.path.block_tokens; ++i) {
        read(static_cast<int>(b) * spec_.path.block_tokens + i);
      }
    }
  };
  const int block = first / spec_.path.block_tokens, cell = first / cell_tokens();
  if (blocks && spec_.path.scope == ScopeKind::kMap) {
    read_blocks(MapChoice(head, cell, block));
  } else if (blocks) {
    read_blocks(RowChoice(head, block));
  } else if (of_head.pattern.kind == PatternKind::kAShape) {
    for (int key = 0; key < of_head.pattern.a; ++key) read(key);
    for (int key = first - of_head.pattern.b + 1; key < end; ++key) read(key);
  } else if (spec_.path.estimate != EstimateKind::kNone) {
    const CellChoice& choice = CellOf(head, cell);
    expected.sure = choice.columns.sure && choice.distances.sure;
    const int size = slash ? 1 : spec_.path.block_tokens;
    for (size_t u = 0; u < choice.columns.units.size(); ++u) {
      for (int i = 0; choice.columns.units[u] && i < size; ++i) {
        read(static_cast<int>(u) * size + i);
      }
    }
    for (int t = first; t < end; ++t) {
      for (int key = 0; key <= t; ++key) {
        if (choice.distances.units[static_cast<size_t>((t - key) / size)]) read(key);
      }
    }
    if (choice.reads_map) {
      read_blocks(spec_.path.scope == ScopeKind::kMap ? MapChoice(head, cell, block)
                                                      : RowChoice(head, block));
    }
  }
  return expected;
}

}  // namespace lacuna::kernels
