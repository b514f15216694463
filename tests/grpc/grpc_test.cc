// lacuna.v1 through the C++ client: results against the model's hash, every error class, deadlines,
// cancellation, slow readers, health, reflection and drain.
#include <grpcpp/generic/generic_stub.h>

#include <fstream>
#include <future>
#include <limits>
#include <thread>

#include "server/grpc/transcode.h"
#include "tests/grpc/grpc_fixture.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::server {
namespace {

v1::GenerateRequest TextRequest(const std::string& text, int max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

TEST_F(GrpcFixture, TextPromptGivesTheModelsTokens) {
  std::vector<Heard> heard;
  const grpc::Status status = Generate(TextRequest("hello world", 20), heard);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(heard.size(), 1u);
  const std::vector<TokenId> prompt = *tokenizer_->Encode("hello world");
  EXPECT_EQ(heard[0].tokens, engine::Reference(shape_, prompt, 20));
  EXPECT_EQ(heard[0].text, tokenizer_->Decode(heard[0].tokens, true));
  ASSERT_TRUE(heard[0].finished);
  EXPECT_EQ(heard[0].finished->finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(heard[0].finished->usage().prompt_tokens(), 11);
  EXPECT_EQ(heard[0].finished->usage().completion_tokens(), 20);
  EXPECT_EQ(heard[0].after_finish, 0);
}

TEST_F(GrpcFixture, TokensAndChatGiveTheSameAsTheirText) {
  std::vector<Heard> from_text, from_tokens, from_chat;
  ASSERT_TRUE(Generate(TextRequest("hi a", 8), from_text).ok());
  v1::GenerateRequest request = TextRequest("", 8);
  const std::vector<TokenId> ids = *tokenizer_->Encode("hi a");
  request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
  grpc::Status status = Generate(request, from_tokens);
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::ChatMessage& message = *request.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("hi");
  status = Generate(request, from_chat);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(from_tokens[0].tokens, from_text[0].tokens);
  EXPECT_EQ(from_chat[0].tokens, from_text[0].tokens);
}

TEST_F(GrpcFixture, SparseFieldsMeanWhatTheyMeanOverHttp) {
  const kvcache::ProfileSet set = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  SparseService::Model model;
  model.shape = kvcache::Recall12m();
  model.has_sparse_ops = true;
  const std::unique_ptr<SparseService> sparse = std::move(*SparseService::Create({}, set, model));
  api_->sparse = sparse.get();
  const auto granted = [&](const v1::GenerateRequest& request) {
    return ReadGenerate(*api_, request, CacheScope{1});
  };
  v1::GenerateRequest request = TextRequest("abc", 2);
  EXPECT_EQ(granted(request)->sparse.plan, nullptr);
  request.mutable_sparse();  // unset means the default
  EXPECT_EQ(granted(request)->sparse.plan, nullptr);
  request.mutable_sparse()->set_profile("quest");
  (*request.mutable_sparse()->mutable_dials())["budget_tokens"] = 512;
  request.mutable_sparse()->set_audit_fraction(0.5);
  request.mutable_sparse()->set_mass_floor(0.25);
  request.mutable_sparse()->set_usage(true);
  auto input = granted(request);
  ASSERT_TRUE(input.ok()) << input.error().message;
  ASSERT_NE(input->sparse.plan, nullptr);
  EXPECT_EQ(input->sparse.plan->decode_dials.budget_tokens, 512);
  EXPECT_EQ(input->sparse.audit_fraction, 0.5);
  EXPECT_EQ(input->sparse.mass_floor, 0.25);
  EXPECT_EQ(input->sparse_usage_of, "quest");

  std::vector<Heard> heard;
  const auto refused = [&](const auto& change) {
    v1::GenerateRequest bad = TextRequest("abc", 2);
    change(*bad.mutable_sparse());
    const grpc::Status status = Generate(bad, heard);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  using Sparse = v1::Sparse;
  EXPECT_TRUE(refused([](Sparse& s) {
                s.set_profile("qest");
              }).starts_with("sparse.profile: 'sparse.profile': got \"qest\", need quest"));
  EXPECT_TRUE(refused([](Sparse& s) { s.set_profile(""); }).starts_with("sparse.profile: "));
  EXPECT_TRUE(refused([](Sparse& s) {
                (*s.mutable_dials())["budget"] = 1;
              }).starts_with("sparse.budget: Unknown parameter"));
  EXPECT_TRUE(refused([](Sparse& s) {
                s.set_profile("quest");
                (*s.mutable_dials())["budget_tokens"] = std::numeric_limits<double>::quiet_NaN();
              }).starts_with("sparse.budget_tokens: "));
  EXPECT_TRUE(refused([](Sparse& s) {
                (*s.mutable_dials())["audit_fraction"] = 0.5;
              }).starts_with("sparse.dials: "));
  EXPECT_TRUE(refused([](Sparse& s) {
                s.set_mode(static_cast<v1::SparseMode>(7));
              }).starts_with("sparse.mode: "));
  EXPECT_TRUE(
      refused([](Sparse& s) { s.set_audit_fraction(2); }).starts_with("sparse.audit_fraction: "));
  EXPECT_TRUE(refused([](Sparse& s) {
                s.set_mode(v1::SPARSE_MODE_DENSE);
                s.set_profile("quest");
              }).starts_with("sparse.mode: "));
  EXPECT_TRUE(heard.empty());

  request = TextRequest("abc", 2);
  ASSERT_TRUE(Generate(request, heard).ok());
  EXPECT_FALSE(heard[0].finished->usage().has_sparse());
  request.mutable_sparse()->set_mode(v1::SPARSE_MODE_DENSE);
  request.mutable_sparse()->set_usage(true);
  heard.clear();
  ASSERT_TRUE(Generate(request, heard).ok());
  EXPECT_EQ(heard[0].finished->usage().sparse().profile(), "dense");
}

TEST(GrpcTranscode, SparseUsage) {
  Outcome outcome;
  outcome.finish_reason = "stop";
  outcome.usage.sparse.sparse_steps = 5;
  outcome.usage.sparse.pages_considered = 100;
  outcome.usage.sparse.pages_selected = 10;
  EXPECT_FALSE(MakeFinished(0, outcome).usage().has_sparse());
  outcome.sparse_usage_of = "quest";
  v1::SparseUsage usage = MakeFinished(0, outcome).usage().sparse();
  EXPECT_EQ(usage.profile(), "quest");
  EXPECT_EQ(usage.sparse_steps(), 5);
  EXPECT_EQ(usage.pages_selected(), 10);
  EXPECT_FALSE(usage.has_estimated_mass());
  EXPECT_EQ(usage.captured_mass_size(), 0);
  outcome.usage.sparse.audited_steps = 2;
  outcome.usage.sparse.captured_mass[1] = 0.75;
  usage = MakeFinished(0, outcome).usage().sparse();
  ASSERT_EQ(usage.captured_mass_size(), 3);
  EXPECT_EQ(usage.captured_mass(1), 0.75);
  EXPECT_EQ(usage.output_error_size(), 3);
}

TEST_F(GrpcFixture, UnsetNumbersMeanDefaultsAndZeroMeansZero) {
  v1::GenerateRequest request;
  request.set_text("abc");
  std::vector<Heard> heard;
  ASSERT_TRUE(Generate(request, heard).ok());
  EXPECT_EQ(heard[0].tokens.size(), 16u);  // OpenAI's default
  request.set_max_tokens(0);
  const grpc::Status zero = Generate(request, heard);
  EXPECT_EQ(zero.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(zero.error_message().starts_with("max_tokens: ")) << zero.error_message();
}

TEST_F(GrpcFixture, ChoicesLogprobsAndStops) {
  v1::GenerateRequest request = TextRequest("abc", 12);
  request.set_n(3);
  request.set_logprobs(2);
  std::vector<Heard> heard;
  const grpc::Status status = Generate(request, heard);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(heard.size(), 3u);
  for (const Heard& one : heard) {
    EXPECT_EQ(one.tokens, heard[0].tokens);
    ASSERT_EQ(one.logprobs.size(), 12u);
    EXPECT_EQ(one.logprobs[0].top_size(), 2);
    EXPECT_EQ(one.logprobs[0].token_id(), one.tokens[0]);
    EXPECT_EQ(one.logprobs[0].token(), tokenizer_->TokenBytes(one.tokens[0]));
    EXPECT_TRUE(one.finished);
  }
  // The third and fourth letters of the answer, as a stop string.
  const std::string stop =
      tokenizer_->Decode(std::vector<TokenId>{heard[0].tokens[2], heard[0].tokens[3]}, true);
  request = TextRequest("abc", 12);
  request.add_stop(stop);
  std::vector<Heard> stopped;
  ASSERT_TRUE(Generate(request, stopped).ok());
  EXPECT_EQ(stopped[0].text, heard[0].text.substr(0, heard[0].text.find(stop)));
  EXPECT_EQ(stopped[0].finished->finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped[0].finished->stop_string(), stop);
}

TEST_F(GrpcFixture, EveryBadFieldIsNamed) {
  using Change = void (*)(v1::GenerateRequest&);
  const std::vector<std::pair<std::string, Change>> cases = {
      {"temperature", [](auto& r) { r.mutable_sampling()->set_temperature(2.1); }},
      {"temperature",
       [](auto& r) {
         r.mutable_sampling()->set_temperature(std::numeric_limits<double>::quiet_NaN());
       }},
      {"top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"top_k", [](auto& r) { r.mutable_sampling()->set_top_k(-2); }},
      {"min_p", [](auto& r) { r.mutable_sampling()->set_min_p(1.5); }},
      {"repetition_penalty", [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
      {"presence_penalty", [](auto& r) { r.mutable_sampling()->set_presence_penalty(3); }},
      {"frequency_penalty", [](auto& r) { r.mutable_sampling()->set_frequency_penalty(-3); }},
      {"logit_bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[27] = 1; }},
      {"logit_bias", [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[1] = 101; }},
      {"max_tokens", [](auto& r) { r.set_max_tokens(-1); }},
      {"min_tokens", [](auto& r) { r.set_min_tokens(9); }},
      {"n", [](auto& r) { r.set_n(9); }},
      {"n", [](auto& r) { r.set_n(0); }},
      {"logprobs", [](auto& r) { r.set_logprobs(21); }},
      {"priority", [](auto& r) { r.set_priority(101); }},
      {"stop[0]", [](auto& r) { r.add_stop(""); }},
      {"stop[0]", [](auto& r) { r.add_stop(std::string(257, 'a')); }},
      {"stop",
       [](auto& r) {
         for (int i = 0; i < 17; ++i) r.add_stop("a");
       }},
      {"stop_token_ids[0]", [](auto& r) { r.add_stop_token_ids(27); }},
      {"cache_salt", [](auto& r) { r.set_cache_salt(std::string(257, 's')); }},
      {"text", [](auto& r) { r.set_text(""); }},
      {"text", [](auto& r) { r.set_text("0123"); }},
      {"tokens", [](auto& r) { r.mutable_tokens(); }},
      {"tokens", [](auto& r) { r.mutable_tokens()->add_ids(-1); }},
      {"tokens", [](auto& r) { r.mutable_tokens()->add_ids(27); }},
      {"prompt", [](auto& r) { r.clear_prompt(); }},
      {"chat.messages", [](auto& r) { r.mutable_chat(); }},
      {"chat.messages[0].role", [](auto& r) { r.mutable_chat()->add_messages()->set_role("x"); }},
  };
  for (const auto& [name, change] : cases) {
    v1::GenerateRequest request = TextRequest("abc", 4);
    change(request);
    std::vector<Heard> heard;
    grpc::ClientContext context;
    const grpc::Status status = Generate(request, heard, context);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << name;
    EXPECT_TRUE(status.error_message().starts_with(name + ": ")) << status.error_message();
    const auto trailer = context.GetServerTrailingMetadata().find("lacuna-param");
    ASSERT_NE(trailer, context.GetServerTrailingMetadata().end()) << name;
    EXPECT_EQ(std::string(trailer->second.data(), trailer->second.size()), name);
  }
  EXPECT_EQ(stats().submitted.load(), 0u);
}

TEST_F(GrpcFixture, ModelsByNameAndAlias) {
  v1::GenerateRequest request = TextRequest("abc", 2);
  std::vector<Heard> heard;
  request.set_model("abc");
  EXPECT_TRUE(Generate(request, heard).ok());
  request.set_model("nobody");
  EXPECT_EQ(Generate(request, heard).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::GetModelResponse model;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.name(), "letters");
  EXPECT_EQ(model.vocab_size(), 27);
  EXPECT_EQ(model.context_tokens_max(), engine_.engine->context_tokens_max());
  EXPECT_TRUE(model.has_chat_template());
}

TEST_F(GrpcFixture, TokenizeAndBack) {
  v1::TokenizeRequest request;
  request.set_text("hello world");
  v1::TokenizeResponse ids;
  grpc::ClientContext first, second, third;
  ASSERT_TRUE(stub_->Tokenize(&first, request, &ids).ok());
  EXPECT_EQ(ids.ids_size(), 11);
  v1::DetokenizeRequest back;
  *back.mutable_ids() = ids.ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&second, back, &text).ok());
  EXPECT_EQ(text.text(), "hello world");
  back.add_ids(28);
  const grpc::Status status = stub_->Detokenize(&third, back, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(status.error_message().starts_with("ids[11]: ")) << status.error_message();
}

TEST_F(GrpcFixture, CancelFreesThePages) {
  auto context = std::make_unique<grpc::ClientContext>();
  auto reader = stub_->Generate(context.get(), TextRequest("abc", 200'000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(Eventually([&] { return UsedPages() > 0; }));
  context->TryCancel();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return stats().cancelled.load() == 1; }));
  EXPECT_TRUE(Eventually([&] { return UsedPages() == 0; }));
}

TEST_F(GrpcFixture, DeadlineEndsTheRequest) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  std::vector<Heard> heard;
  const grpc::Status status = Generate(TextRequest("abc", 500'000), heard, context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return UsedPages() == 0; }));
  EXPECT_TRUE(Eventually([&] { return stats().cancelled.load() + stats().failed.load() == 1; }));
}

TEST_F(GrpcFixture, SlowReaderLosesItsOwnRequestOnly) {
  engine::EngineConfig config;
  config.events_max = 4096;
  Start(GrpcOptions{}, {}, {}, config);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("abc", 500'000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  // Not reading: the window fills, then the engine's queue of events, and the request fails.
  EXPECT_TRUE(Eventually([&] { return stats().failed.load() == 1; }))
      << stats().generated_tokens.load() << " tokens, " << stats().cancelled.load();
  EXPECT_TRUE(Eventually([&] { return UsedPages() == 0; }));
  std::vector<Heard> heard;
  EXPECT_TRUE(Generate(TextRequest("xyz", 50), heard).ok());
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(GrpcFixture, CallsAreBounded) {
  GrpcOptions options;
  options.calls_max = 1;
  Start(options);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("abc", 200'000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  std::vector<Heard> heard;
  grpc::ClientContext refused;
  EXPECT_EQ(Generate(TextRequest("abc", 1), heard, refused).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.GetServerTrailingMetadata().count("retry-after"), 1u);
  context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return Generate(TextRequest("abc", 1), heard).ok(); }));
}

TEST_F(GrpcFixture, TooLargeMessage) {
  GrpcOptions options;
  options.message_bytes_max = 1000;
  Start(options);
  std::vector<Heard> heard;
  EXPECT_TRUE(Generate(TextRequest(std::string(800, 'a'), 1), heard).ok());
  EXPECT_EQ(Generate(TextRequest(std::string(1001, 'a'), 1), heard).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcFixture, Keys) {
  AdmitOptions admit;
  admit.api_keys_file = testing::TempDir() + "lacuna_grpc_keys";
  std::ofstream(admit.api_keys_file) << "0123456789abcdef-key\n";
  Start(GrpcOptions{}, {}, admit);
  std::vector<Heard> heard;
  const std::vector<std::vector<std::string>> refused = {
      {},
      {"Bearer wrong"},
      {"0123456789abcdef-key"},
      {"Bearer 0123456789abcdef-key", "Bearer 0123456789abcdef-key"}};
  for (const std::vector<std::string>& values : refused) {
    grpc::ClientContext context;
    for (const std::string& value : values) context.AddMetadata("authorization", value);
    EXPECT_EQ(Generate(TextRequest("abc", 1), heard, context).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer 0123456789abcdef-key");
  EXPECT_TRUE(Generate(TextRequest("abc", 1), heard, context).ok());
  grpc::ClientContext unary;
  v1::GetModelResponse model;
  EXPECT_EQ(stub_->GetModel(&unary, {}, &model).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  std::remove(admit.api_keys_file.c_str());
}

// A generic call, so that the test needs no generated code of health and reflection. `request` and
// the answer are wire bytes.
grpc::Status RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& request, std::string& answer) {
  grpc::Slice slice(request);
  const grpc::ByteBuffer in(&slice, 1);
  grpc::ByteBuffer out;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  grpc::GenericStub stub(channel);
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &in, &out,
                 [&](grpc::Status result) { done.set_value(std::move(result)); });
  grpc::Status status = done.get_future().get();
  std::vector<grpc::Slice> slices;
  answer.clear();
  if (status.ok() && out.Dump(&slices).ok()) {
    for (const grpc::Slice& one : slices) {
      answer.append(reinterpret_cast<const char*>(one.begin()), one.size());
    }
  }
  return status;
}

std::string HealthRequest(const std::string& service) {
  std::string bytes;
  if (service.empty()) return bytes;
  bytes.push_back('\x0a');
  bytes.push_back(static_cast<char>(service.size()));
  return bytes.append(service);
}

TEST_F(GrpcFixture, HealthTurnsBeforeTheListenerCloses) {
  const std::string check = "/grpc.health.v1.Health/Check";
  std::string answer;
  for (const char* service : {"", "lacuna.v1.Inference", "readiness", "liveness"}) {
    ASSERT_TRUE(RawCall(channel_, check, HealthRequest(service), answer).ok()) << service;
    EXPECT_EQ(answer, "\x08\x01") << service;  // SERVING
  }
  EXPECT_EQ(RawCall(channel_, check, HealthRequest("nobody"), answer).error_code(),
            grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("abc", 20'000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  grpc_->BeginDrain();
  ASSERT_TRUE(RawCall(channel_, check, "", answer).ok());
  EXPECT_EQ(answer, "\x08\x02");  // NOT_SERVING
  ASSERT_TRUE(RawCall(channel_, check, HealthRequest("liveness"), answer).ok());
  EXPECT_EQ(answer, "\x08\x01");
  std::vector<Heard> heard;
  EXPECT_EQ(Generate(TextRequest("abc", 1), heard).error_code(), grpc::StatusCode::UNAVAILABLE);
  // What was running goes on to its end.
  bool finished = false;
  while (reader->Read(&response)) finished = finished || response.has_finished();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(finished);
}

TEST_F(GrpcFixture, ShutdownCutsWhatRuns) {
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("abc", 900'000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  std::thread client([&] {
    while (reader->Read(&response)) {
    }
    EXPECT_FALSE(reader->Finish().ok());
  });
  grpc_->Shutdown(std::chrono::steady_clock::now() + std::chrono::milliseconds(50));
  client.join();
  EXPECT_TRUE(Eventually([&] { return UsedPages() == 0; }));
}

TEST_F(GrpcFixture, ReflectionCanBeTurnedOff) {
  // An unknown method is UNIMPLEMENTED; a stream called as unary is anything else.
  const std::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  const std::string list_services("\x3a\x00", 2);
  std::string answer;
  EXPECT_NE(RawCall(channel_, method, list_services, answer).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  GrpcOptions options;
  options.reflection = false;
  Start(options);
  EXPECT_EQ(RawCall(channel_, method, list_services, answer).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(GrpcFixture, ManyAtOnce) {
  constexpr int kThreads = 8, kCalls = 20;
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kCalls; ++i) {
        const std::string text(1 + (t * kCalls + i) % 40, static_cast<char>('a' + t));
        if (i % 5 == 4) {  // every fifth client goes away
          grpc::ClientContext context;
          auto reader = stub_->Generate(&context, TextRequest(text, 100'000));
          v1::GenerateResponse response;
          reader->Read(&response);
          context.TryCancel();
          reader->Finish();
          continue;
        }
        std::vector<Heard> heard;
        const bool ok = Generate(TextRequest(text, 30), heard).ok();
        wrong += !ok || heard[0].tokens != engine::Reference(shape_, *tokenizer_->Encode(text), 30);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_TRUE(Eventually([&] { return UsedPages() == 0; }));
}

}  // namespace
}  // namespace lacuna::server
