#include "engine/sparse_progress.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/random.h"
#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

// The same request audits the same steps; other requests others.
uint64_t AuditKey(uint64_t seed, std::span<const TokenId> prompt) {
  uint64_t key = seed;
  for (const TokenId token : prompt) key = MixIn(key, static_cast<uint64_t>(token));
  return key;
}

void AddTo(std::atomic<uint64_t>& counter, int64_t value) {
  counter.fetch_add(static_cast<uint64_t>(std::max<int64_t>(value, 0)), std::memory_order_relaxed);
}

}  // namespace

SparseProgress::SparseProgress(const SparseOptions& options, uint64_t seed,
                               std::span<const TokenId> prompt)
    : options_(options), audit_key_(options.audit_fraction > 0 ? AuditKey(seed, prompt) : 0) {}

void SparseProgress::Restart() { age_ = -1; }

bool SparseProgress::Audits(int64_t output) const {
  if (options_.audit_fraction <= 0) return false;
  const uint64_t bits = MixIn(audit_key_, static_cast<uint64_t>(output));
  return std::ldexp(static_cast<double>(bits >> 11), -53) < options_.audit_fraction;
}

float SparseProgress::ScaleAt(int64_t output) const {
  const auto end = std::ranges::upper_bound(widened_from_, output);
  return std::pow(kWidenFactor, static_cast<float>(end - widened_from_.begin()));
}

void SparseProgress::Fill(StepSequence& step) {
  const kvcache::SparsePlan& plan = *options_.plan;
  step.plan = &plan;
  step.choice = choice_;
  if (!step.decode) return;
  const int64_t output = step.first_position - step.prompt_tokens;
  step.budget_scale = ScaleAt(output);
  // A widened row may never have made a choice under this budget.
  step.steps_since_choice = step.budget_scale > 1 ? -1 : age_;
  step.select = kvcache::MakeSelectRow(plan, int64_t{step.first_position} + 1,
                                       step.steps_since_choice, step.budget_scale);
  const bool dense = step.select.counts.dense;
  if (!dense && step.select.choose) {
    age_ = 1;
  } else if (age_ >= 0) {
    ++age_;
  }
  step.audit = output >= landed_steps_ && (plan.static_heads || !dense) && Audits(output);
}

void SparseProgress::Land(int64_t output, const SparseReport& report, EngineStats& stats) {
  AddTo(stats.sparse.prefill_blocks_considered, report.blocks.blocks_considered);
  AddTo(stats.sparse.prefill_blocks_selected, report.blocks.blocks_selected);
  sums_.prefill_blocks_considered += report.blocks.blocks_considered;
  sums_.prefill_blocks_selected += report.blocks.blocks_selected;
  if (output < 0) return;
  const bool dense = report.dense && !options_.plan->static_heads;
  AddTo(dense ? stats.sparse.dense_steps : stats.sparse.sparse_steps, 1);
  if (!report.dense) {
    AddTo(stats.sparse.pages_considered, report.keys.pages_considered);
    AddTo(stats.sparse.pages_selected, report.keys.pages_selected);
  }
  if (output < landed_steps_) return;  // seen before a preemption
  landed_steps_ = output + 1;
  ++(dense ? sums_.dense_steps : sums_.sparse_steps);
  if (!report.dense) {
    sums_.pages_considered += report.keys.pages_considered;
    sums_.pages_selected += report.keys.pages_selected;
    sums_.estimated_mass += static_cast<double>(report.keys.estimated_mass);
    choices_ += report.keys.choices;
  }
  LandAudit(output, report, stats);
}

void SparseProgress::LandAudit(int64_t output, const SparseReport& report, EngineStats& stats) {
  double mass = 0;
  int64_t layers = 0;
  for (int g = 0; g < SparseUsage::kLayerGroups; ++g) {
    const kernels::AttentionAudit& audit = report.audits[g];
    if (audit.layers <= 0) continue;
    const double captured = static_cast<double>(audit.captured_mass) / audit.layers;
    const double error = static_cast<double>(audit.output_error) / audit.layers;
    sums_.captured_mass[g] += captured;
    sums_.output_error[g] += error;
    ++group_audits_[g];
    AddTo(stats.sparse.group_audits[g], 1);
    stats.sparse.captured_mass[g].fetch_add(captured, std::memory_order_relaxed);
    stats.sparse.output_error[g].fetch_add(error, std::memory_order_relaxed);
    mass += static_cast<double>(audit.captured_mass);
    layers += audit.layers;
  }
  if (layers == 0) return;
  ++sums_.audited_steps;
  AddTo(stats.sparse.audited_steps, 1);
  if (mass >= options_.mass_floor * static_cast<double>(layers)) return;
  if (widened_from_.size() >= kWidenMax) return;
  widened_from_.push_back(output + kWidenAfterSteps);
  ++sums_.budget_widened;
  AddTo(stats.sparse.budgets_widened, 1);
}

SparseUsage SparseProgress::usage() const {
  SparseUsage usage = sums_;
  if (choices_ > 0) usage.estimated_mass /= static_cast<double>(choices_);
  for (int g = 0; g < SparseUsage::kLayerGroups; ++g) {
    const double audits = static_cast<double>(std::max<int64_t>(group_audits_[g], 1));
    usage.captured_mass[g] /= audits;
    usage.output_error[g] /= audits;
  }
  return usage;
}

}  // namespace lacuna::engine
