#include "tests/engine/fake_runner.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 29);
}

constexpr int32_t kChoicesMax = 64;  // running_max of any test
constexpr int kLayers = 2;           // of each layer group, as audits tell

bool Sees(const kvcache::KvGroup& group, int64_t query, int64_t key) {
  return group.full() || key < group.sink_tokens || key > query - group.window_tokens;
}

}  // namespace

FakeRunner::FakeRunner(Shape shape) : shape_(std::move(shape)), choices_(kChoicesMax) {
  for (const int64_t pages : shape_.group_pages) {
    cells_.emplace_back(static_cast<size_t>(pages * shape_.page_tokens));
  }
}

TokenId FakeRunner::Next(const Shape& shape, std::span<const TokenId> tokens) {
  const auto query = static_cast<int64_t>(tokens.size()) - 1;
  uint64_t hash = 1;
  for (const kvcache::KvGroup& group : shape.groups) {
    for (int64_t key = 0; key <= query; ++key) {
      if (!Sees(group, query, key)) continue;
      hash = Mix(Mix(hash, static_cast<uint64_t>(key)),
                 static_cast<uint64_t>(tokens[static_cast<size_t>(key)]));
    }
  }
  return static_cast<TokenId>(hash % static_cast<uint64_t>(shape.vocab_size));
}

Result<StepKind> FakeRunner::Launch(const StepBatch& batch) {
  if (!fail_launch.ok()) return std::exchange(fail_launch, OkStatus());
  batch_max = std::max(batch_max, static_cast<int64_t>(batch.sequences.size()));
  rows_max = std::max(rows_max, static_cast<int64_t>(batch.rows.size()));
  launched_ahead += !steps_.empty();
  bool decode = false, prefill = false;
  size_t rows = 0;
  Step step{.work = {}, .rows = batch.rows, .edits = batch.edits};
  for (const StepSequence& s : batch.sequences) {
    (s.decode ? decode : prefill) = true;
    if (s.logits_from >= 0) rows += s.tokens.size() - static_cast<size_t>(s.logits_from);
    Work work{.tokens = {s.tokens.begin(), s.tokens.end()},
              .sampled_row = s.sampled_row,
              .first_position = s.first_position,
              .logits_from = s.logits_from,
              .decode = s.decode,
              .prompt_tokens = s.prompt_tokens,
              .choice = s.choice,
              .steps_since_choice = s.steps_since_choice,
              .budget_scale = s.budget_scale,
              .audit = s.audit,
              .pages = {},
              .logical = {}};
    if (s.plan != nullptr) {
      work.plan = std::make_shared<kvcache::SparsePlan>(*s.plan);
      if (s.choice < 0 || s.choice >= kChoicesMax) faults.push_back("no place for choices");
    }
    for (const kvcache::PageSpan& span : s.pages) {
      work.pages.emplace_back(span.pages.begin(), span.pages.end());
      work.logical.emplace_back(span.logical.begin(), span.logical.end());
    }
    step.work.push_back(std::move(work));
  }
  if (rows != batch.rows.size()) faults.push_back("rows that are not those of the sequences");
  if (steps_.size() >= (shape_.asynchronous ? 2u : 1u)) faults.push_back("too many steps at once");
  mixed_steps += decode && prefill;
  steps_.push_back(std::move(step));
  return StepKind::kEager;
}

void FakeRunner::Write(const Work& work) {
  for (size_t g = 0; g < shape_.groups.size(); ++g) {
    const std::vector<int32_t>& logical = work.logical[g];
    if (!std::ranges::is_sorted(logical, std::less_equal<>())) faults.push_back("order");
    for (size_t i = 0; i < work.tokens.size(); ++i) {
      const int64_t position = work.first_position + static_cast<int64_t>(i);
      const auto index = static_cast<int32_t>(position / shape_.page_tokens);
      const auto found = std::ranges::lower_bound(logical, index);
      if (found == logical.end() || *found != index) {
        faults.push_back("no page for position " + std::to_string(position));
        continue;
      }
      const int32_t page = work.pages[g][static_cast<size_t>(found - logical.begin())];
      *At(g, page, position % shape_.page_tokens) = {
          work.tokens[i], static_cast<int32_t>(position),
          work.decode ? work.stamp : ChunkStamp(work, position)};
    }
  }
}

uint64_t FakeRunner::Read(const Work& work, int64_t position, int64_t end) {
  uint64_t hash = 1;
  for (size_t g = 0; g < shape_.groups.size(); ++g) {
    for (size_t p = 0; p < work.pages[g].size(); ++p) {
      for (int64_t offset = 0; offset < shape_.page_tokens; ++offset) {
        const int64_t key = work.logical[g][p] * shape_.page_tokens + offset;
        if (key >= end || !Sees(shape_.groups[g], position, key)) continue;
        const Cell& cell = *At(g, work.pages[g][p], offset);
        if (cell.position != key) faults.push_back("stale cell at " + std::to_string(key));
        hash = Mix(Mix(hash, static_cast<uint64_t>(key)), static_cast<uint64_t>(cell.token));
        if (cell.stamp != 0) hash = Mix(hash, cell.stamp);
      }
    }
  }
  return work.stamp == 0 ? hash : Mix(hash, work.stamp);
}

uint64_t FakeRunner::ChunkStamp(const Work& work, int64_t position) const {
  if (work.plan == nullptr) return 0;
  const kvcache::SparsePlan& plan = *work.plan;
  const bool dense = kvcache::DensePrefill(plan, work.prompt_tokens);
  if (dense && !plan.static_heads) return 0;
  uint64_t stamp = Mix(plan.kv_fingerprint, dense);
  if (!plan.spans.empty()) stamp = Mix(stamp, static_cast<uint64_t>(work.prompt_tokens));
  if (dense) return stamp;
  // Of the grain, as much as this chunk holds of it: the whole, or else another stamp.
  const int64_t grain = Shape::GrainTokens(plan);
  const int64_t first = work.first_position,
                last = first + static_cast<int64_t>(work.tokens.size());
  const int64_t begin = std::max(first, position / grain * grain);
  const int64_t end = std::min(last, (position / grain + 1) * grain);
  for (int64_t p = begin; p < end; ++p) {
    stamp = Mix(Mix(stamp, static_cast<uint64_t>(p)),
                static_cast<uint64_t>(work.tokens[static_cast<size_t>(p - first)]));
  }
  const bool in_end = position >= work.prompt_tokens - plan.prefill_dials.last_rows;
  return Mix(stamp, in_end);
}

uint64_t FakeRunner::RowStamp(const Work& work) {
  const kvcache::SparsePlan& plan = *work.plan;
  const bool dense =
      work.budget_scale == 1 && kvcache::CountUnits(plan, work.first_position + 1).dense;
  const uint64_t role = plan.static_heads ? Mix(plan.fingerprint, 1) : 0;
  if (dense) return role;
  ++sparse_rows;
  Choice& choice = choices_[static_cast<size_t>(work.choice)];
  if (kvcache::RefreshDue(plan, work.steps_since_choice)) {
    choice = {Mix(Read(work, work.first_position, work.first_position),
                  static_cast<uint64_t>(work.first_position)),
              work.first_position};
  } else {
    ++kept_rows;
    if (work.first_position - choice.made_at != work.steps_since_choice) {
      faults.push_back("a kept choice is not as old as it is said to be");
    }
  }
  return Mix(Mix(Mix(plan.fingerprint, choice.hash), role),
             static_cast<uint64_t>(work.budget_scale * 1000));
}

double FakeRunner::CapturedMass(int64_t position, float budget_scale) {
  const auto share = static_cast<double>(Mix(7, static_cast<uint64_t>(position)) % 100) / 100;
  return std::min(1.0, share * static_cast<double>(budget_scale));
}

void FakeRunner::Report(size_t index, const Work& work) {
  SparseReport report;
  report.sequence = static_cast<int32_t>(index);
  if (work.decode) {
    report.dense = work.plan->static_heads
                       ? false
                       : kvcache::CountUnits(*work.plan, work.first_position + 1).dense;
    report.keys = {.pages_considered = static_cast<int64_t>(work.pages[0].size()),
                   .pages_selected = 1,
                   .keys_selected = 1,
                   .layers = 1,
                   .estimated_mass = 0.5f,
                   .choices = 1};
  } else if (!kvcache::DensePrefill(*work.plan, work.prompt_tokens)) {
    ++sparse_chunks;
    report.blocks = {.blocks_considered = static_cast<int64_t>(work.tokens.size()),
                     .blocks_selected = 1};
  }
  if (work.audit) {
    ++audited_rows;
    const double mass = CapturedMass(work.first_position, work.budget_scale);
    for (kernels::AttentionAudit& audit : report.audits) {
      audit = {static_cast<float>(mass * kLayers), static_cast<float>((1 - mass) * kLayers),
               kLayers};
    }
  }
  reports_.push_back(report);
}

void FakeRunner::Sample(const Step& step) {
  std::vector<kernels::SampleResult> results;
  for (const Work& work : step.work) {
    if (work.logits_from < 0) continue;
    for (auto i = static_cast<size_t>(work.logits_from); i < work.tokens.size(); ++i) {
      if (results.size() == step.rows.size()) return;  // Launch has told
      const int64_t position = work.first_position + static_cast<int64_t>(i);
      logits_.assign(static_cast<size_t>(shape_.vocab_size), 0.0f);
      logits_[Read(work, position, position + 1) % static_cast<uint64_t>(shape_.vocab_size)] =
          10.0f;
      if (nan_after >= 0 && work.tokens[i] == nan_after) {
        logits_[0] = std::numeric_limits<float>::quiet_NaN();
      }
      const kernels::SampleRow& row = step.rows[results.size()];
      const std::span edits(step.edits.data() + row.edits_begin,
                            static_cast<size_t>(row.edits_end - row.edits_begin));
      results.push_back(kernels::cpu::SampleOneRow(logits_, row, edits, nullptr, scratch_));
      results.back().rereads = rereads;
    }
  }
  results_ = std::move(results);
}

Result<std::span<const kernels::SampleResult>> FakeRunner::Wait() {
  if (steps_.empty()) return InternalError("nothing was launched");
  Step step = std::move(steps_.front());
  steps_.pop_front();
  ++runs;
  reports_.clear();
  for (size_t i = 0; i < step.work.size(); ++i) {
    Work& work = step.work[i];
    if (work.sampled_row >= 0) {
      ++pending_tokens_run;
      work.tokens.at(0) = results_.at(static_cast<size_t>(work.sampled_row)).token;
    }
    if (work.plan != nullptr) {
      if (work.decode) work.stamp = RowStamp(work);
      Report(i, work);
    }
    Write(work);
    tokens_run += static_cast<int64_t>(work.tokens.size());
  }
  if (!fail_next.ok()) return std::exchange(fail_next, OkStatus());
  Sample(step);
  return std::span<const kernels::SampleResult>(results_);
}

}  // namespace lacuna::engine
