// Builds engines on a FakeRunner and reads their streams; shared by the tests of the engine.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/fake_plans.h"
#include "tests/engine/fake_runner.h"

namespace lacuna::engine {

inline kvcache::KvGroup FullGroup() { return {}; }
inline kvcache::KvGroup WindowGroup(int32_t window_tokens, int32_t sink_tokens) {
  kvcache::KvGroup group;
  group.window_tokens = window_tokens;
  group.sink_tokens = sink_tokens;
  return group;
}

inline FakeRunner::Shape SmallShape() {
  FakeRunner::Shape shape;
  shape.groups = {FullGroup()};
  shape.group_pages = {32};
  return shape;
}

struct TestEngine {
  FakeRunner::Shape shape;
  FakeRunner* runner = nullptr;  // the engine's
  std::unique_ptr<Engine> engine;
};

inline TestEngine MakeTestEngine(FakeRunner::Shape shape, EngineConfig config, const Clock& clock,
                                 std::vector<TokenId> eos = {}, bool prefix_cache = true,
                                 int64_t context_tokens_max = 1 << 20, PlanRef residency = nullptr,
                                 bool sparse_ops = true) {
  auto runner = std::make_unique<FakeRunner>(shape);
  TestEngine out{.shape = shape, .runner = runner.get(), .engine = nullptr};
  EngineParts parts;
  parts.runner = std::move(runner);
  parts.groups = shape.groups;
  parts.group_pages = shape.group_pages;
  parts.page_tokens = shape.page_tokens;
  parts.vocab_size = shape.vocab_size;
  parts.logit_rows_max = shape.logit_rows_max;
  parts.context_tokens_max = context_tokens_max;
  parts.prefix_cache = prefix_cache;
  parts.eos = std::move(eos);
  parts.clock = &clock;
  parts.sparse_ops = sparse_ops;
  parts.residency = std::move(residency);
  parts.plans = shape.plans;
  parts.prefill_grain_tokens = &FakeRunner::Shape::GrainTokens;
  auto engine = Engine::Create(config, std::move(parts));
  LACUNA_CHECK(engine.ok());
  out.engine = std::move(*engine);
  return out;
}

inline Request MakeRequest(std::vector<TokenId> prompt, int32_t max_tokens, uint64_t scope = 1) {
  Request request;
  request.scope = CacheScope{scope};
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0.0;
  request.sampling.max_tokens = max_tokens;
  return request;
}

// What one stream has said so far.
struct Heard {
  std::vector<TokenId> tokens;
  std::vector<TokenLogprob> prompt_logprobs;
  int terminals = 0, after_terminal = 0;
  std::optional<FinishedEvent> finished;
  std::optional<FailedEvent> failed;

  void Add(Event event) {
    after_terminal += terminals > 0;
    terminals += IsTerminal(event);
    if (auto* token = std::get_if<TokenEvent>(&event)) tokens.push_back(token->token);
    if (auto* prompt = std::get_if<PromptLogprobsEvent>(&event)) prompt_logprobs = prompt->tokens;
    if (auto* finish = std::get_if<FinishedEvent>(&event)) finished = *finish;
    if (auto* fail = std::get_if<FailedEvent>(&event)) failed = *fail;
  }
  void Drain(RequestStream& stream) {
    while (auto event = stream.Poll()) Add(std::move(*event));
  }
};

// The tokens that follow `prompt`, without an engine.
inline std::vector<TokenId> Reference(const FakeRunner::Shape& shape, std::vector<TokenId> prompt,
                                      int64_t count) {
  std::vector<TokenId> out;
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(FakeRunner::Next(shape, prompt));
    prompt.push_back(out.back());
  }
  return out;
}

}  // namespace lacuna::engine
