// A gRPC server in this process over an engine whose model is a hash (tests/engine/fake_runner.h),
// and a client stub on it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/lacuna/v1/lacuna.grpc.pb.h"
#include "server/api/api_context.h"
#include "server/grpc/grpc_server.h"
#include "tests/engine/engine_fixture.h"

namespace lacuna::server {

// Letters, the space and two special tokens.
inline std::string LetterTokenizer() {
  std::string vocab;
  for (int i = 0; i < 26; ++i) {
    vocab += std::string(1, '"') + static_cast<char>('a' + i) + "\":" + std::to_string(i) + ",";
  }
  return R"({"added_tokens":[
      {"id":27,"content":"<end>","special":true,"single_word":false,"lstrip":false,
       "rstrip":false,"normalized":false}],
    "normalizer":null,"post_processor":null,
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,
                     "use_regex":true},
    "decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
    "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
             "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
             "vocab":{)" +
         vocab + R"("Ġ":26,"<end>":27},"merges":[]}})";
}

inline constexpr char kLetterTemplate[] =
    "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}a{% endif %}";

class GrpcFixture : public testing::Test {
 protected:
  void SetUp() override { Start(GrpcOptions{}); }
  void TearDown() override {
    grpc_.reset();
    if (engine_.engine != nullptr) engine_.engine->Stop();
  }

  // The hash answers in microseconds: with the usual queue any reader would be too slow for it.
  static engine::EngineConfig FastConfig() {
    engine::EngineConfig config;
    config.events_max = 1 << 20;
    return config;
  }

  // Also to be called anew with other options.
  void Start(GrpcOptions options, ApiLimits limits = {}, AdmitOptions admit = {},
             engine::EngineConfig config = FastConfig()) {
    TearDown();
    shape_.groups = {engine::FullGroup()};
    shape_.group_pages = {1 << 16};
    shape_.vocab_size = 27;
    engine_ = engine::MakeTestEngine(shape_, config, clock_);
    engine_.engine->Start();
    auto tokenizer = Tokenizer::FromJson(LetterTokenizer());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    tokenizer_ = std::move(*tokenizer);
    auto chat = ChatTemplate::Parse(kLetterTemplate);
    ASSERT_TRUE(chat.ok()) << chat.status().message();
    template_ = std::move(*chat);
    auto admitted = Admit::Create(admit, clock_);
    ASSERT_TRUE(admitted.ok()) << admitted.status().message();
    admit_ = std::move(*admitted);
    workers_ = std::make_unique<TextWorkers>(1, limits.text_queue_len_max);
    metrics_ = std::make_unique<Metrics>("letters", [] { return EngineReading{}; });
    api_.reset(new ApiContext{.engine = *engine_.engine,
                              .tokenizer = *tokenizer_,
                              .chat_template = template_.get(),
                              .admit = *admit_,
                              .metrics = *metrics_,
                              .text_workers = *workers_,
                              .limits = limits,
                              .model_name = "letters",
                              .aliases = {"abc"},
                              .bos_token = "",
                              .eos_token = "<end>",
                              .vocab_size = shape_.vocab_size,
                              .created_s = 1,
                              .system_fingerprint = "test",
                              .version = "0.0.0"});
    options.port = 0;
    auto server = GrpcServer::Start(options, *api_);
    ASSERT_TRUE(server.ok()) << server.status().message();
    grpc_ = std::move(*server);
    // A client that takes no more ahead than the protocol's first window.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 65535);
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(grpc_->port()),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Inference::NewStub(channel_);
  }

  struct Heard final {
    std::string text;
    std::vector<TokenId> tokens;
    std::vector<v1::TokenLogprob> logprobs;
    std::optional<v1::Finished> finished;
    int after_finish = 0;
  };
  // Reads a whole stream; one entry per choice.
  grpc::Status Generate(const v1::GenerateRequest& request, std::vector<Heard>& choices,
                        grpc::ClientContext& context) {
    auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      const bool chunk = response.has_chunk();
      const int index = chunk ? response.chunk().index() : response.finished().index();
      if (static_cast<size_t>(index) >= choices.size()) choices.resize(index + 1);
      Heard& heard = choices[index];
      heard.after_finish += heard.finished.has_value();
      if (!chunk) {
        heard.finished = response.finished();
        continue;
      }
      heard.text += response.chunk().text();
      for (const int32_t id : response.chunk().token_ids()) heard.tokens.push_back(id);
      for (const auto& one : response.chunk().logprobs()) heard.logprobs.push_back(one);
    }
    return reader->Finish();
  }
  grpc::Status Generate(const v1::GenerateRequest& request, std::vector<Heard>& choices) {
    grpc::ClientContext context;
    return Generate(request, choices, context);
  }

  int64_t UsedPages() const { return engine_.engine->page_counts().front().used; }
  const engine::EngineStats& stats() const { return engine_.engine->stats(); }
  // Waits for what the engine does on its own thread; a generous bound, never a fixed sleep.
  template <typename Condition>
  static bool Eventually(Condition condition) {
    const TimePoint until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  SteadyClock clock_;
  engine::FakeRunner::Shape shape_;
  engine::TestEngine engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
  std::unique_ptr<Admit> admit_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<TextWorkers> workers_;
  std::unique_ptr<ApiContext> api_;
  std::unique_ptr<GrpcServer> grpc_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace lacuna::server
