#include "server/commands/bench_engine.h"

#include <unistd.h>

#include <algorithm>
#include <iomanip>
#include <utility>
#include <vector>

#include "engine/assemble.h"
#include "server/commands/bench_sparse.h"

namespace lacuna::server {
namespace {

constexpr useconds_t kPollMicroseconds = 100;

// What the streams and the engine's counters say at one moment.
struct Moment final {
  TimePoint time;
  int64_t tokens = 0;
  uint64_t steps = 0;
  double gap_seconds = 0.0;
};

class EngineBench final {
 public:
  EngineBench(const BenchOfflineOptions& options, std::ostream& out)
      : options_(options), out_(out) {}

  Status Run() {
    LACUNA_RETURN_IF_ERROR(Load());
    for (const bool sparse : {false, true}) {
      if (sparse ? plan_ == nullptr : plan_ != nullptr && !options_.compare_dense) continue;
      const int64_t warm = std::min<int64_t>(options_.depth, 64);
      LACUNA_RETURN_IF_ERROR(Submit(sparse, /*seed=*/1, warm, 4));
      LACUNA_RETURN_IF_ERROR(Listen());
      LACUNA_RETURN_IF_ERROR(Submit(sparse, /*seed=*/2, options_.depth, options_.generate));
      LACUNA_RETURN_IF_ERROR(Listen());
      Print(sparse);
    }
    return OkStatus();
  }

 private:
  Status Load() {
    if (options_.sparse_profile.empty() && (options_.compare_dense || !options_.dials.empty())) {
      return InvalidArgument("--compare-dense and --set: need --sparse-profile");
    }
    if (options_.compare_dense && options_.drop_streaming) {
      return InvalidArgument("--compare-dense: got --drop-streaming too, need one of them");
    }
    if (options_.depth < 1 || options_.generate < 2) {
      return InvalidArgument("--engine: need --depth of 1 and --generate of 2 at least");
    }
    LACUNA_ASSIGN_OR_RETURN(auto backend, MakeBackendFor(options_.device));
    engine::AssemblyOptions assembly;
    assembly.engine.step_tokens_max = std::max(options_.step_tokens, options_.sequences);
    assembly.engine.running_max = options_.sequences;
    assembly.engine.queue_len_max = options_.sequences;
    assembly.engine.queue_tokens_max = options_.sequences * options_.depth;
    assembly.engine.context_tokens_max = options_.depth + options_.generate;
    assembly.engine.events_max = options_.generate + 2;
    assembly.engine.cuda_graphs = options_.graphs;
    assembly.kv.prefix_cache = false;
    const int64_t context_tokens = assembly.engine.context_tokens_max;
    LACUNA_ASSIGN_OR_RETURN(const engine::ModelConfig config,
                            BenchModelConfig(options_, context_tokens));
    LACUNA_ASSIGN_OR_RETURN(const BenchPlan made,
                            MakeBenchPlan(options_, config, assembly.kv.page_tokens));
    plan_ = made.plan;
    if (plan_ != nullptr) assembly.plans = {plan_};
    LACUNA_ASSIGN_OR_RETURN(const auto* const residency, ResidencyOf(options_, plan_.get()));
    if (residency != nullptr) assembly.residency = plan_;
    const auto load = [&](kernels::Backend& target) {
      return LoadBenchModel(options_, config, target, context_tokens, residency);
    };
    LACUNA_ASSIGN_OR_RETURN(assembly_,
                            engine::Assemble(std::move(backend), load, assembly, clock_));
    assembly_.engine->Start();
    return OkStatus();
  }

  Status Submit(bool sparse, uint64_t seed, int64_t prompt_tokens, int64_t generate) {
    streams_.clear();
    const int64_t vocab = assembly_.model->info().vocab_size;
    uint64_t state = seed * 2 + 1;
    for (int64_t s = 0; s < options_.sequences; ++s) {
      engine::Request request;
      for (int64_t i = 0; i < prompt_tokens; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        request.prompt.push_back(
            static_cast<TokenId>((state >> 33) % static_cast<uint64_t>(vocab)));
      }
      request.sampling.temperature = 0.0;
      request.sampling.ignore_eos = true;
      request.sampling.max_tokens = static_cast<int32_t>(generate);
      if (sparse) request.sparse.plan = plan_;
      LACUNA_ASSIGN_OR_RETURN(auto stream, assembly_.engine->Submit(std::move(request)));
      streams_.push_back(std::move(stream));
    }
    return OkStatus();
  }

  Moment Look(int64_t tokens) const {
    const engine::EngineStats& stats = assembly_.engine->stats();
    return {clock_.Now(), tokens, stats.steps.load(), stats.gap_seconds.sum_seconds()};
  }

  // Reads all streams to their end; notes when all had begun and when the first one ended.
  Status Listen() {
    timings_.assign(streams_.size(), {});
    std::vector<int64_t> tokens(streams_.size(), 0);
    int64_t total = 0;
    size_t begun = 0, ended = 0;
    while (ended < streams_.size()) {
      for (size_t s = 0; s < streams_.size(); ++s) {
        while (const auto event = streams_[s].Poll()) {
          if (std::holds_alternative<engine::TokenEvent>(*event)) {
            ++total;
            if (tokens[s]++ == 0 && ++begun == streams_.size()) all_begun_ = Look(total);
          } else if (const auto* failed = std::get_if<engine::FailedEvent>(&*event)) {
            return failed->status;
          } else if (const auto* finished = std::get_if<engine::FinishedEvent>(&*event)) {
            timings_[s] = finished->timing;
            if (ended++ == 0) first_ended_ = Look(total);
          }
        }
      }
      usleep(kPollMicroseconds);
    }
    return OkStatus();
  }

  void Print(bool sparse) const {
    double first = 0.0, last = 0.0;
    TimePoint submitted = timings_.front().submitted, finished = timings_.front().finished;
    for (const engine::Timing& timing : timings_) {
      const double seconds = Seconds(timing.first_token - timing.submitted);
      first = first == 0.0 ? seconds : std::min(first, seconds);
      last = std::max(last, seconds);
      submitted = std::min(submitted, timing.submitted);
      finished = std::max(finished, timing.finished);
    }
    const engine::EngineStats& stats = assembly_.engine->stats();
    out_ << std::fixed << std::setprecision(3) << "engine   " << options_.sequences
         << " sequences of " << options_.depth << " + " << options_.generate << " tokens, backend "
         << assembly_.backend->name() << ", steps of " << options_.step_tokens << ", "
         << (sparse ? options_.sparse_profile : "dense") << "\n"
         << "first token after " << first << " s (the last sequence's after " << last << " s)\n";
    const double seconds = Seconds(first_ended_.time - all_begun_.time);
    const auto steps = static_cast<double>(first_ended_.steps - all_begun_.steps);
    if (seconds <= 0.0 || steps < 1.0) {
      out_ << "decode   no time in which all decoded: generate more\n";
    } else {
      out_ << "decode   " << static_cast<double>(first_ended_.tokens - all_begun_.tokens) / seconds
           << " tokens/s while all decode, " << seconds / steps * 1e3 << " ms a step, device idle "
           << (first_ended_.gap_seconds - all_begun_.gap_seconds) / seconds * 100.0
           << " % at most\n";
    }
    const double whole = Seconds(finished - submitted);
    const auto generated = static_cast<double>(options_.sequences * options_.generate);
    out_ << "whole    " << whole << " s, " << generated / whole
         << " new tokens/s with the prompts' time\n"
         << "steps    " << stats.graph_steps.load() << " as graphs, " << stats.eager_steps.load()
         << " eager\n";
  }

  const BenchOfflineOptions& options_;
  std::ostream& out_;
  SteadyClock clock_;
  std::shared_ptr<const kvcache::SparsePlan> plan_;  // null: dense alone
  engine::Assembly assembly_;
  std::vector<engine::RequestStream> streams_;
  std::vector<engine::Timing> timings_;
  Moment all_begun_, first_ended_;
};

}  // namespace

Status RunEngineBench(const BenchOfflineOptions& options, std::ostream& out) {
  return EngineBench(options, out).Run();
}

}  // namespace lacuna::server
