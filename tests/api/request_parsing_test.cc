// Request bodies as structs: every bound at its limit, one past it, and absurdly far.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "server/api/chat_request.h"
#include "server/api/completion_request.h"
#include "server/api/json_parse.h"

namespace lacuna::server {
namespace {

using nlohmann::json;

constexpr ModelBounds kBounds{.vocab_size = 1000, .context_tokens_max = 4096};

json Chat() { return {{"model", "m"}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}}; }
json Completion() { return {{"model", "m"}, {"prompt", "hi"}}; }

// "ok", or "code param".
template <typename T>
std::string Verdict(const ApiResult<T>& result) {
  if (result.ok()) return "ok";
  const ApiError& error = result.error();
  EXPECT_FALSE(error.message.empty());
  return std::string(error.row().code) + " " + error.param.value_or("null");
}
std::string ChatWith(const std::string& name, const json& value, ApiLimits limits = {}) {
  json body = Chat();
  body[name] = value;
  return Verdict(ParseChatRequest(body, limits, kBounds));
}
std::string CompletionWith(const std::string& name, const json& value) {
  json body = Completion();
  body[name] = value;
  return Verdict(ParseCompletionRequest(body, {}, kBounds));
}
std::string ChatMessages(const json& messages) { return ChatWith("messages", messages); }

json Repeat(const json& value, size_t count) { return json(std::vector<json>(count, value)); }

TEST(JsonParse, Bounds) {
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(static_cast<size_t>(depth - 1), '[') +
           std::string(static_cast<size_t>(depth - 1), ']') + "}";
  };
  EXPECT_TRUE(ParseJsonObject(nested(32), {}).ok());
  EXPECT_FALSE(ParseJsonObject(nested(33), {}).ok());
  EXPECT_FALSE(ParseJsonObject(nested(1'000'000), {}).ok());
  EXPECT_FALSE(ParseJsonObject(std::string(1'000'000, '{'), {}).ok());
  const JsonLimits few{.depth_max = 4, .nodes_max = 4};
  EXPECT_TRUE(ParseJsonObject(R"({"a":[1,2]})", few).ok());
  EXPECT_FALSE(ParseJsonObject(R"({"a":[1,2,3]})", few).ok());
}

TEST(JsonParse, RefusesWhatIsNoObject) {
  for (const char* body :
       {"", "{", "[]", "\"x\"", "123", "null", "{} {}", "{\"a\":1e400}", "{\"a\":NaN}",
        "{\"a\":\"\xff\"}", "{\"a\":\"\\ud800\"}", "{'a':1}", "{\"a\":01}", "{\"a\":1,}"}) {
    const auto result = ParseJsonObject(body, {});
    ASSERT_FALSE(result.ok()) << body;
    EXPECT_EQ(result.error().kind, ErrorKind::kBadBody) << body;
  }
  EXPECT_FALSE(ParseJsonObject("{\"a\":" + std::string(1'000'000, '9') + "}", {}).ok());
}

TEST(JsonParse, LastDuplicateWins) {
  auto result = ParseJsonObject(R"({"a":1,"b":[{"c":2}],"a":3})", {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(*result, json::parse(R"({"a":3,"b":[{"c":2}]})"));
}

TEST(ChatRequest, Messages) {
  EXPECT_EQ(Verdict(ParseChatRequest(Chat(), {}, kBounds)), "ok");
  EXPECT_EQ(Verdict(ParseChatRequest({{"model", "m"}}, {}, kBounds)),
            "missing_required_parameter messages");
  json no_model = Chat();
  no_model.erase("model");
  EXPECT_EQ(Verdict(ParseChatRequest(no_model, {}, kBounds)), "missing_required_parameter model");
  EXPECT_EQ(ChatMessages("x"), "invalid_type messages");
  EXPECT_EQ(ChatMessages(json::array()), "invalid_value messages");
  EXPECT_EQ(ChatMessages({123}), "invalid_type messages[0]");
  EXPECT_EQ(ChatMessages(json::array({json::object()})),
            "missing_required_parameter messages[0].role");
  EXPECT_EQ(ChatMessages({{{"role", 123}, {"content", "x"}}}), "invalid_type messages[0].role");
  EXPECT_EQ(ChatMessages({{{"role", "robot"}, {"content", "x"}}}),
            "invalid_value messages[0].role");
  EXPECT_EQ(ChatMessages({{{"role", "user"}, {"content", 123}}}),
            "invalid_type messages[0].content");
  EXPECT_EQ(ChatMessages({{{"role", "tool"}, {"content", "x"}}}),
            "missing_required_parameter messages[0].tool_call_id");
  EXPECT_EQ(ChatMessages(Repeat({{"role", "user"}, {"content", "x"}}, 1024)), "ok");
  EXPECT_EQ(ChatMessages(Repeat({{"role", "user"}, {"content", "x"}}, 1025)),
            "invalid_value messages");
  const json image = {{"type", "image_url"}, {"image_url", {{"url", "http://x"}}}};
  EXPECT_EQ(ChatMessages({{{"role", "user"}, {"content", json::array({image})}}}),
            "unsupported_parameter messages[0].content[0]");
}

TEST(ChatRequest, PartsAndRoles) {
  json body = Chat();
  body["messages"] = json::parse(R"([{"role":"developer","content":"s"},
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
      {"role":"assistant","content":null}])");
  auto parsed = ParseChatRequest(body, {}, kBounds);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->input.messages[0].role, "system");
  EXPECT_EQ(parsed->input.messages[1].content, "a\nb");
  EXPECT_EQ(parsed->input.messages[2].content, "");
}

struct FieldCase final {
  const char* name;
  const char* value;
  const char* verdict;
};

TEST(ChatRequest, Fields) {
  const FieldCase cases[] = {
      {"temperature", "0", "ok"},
      {"temperature", "2", "ok"},
      {"temperature", "-0.1", "invalid_value temperature"},
      {"temperature", "2.1", "invalid_value temperature"},
      {"temperature", "1e300", "invalid_value temperature"},
      {"temperature", "\"hot\"", "invalid_type temperature"},
      {"temperature", "null", "ok"},
      {"top_p", "0", "invalid_value top_p"},
      {"top_p", "1.1", "invalid_value top_p"},
      {"min_p", "1.5", "invalid_value min_p"},
      {"top_k", "-1", "ok"},
      {"top_k", "-2", "invalid_value top_k"},
      {"top_k", "2147483648", "invalid_value top_k"},
      {"presence_penalty", "-2", "ok"},
      {"presence_penalty", "2.5", "invalid_value presence_penalty"},
      {"frequency_penalty", "2.5", "invalid_value frequency_penalty"},
      {"repetition_penalty", "0", "invalid_value repetition_penalty"},
      {"n", "8", "ok"},
      {"n", "9", "invalid_value n"},
      {"n", "0", "invalid_value n"},
      {"n", "2147483648", "invalid_value n"},
      {"n", "1.5", "invalid_value n"},
      {"n", "true", "invalid_type n"},
      {"seed", "-7", "ok"},
      {"seed", "18446744073709551615", "ok"},
      {"seed", "1.5", "invalid_value seed"},
      {"max_tokens", "0", "invalid_value max_tokens"},
      {"max_tokens", "-1", "invalid_value max_tokens"},
      {"max_completion_tokens", "0", "invalid_value max_completion_tokens"},
      {"stop", "\"X\"", "ok"},
      {"stop", "\"\"", "invalid_value stop"},
      {"stop", "[\"a\",\"b\",\"c\",\"d\",\"e\"]", "ok"},
      {"stop", "[1]", "invalid_type stop[0]"},
      {"stop", "7", "invalid_type stop"},
      {"logit_bias", "{\"5\":100}", "ok"},
      {"logit_bias", "{\"1000\":1}", "invalid_value logit_bias"},
      {"logit_bias", "{\"x\":1}", "invalid_value logit_bias"},
      {"logit_bias", "{\"5\":101}", "invalid_value logit_bias"},
      {"logit_bias", "[1]", "invalid_type logit_bias"},
      {"stop_token_ids", "[999]", "ok"},
      {"stop_token_ids", "[1000]", "invalid_value stop_token_ids[0]"},
      {"stop_token_ids", "[-1]", "invalid_value stop_token_ids[0]"},
      {"top_logprobs", "3", "invalid_value top_logprobs"},
      {"top_logprobs", "21", "invalid_value top_logprobs"},
      {"stream_options", "{\"include_usage\":true}", "invalid_value stream_options"},
      {"response_format", "{\"type\":\"text\"}", "ok"},
      {"response_format", "{\"type\":\"json_object\"}", "unsupported_parameter response_format"},
      {"response_format", "{\"type\":\"xml\"}", "invalid_value response_format.type"},
      {"tools", "[]", "ok"},
      {"tools", "[{}]", "unsupported_parameter tools"},
      {"tool_choice", "\"auto\"", "ok"},
      {"tool_choice", "\"required\"", "unsupported_parameter tool_choice"},
      {"guided_regex", "\"a+\"", "unsupported_parameter guided_regex"},
      {"sparse", "{\"profile\":\"quest\"}", "ok"},
      {"sparse", "{\"profile\":\"quest\",\"budget_tokens\":2048,\"usage\":true}", "ok"},
      {"sparse", "{\"mode\":\"dense\"}", "ok"},
      {"sparse", "{\"mode\":\"auto\",\"profile\":null}", "ok"},
      {"sparse", "{}", "ok"},
      {"sparse", "null", "ok"},
      {"sparse", "false", "invalid_type sparse"},
      {"sparse", "\"quest\"", "invalid_type sparse"},
      {"sparse", "[]", "invalid_type sparse"},
      {"sparse", "{\"profile\":7}", "invalid_type sparse.profile"},
      {"sparse", "{\"profile\":\"\"}", "invalid_value sparse.profile"},
      {"sparse", "{\"mode\":\"fast\"}", "invalid_value sparse.mode"},
      {"sparse", "{\"mode\":1}", "invalid_type sparse.mode"},
      {"sparse", "{\"usage\":1}", "invalid_type sparse.usage"},
      {"sparse", "{\"audit_fraction\":1.5}", "invalid_value sparse.audit_fraction"},
      {"sparse", "{\"mass_floor\":-1}", "invalid_value sparse.mass_floor"},
      {"sparse", "{\"mass_floor\":\"x\"}", "invalid_type sparse.mass_floor"},
      {"sparse", "{\"budget_tokens\":\"many\"}", "invalid_type sparse.budget_tokens"},
      {"sparse", "{\"budget_tokens\":[1]}", "invalid_type sparse.budget_tokens"},
      {"sparse", "{\"profle\":\"quest\"}", "invalid_value sparse.profle"},
      {"sparse", "{\"budget\":null}", "invalid_value sparse.budget"},
      {"modalities", "[\"text\"]", "ok"},
      {"modalities", "[\"audio\"]", "unsupported_parameter modalities"},
      {"chat_template_kwargs", "{\"enable_thinking\":false}", "ok"},
      {"chat_template_kwargs", "{\"messages\":1}", "invalid_value chat_template_kwargs"},
      {"deadline_ms", "600001", "invalid_value deadline_ms"},
      {"foo", "1", "ok"},
  };
  for (const FieldCase& c : cases) {
    EXPECT_EQ(ChatWith(c.name, json::parse(c.value)), c.verdict) << c.name << " = " << c.value;
  }
}

TEST(ChatRequest, ListBounds) {
  EXPECT_EQ(ChatWith("stop", Repeat("x", 16)), "ok");
  EXPECT_EQ(ChatWith("stop", Repeat("x", 17)), "invalid_value stop");
  EXPECT_EQ(ChatWith("stop", std::string(256, 'x')), "ok");
  EXPECT_EQ(ChatWith("stop", std::string(257, 'x')), "invalid_value stop");
  const auto bias = [](int count) {
    json object = json::object();
    for (int i = 0; i < count; ++i) object[std::to_string(i)] = 1;
    return object;
  };
  ApiLimits limits;
  limits.logit_bias_max = 100;
  EXPECT_EQ(ChatWith("logit_bias", bias(100), limits), "ok");
  EXPECT_EQ(ChatWith("logit_bias", bias(101), limits), "invalid_value logit_bias");
  limits.strict_fields = true;
  EXPECT_EQ(ChatWith("foo", 1, limits), "invalid_value foo");
  EXPECT_EQ(ChatWith("store", true, limits), "ok");
}

TEST(ChatRequest, MaxCompletionTokensWins) {
  json body = Chat();
  body["max_tokens"] = 50;
  body["max_completion_tokens"] = 3;
  auto parsed = ParseChatRequest(body, {}, kBounds);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->fields.max_tokens, 3);
}

TEST(CompletionRequest, Prompts) {
  EXPECT_EQ(CompletionWith("prompt", json::parse("[\"a\",\"b\"]")), "ok");
  EXPECT_EQ(CompletionWith("prompt", json::parse("[1,2]")), "ok");
  EXPECT_EQ(CompletionWith("prompt", json::parse("[[1],[2,3]]")), "ok");
  EXPECT_EQ(CompletionWith("prompt", ""), "invalid_value prompt");
  EXPECT_EQ(CompletionWith("prompt", json::array()), "invalid_value prompt");
  EXPECT_EQ(CompletionWith("prompt", json::parse("[[]]")), "invalid_value prompt[0]");
  EXPECT_EQ(CompletionWith("prompt", json::parse("[1000]")), "invalid_value prompt");
  EXPECT_EQ(CompletionWith("prompt", json::parse("[-1]")), "invalid_value prompt");
  EXPECT_EQ(CompletionWith("prompt", json::parse("[1,\"a\"]")), "invalid_type prompt");
  EXPECT_EQ(CompletionWith("prompt", 7), "invalid_type prompt");
  EXPECT_EQ(CompletionWith("prompt", Repeat("a", 16)), "ok");
  EXPECT_EQ(CompletionWith("prompt", Repeat("a", 17)), "invalid_value prompt");
}

TEST(CompletionRequest, Fields) {
  EXPECT_EQ(CompletionWith("max_tokens", 0), "invalid_value max_tokens");
  EXPECT_EQ(CompletionWith("logprobs", 20), "ok");
  EXPECT_EQ(CompletionWith("logprobs", 21), "invalid_value logprobs");
  EXPECT_EQ(CompletionWith("suffix", "x"), "unsupported_parameter suffix");
  EXPECT_EQ(CompletionWith("best_of", 1), "ok");
  EXPECT_EQ(CompletionWith("best_of", 3), "unsupported_parameter best_of");
  json body = Completion();
  body["n"] = 3;
  body["best_of"] = 2;
  EXPECT_EQ(Verdict(ParseCompletionRequest(body, {}, kBounds)), "invalid_value best_of");
  body = Completion();
  body["prompt"] = Repeat("a", 5);
  body["n"] = 7;
  EXPECT_EQ(Verdict(ParseCompletionRequest(body, {}, kBounds)), "invalid_value n");
  body = Completion();
  body["echo"] = true;
  body["max_tokens"] = 0;
  EXPECT_EQ(Verdict(ParseCompletionRequest(body, {}, kBounds)), "ok");
}

}  // namespace
}  // namespace lacuna::server
