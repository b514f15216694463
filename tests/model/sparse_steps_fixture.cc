#include "tests/model/sparse_steps_fixture.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "engine/model/load_model.h"
#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/plan_storage.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "tests/device/engine_backend.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kLots = 1 << 20;

const kvcache::ProfileSet& Shipped() {
  static const kvcache::ProfileSet kSet = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  return kSet;
}

void Cover(kvcache::SparseProfile& p) {
  if (p.who.local_tokens > 0) p.who.local_tokens = kLots;
  if (p.who.prefill_local_tokens > 0) p.who.prefill_local_tokens = kLots;
  p.prefill_select.vertical_tokens = p.prefill_select.slash_tokens = kLots;
  if (p.prefill_select.kind == "top_k") p.prefill_select.budget_tokens = kLots;
  p.prefill_select.p = 1;
  p.prefill_select.max_tokens = 0;
  if (p.prefill_select.kind == "none") p.prefill_force.local_tokens = kLots;
  p.prefill_layers.dense_below_tokens = p.decode_layers.dense_below_tokens = 0;
  if (p.decode_select.kind == "top_k") p.decode_select.budget_tokens = kLots;
  if (p.decode_select.kind == "none") p.decode_force.local_tokens = kLots;
  p.decode_select.p = 1;
  p.decode_select.threshold = -1e30;
  p.decode_select.max_tokens = 0;
  p.decode_refine.budget_tokens = kLots;
  p.decode_refine.p = 1;
}

void Tighten(kvcache::SparseProfile& p) {
  const auto at_most = [](int64_t& value, int64_t limit) { value = std::min(value, limit); };
  at_most(p.who.sink_tokens, 16);
  at_most(p.who.local_tokens, 80);
  at_most(p.who.prefill_local_tokens, 160);
  at_most(p.prefill_select.vertical_tokens, 32);
  at_most(p.prefill_select.slash_tokens, 64);
  at_most(p.prefill_select.budget_tokens, 128);
  at_most(p.prefill_select.min_tokens, 64);
  p.prefill_select.p = std::min(p.prefill_select.p, 0.6);
  at_most(p.prefill_force.sink_tokens, 16);
  at_most(p.prefill_force.local_tokens, 64);
  at_most(p.prefill_force.last_rows, 32);
  at_most(p.prefill_estimate.probe_rows, 32);
  at_most(p.prefill_estimate.cell_tokens, 1024);
  p.prefill_layers.dense_below_tokens = p.decode_layers.dense_below_tokens = 0;
  at_most(p.decode_select.budget_tokens, 128);
  p.decode_select.fraction = std::min(p.decode_select.fraction, 0.2);
  p.decode_select.p = std::min(p.decode_select.p, 0.6);
  at_most(p.decode_select.min_tokens, 64);
  at_most(p.decode_force.sink_tokens, 16);
  at_most(p.decode_force.local_tokens, 32);
  at_most(p.decode_refine.budget_tokens, 64);
  at_most(p.decode_refine.min_tokens, 32);
  p.decode_refine.p = std::min(p.decode_refine.p, 0.6);
  p.prefill_layers.first_layer = std::min<int64_t>(p.prefill_layers.first_layer, 1);
}

}  // namespace

std::vector<std::string> ProfileNames() {
  std::vector<std::string> names;
  for (const kvcache::SparseProfile& profile : Shipped().all()) names.push_back(profile.name);
  return names;
}

kvcache::SparseProfile ChangedProfile(const std::string& name, Dials dials) {
  kvcache::SparseProfile profile = *Shipped().Find(name);
  dials == Dials::kCover ? Cover(profile) : Tighten(profile);
  return profile;
}

std::string SparseCase::Name() const {
  std::string name = model;
  std::erase(name, '-');
  return name + "_" + std::to_string(page_tokens) + "_" + backend;
}

void SparseSteps::SetUp() {
  if (kernels::SkipsWithout(GetParam().backend, /*sparse=*/true)) return;
  Make({});
  const ModelInfo& info = model_->info();
  shape_ = {.layers = static_cast<int32_t>(info.layers),
            .q_heads = static_cast<int32_t>(info.q_heads),
            .kv_heads = static_cast<int32_t>(info.kv_heads),
            .head_dim = static_cast<int32_t>(info.head_dim),
            .page_tokens = static_cast<int32_t>(GetParam().page_tokens),
            .layer_window_tokens = std::vector<int32_t>(static_cast<size_t>(info.layers))};
  for (const kvcache::KvGroup& group : model_->groups()) {
    for (const kvcache::KvLayer& layer : group.layers) {
      shape_.layer_window_tokens[static_cast<size_t>(layer.layer)] = group.window_tokens;
    }
  }
}

void SparseSteps::Make(const std::vector<PlanPtr>& plans, Wrap wrap, PlanPtr residency) {
  executor_.reset();
  model_.reset();
  auto backend = kernels::MakeEngineBackend(
      case_.backend,
      {.precision = case_.precision, .deterministic = true, .threads = 2, .pin_threads = false});
  ASSERT_TRUE(backend.ok());
  metadata_.reset();
  storage_.reset();
  backend_ = wrap == nullptr ? std::move(*backend) : wrap(std::move(*backend));
  const std::string& name = case_.model;
  const auto folder =
      Folder::Open(name == "recall-12m" ? "models/recall-12m" : "tests/data/golden/" + name);
  ASSERT_TRUE(folder.ok()) << folder.status().ToString();
  auto model = LoadModel(**folder, *backend_, kContext, /*bf16_rope=*/false, residency.get());
  ASSERT_TRUE(model.ok()) << model.status().ToString();
  model_ = std::move(*model);
  const std::vector<int64_t> pages(model_->groups().size(), kPages);
  auto storage = kvcache::KvStorage::Create(backend_->device(), model_->groups(), pages,
                                            case_.page_tokens, backend_->act_dtype());
  ASSERT_TRUE(storage.ok()) << storage.status().ToString();
  storage_ = std::move(*storage);
  std::vector<const kvcache::SparsePlan*> plain;
  for (const PlanPtr& plan : plans) plain.push_back(plan.get());
  auto metadata = kvcache::MetadataStorage::Create(
      backend_->device(), model_->groups(), pages, case_.page_tokens,
      ArrangedStores(kvcache::MetadataStores(plain), model_->head_order()));
  ASSERT_TRUE(metadata.ok()) << metadata.status().ToString();
  metadata_ = std::move(*metadata);
  auto executor = MakeExecutor(*model_, *backend_,
                               {.step_tokens_max = kContext * 16,
                                .running_max = kRunningMax,
                                .logit_rows_max = kRunningMax,
                                .plans = plans});
  ASSERT_TRUE(executor.ok()) << executor.status().ToString();
  executor_ = std::move(*executor);
  ASSERT_TRUE(executor_->Attach(*storage_, metadata_.get()).ok());
}

PlanPtr SparseSteps::Resolve(const kvcache::SparseProfile& profile) const {
  return Resolve(profile, kvcache::MakeArtefacts(Shape()).head_scores);
}

PlanPtr SparseSteps::Resolve(const kvcache::SparseProfile& profile,
                             const std::vector<float>& head_scores) const {
  const kvcache::AttentionShape shape = Shape();
  kvcache::SparseArtefacts artefacts = kvcache::MakeArtefacts(shape);
  artefacts.head_scores = head_scores;
  if (profile.prefill_select.vertical_tokens == kLots) {
    for (kernels::HeadPattern& pattern : artefacts.patterns) pattern.a = pattern.b = kLots;
    for (kvcache::HeadSpan& span : artefacts.spans) span = {.alpha = kLots, .beta = 0};
    std::ranges::fill(artefacts.prefill_p, 1.0f);
    std::ranges::fill(artefacts.thresholds, -1e30f);
  } else {
    for (kernels::HeadPattern& pattern : artefacts.patterns) pattern.a = pattern.b = 48;
    for (kvcache::HeadSpan& span : artefacts.spans) span = {.alpha = 32, .beta = span.beta / 2};
  }
  const kvcache::ResolvedPlan resolved = kvcache::ResolvePlan(profile, shape, artefacts);
  EXPECT_EQ(resolved.errors, std::vector<std::string>{}) << profile.name;
  return resolved.plan;
}

std::vector<PlanPtr> SparseSteps::Plans(Dials dials) const {
  std::vector<PlanPtr> plans;
  for (const std::string& name : ProfileNames()) {
    plans.push_back(Resolve(ChangedProfile(name, dials)));
  }
  return plans;
}

TestSequence SparseSteps::MakeSequence(size_t tokens, uint32_t seed, int32_t first,
                                       int32_t stride) const {
  std::mt19937 random(seed);
  const auto vocab = static_cast<uint32_t>(model_->info().vocab_size);
  TestSequence sequence;
  for (size_t i = 0; i < tokens; ++i) {
    sequence.tokens.push_back(static_cast<TokenId>(random() % vocab));
  }
  sequence.prompt_tokens = static_cast<int32_t>(tokens);
  for (int32_t i = 0; i * GetParam().page_tokens < static_cast<int64_t>(tokens); ++i) {
    sequence.pages.push_back((first + i * stride) % static_cast<int32_t>(kPages));
    sequence.logical.push_back(i);
  }
  return sequence;
}

TestSequence SparseSteps::Sparse(TestSequence sequence, PlanPtr plan, int32_t choice) const {
  sequence.plan = std::move(plan);
  sequence.choice = choice;
  return sequence;
}

StepSequence SparseSteps::Step(TestSequence& sequence, size_t begin, size_t end,
                               int32_t logits_from, bool decode) const {
  const auto page_tokens = static_cast<size_t>(GetParam().page_tokens);
  sequence.spans.clear();
  for (const kvcache::KvGroup& group : model_->groups()) {
    const int64_t key =
        group.full() ? 0
                     : std::max<int64_t>(static_cast<int64_t>(begin) - group.window_tokens + 1, 0);
    const size_t skip = static_cast<size_t>(key) / page_tokens;
    const size_t count = (end + page_tokens - 1) / page_tokens - skip;
    if (group.sink_tokens == 0) {
      sequence.spans.push_back({std::span<const int32_t>(sequence.pages).subspan(skip, count),
                                std::span<const int32_t>(sequence.logical).subspan(skip, count)});
      continue;
    }
    const size_t sinks = (static_cast<size_t>(group.sink_tokens) + page_tokens - 1) / page_tokens;
    sequence.held_pages.clear();
    sequence.held_logical.clear();
    for (size_t page = 0; page < skip + count; ++page) {
      if (page >= sinks && page < skip) continue;
      sequence.held_pages.push_back(sequence.pages[page]);
      sequence.held_logical.push_back(static_cast<int32_t>(page));
    }
    sequence.spans.push_back({sequence.held_pages, sequence.held_logical});
  }
  return {
      .tokens = std::span<const TokenId>(sequence.tokens).subspan(begin, end - begin),
      .first_position = static_cast<int32_t>(begin),
      .decode = decode,
      .pages = sequence.spans,
      .logits_from = logits_from,
      .plan = sequence.plan.get(),
      .prompt_tokens = sequence.prompt_tokens,
      .choice = sequence.choice,
      .steps_since_choice = sequence.steps_since_choice,
      .budget_scale = sequence.budget_scale,
      .select = sequence.plan == nullptr
                    ? kernels::SelectRow{}
                    : kvcache::MakeSelectRow(*sequence.plan, static_cast<int64_t>(begin) + 1,
                                             sequence.steps_since_choice, sequence.budget_scale),
      .audit = sequence.audit};
}

std::vector<float> SparseSteps::Run(std::vector<StepSequence> sequences) {
  const Result<TensorView> logits =
      executor_->RunForLogits({.sequences = std::move(sequences), .rows = {}, .edits = {}});
  EXPECT_TRUE(logits.ok()) << logits.status().ToString();
  if (!logits.ok() || logits->empty()) return {};
  const float* data = logits->as<const float>();
  return {data, data + logits->elements()};
}

std::vector<SparseReport> SparseSteps::RunForReports(std::vector<StepSequence> sequences) {
  StepBatch batch{.sequences = std::move(sequences), .rows = {}, .edits = {}};
  for (const StepSequence& sequence : batch.sequences) {
    if (sequence.logits_from < 0) continue;
    batch.rows.resize(batch.rows.size() + sequence.tokens.size() -
                      static_cast<size_t>(sequence.logits_from));
  }
  const auto launched = executor_->Launch(batch);
  EXPECT_TRUE(launched.ok()) << launched.status().ToString();
  const auto results = executor_->Wait();
  EXPECT_TRUE(results.ok()) << results.status().ToString();
  const std::span<const SparseReport> reports = executor_->reports();
  return {reports.begin(), reports.end()};
}

std::vector<std::vector<float>> SparseSteps::Generate(std::vector<TestSequence*> sequences) {
  const auto vocab = static_cast<size_t>(model_->info().vocab_size);
  std::vector<std::vector<float>> logits(sequences.size());
  const auto run = [&](const std::vector<size_t>& who, std::vector<StepSequence> steps) {
    const std::vector<float> got = Run(std::move(steps));
    ASSERT_EQ(got.size(), who.size() * vocab);
    for (size_t i = 0; i < who.size(); ++i) {
      const auto from = got.begin() + static_cast<ptrdiff_t>(i * vocab);
      logits[who[i]].insert(logits[who[i]].end(), from, from + static_cast<ptrdiff_t>(vocab));
    }
  };
  std::vector<size_t> all;
  std::vector<StepSequence> chunks;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto prompt = static_cast<size_t>(sequences[i]->prompt_tokens);
    chunks.push_back(Step(*sequences[i], 0, prompt, static_cast<int32_t>(prompt) - 1));
    all.push_back(i);
  }
  run(all, std::move(chunks));
  for (size_t done = 0;; ++done) {
    std::vector<size_t> who;
    std::vector<StepSequence> steps;
    for (size_t i = 0; i < sequences.size(); ++i) {
      TestSequence& one = *sequences[i];
      const size_t position = static_cast<size_t>(one.prompt_tokens) + done;
      if (position >= one.tokens.size()) continue;
      who.push_back(i);
      steps.push_back(Step(one, position, position + 1, 0, /*decode=*/true));
      if (one.plan == nullptr) continue;
      const bool chose = kvcache::RefreshDue(*one.plan, one.steps_since_choice);
      one.steps_since_choice = chose ? 1 : one.steps_since_choice + 1;
    }
    if (who.empty()) return logits;
    run(who, std::move(steps));
  }
}

void ExpectEqualBits(std::span<const float> got, std::span<const float> expected) {
  ASSERT_EQ(got.size(), expected.size());
  if (std::memcmp(got.data(), expected.data(), expected.size_bytes()) == 0) return;
  size_t at = 0;
  while (std::memcmp(&got[at], &expected[at], sizeof(float)) == 0) ++at;
  FAIL() << "entry " << at << " of " << got.size() << ": " << got[at] << ", not " << expected[at];
}

}  // namespace lacuna::engine
