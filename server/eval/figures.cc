#include "server/eval/figures.h"

#include <algorithm>
#include <set>

namespace lacuna::server {
namespace {

using nlohmann::ordered_json;
using Records = std::vector<const EvalRecord*>;

std::optional<double> Ratio(double part, double whole) {
  if (whole <= 0) return std::nullopt;
  return part / whole;
}

std::optional<double> Median(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Answers of one variant, by question.
using ByQuestion = std::map<std::string, const EvalRecord*>;

EvalFigures FiguresOf(const Records& records, const ByQuestion& dense) {
  EvalFigures f;
  int64_t pages = 0, pages_read = 0, blocks = 0, blocks_read = 0, audited = 0, steps = 0;
  double mass = 0, decode_s = 0;
  std::vector<double> ttfts, ratios;
  for (const EvalRecord* record : records) {
    f.all.right += record->right;
    ++f.all.count;
    EvalCell& task = f.tasks[record->task];
    task.right += record->right;
    ++task.count;
    pages += record->pages_considered;
    pages_read += record->pages_selected;
    f.dense_steps += record->dense_steps;
    f.sparse_steps += record->sparse_steps;
    audited += record->audited_steps;
    mass += record->captured_mass * static_cast<double>(record->audited_steps);
    steps += std::max<int64_t>(record->completion_tokens - 1, 0);
    decode_s += record->decode_s;
    if (record->prefilled()) {
      ttfts.push_back(record->ttft_s);
      blocks += record->blocks_considered;
      blocks_read += record->blocks_selected;
    }
    const auto other = dense.find(record->question);
    if (other == dense.end()) continue;
    f.lost += other->second->right && !record->right;
    f.gained += !other->second->right && record->right;
    if (record->prefilled() && other->second->prefilled() && record->ttft_s > 0) {
      ratios.push_back(other->second->ttft_s / record->ttft_s);
    }
  }
  f.decode_read = Ratio(static_cast<double>(pages_read), static_cast<double>(pages));
  f.prefill_read = Ratio(static_cast<double>(blocks_read), static_cast<double>(blocks));
  f.captured_mass = Ratio(mass, static_cast<double>(audited));
  f.prefilled = static_cast<int64_t>(ttfts.size());
  f.ttft_s = Median(std::move(ttfts));
  f.ttft_speedup = Median(std::move(ratios));
  f.decode_tokens_per_s = Ratio(static_cast<double>(steps), decode_s);
  return f;
}

ordered_json Number(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json CellJson(const EvalCell& cell) {
  return {{"right", cell.right}, {"count", cell.count}};
}

ordered_json FiguresJson(const EvalFigures& f) {
  ordered_json tasks = ordered_json::object();
  for (const auto& [task, cell] : f.tasks) tasks[task] = CellJson(cell);
  return {{"right", f.all.right},
          {"count", f.all.count},
          {"tasks", std::move(tasks)},
          {"lost", f.lost},
          {"gained", f.gained},
          {"decode_read", Number(f.decode_read)},
          {"prefill_read", Number(f.prefill_read)},
          {"steps", {{"dense", f.dense_steps}, {"sparse", f.sparse_steps}}},
          {"captured_mass", Number(f.captured_mass)},
          {"ttft_s", Number(f.ttft_s)},
          {"ttft_answers", f.prefilled},
          {"ttft_speedup", Number(f.ttft_speedup)},
          {"decode_tokens_per_s", Number(f.decode_tokens_per_s)},
          {"decode_speedup", Number(f.decode_speedup)}};
}

}  // namespace

const EvalFigures* EvalReport::Find(const std::string& label, int64_t length) const {
  const auto found = cells.find({label, length});
  return found == cells.end() ? nullptr : &found->second;
}

EvalReport MakeEvalReport(std::span<const EvalRecord> records, const EvalPlan& plan) {
  EvalReport report;
  report.notes = plan.notes;
  std::map<std::pair<std::string, int64_t>, Records> groups;
  std::set<int64_t> lengths;
  std::set<std::string> tasks, labels;
  ByQuestion dense;
  for (const EvalVariant& variant : plan.variants) labels.insert(variant.label);
  for (const EvalRecord& record : records) {
    if (!labels.contains(record.variant)) continue;
    if (!record.error.empty()) {
      report.failures.push_back(record.question + ", " + record.variant + ": " + record.error);
      continue;
    }
    lengths.insert(record.context_tokens);
    tasks.insert(record.task);
    if (record.variant == kEvalDense) dense[record.question] = &record;
    for (const int64_t length : {record.context_tokens, int64_t{0}}) {
      groups[{record.variant, length}].push_back(&record);
    }
  }
  report.lengths.assign(lengths.begin(), lengths.end());
  report.tasks.assign(tasks.begin(), tasks.end());
  for (const auto& [key, group] : groups) report.cells[key] = FiguresOf(group, dense);
  for (auto& [key, figures] : report.cells) {
    const EvalFigures* base = report.Find(kEvalDense, key.second);
    if (base == nullptr || !base->decode_tokens_per_s || !figures.decode_tokens_per_s) continue;
    figures.decode_speedup = Ratio(*figures.decode_tokens_per_s, *base->decode_tokens_per_s);
  }
  std::ranges::copy_if(plan.variants, std::back_inserter(report.variants),
                       [&](const EvalVariant& v) {
                         return groups.contains({v.label, 0});
                       });
  return report;
}

ordered_json EvalReportJson(const EvalReport& report) {
  ordered_json variants = ordered_json::array();
  for (const EvalVariant& variant : report.variants) {
    ordered_json lengths = ordered_json::object();
    for (const int64_t length : report.lengths) {
      const EvalFigures* figures = report.Find(variant.label, length);
      if (figures != nullptr) lengths[std::to_string(length)] = FiguresJson(*figures);
    }
    variants.push_back({{"label", variant.label},
                        {"profile", variant.profile},
                        {"sparse", variant.sparse},
                        {"all", FiguresJson(*report.Find(variant.label, 0))},
                        {"lengths", std::move(lengths)}});
  }
  return {{"model", report.model},       {"suite", report.suite},
          {"when", report.when},         {"variants", std::move(variants)},
          {"failures", report.failures}, {"notes", report.notes}};
}

}  // namespace lacuna::server
