// `sparse` of a request: fields, headers, refusals as OpenAI errors; and usage.sparse.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/api/sparse_fields.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::server {
namespace {

using nlohmann::json;

std::unique_ptr<SparseService> Service() {
  const kvcache::ProfileSet set = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  SparseService::Model model;
  model.shape = kvcache::Recall12m();
  model.has_sparse_ops = true;
  return std::move(*SparseService::Create({}, set, model));
}

// "profile budget", or "code param: message".
std::string Granted(const SparseService* service, const json& body) {
  FieldReader reader(body, "");
  const SparseFields fields = ReadSparseFields(reader);
  if (!reader.ok()) return *reader.error().param + ": " + reader.error().message;
  auto grant = GrantSparse(service, fields);
  if (!grant.ok()) {
    const ApiError& error = grant.error();
    EXPECT_EQ(error.http_status(), 400);
    EXPECT_EQ(error.message.find('\n'), std::string::npos);
    return std::string(error.row().code) + " " + *error.param + ": " + error.message;
  }
  if (grant->options.plan == nullptr) return grant->profile;
  return grant->profile + " " + std::to_string(grant->options.plan->decode_dials.budget_tokens);
}

TEST(SparseRequest, Fields) {
  const auto service = Service();
  const auto granted = [&](const char* sparse) {
    return Granted(service.get(), {{"sparse", json::parse(sparse)}});
  };
  EXPECT_EQ(Granted(service.get(), json::object()), "dense");
  EXPECT_EQ(granted(R"({"mode": "dense"})"), "dense");
  EXPECT_EQ(granted(R"({"profile": "quest", "budget_tokens": 512})"), "quest 512");
  EXPECT_EQ(granted(R"({"profile": "quest", "budget_tokens": 512.0})"), "quest 512");
  EXPECT_TRUE(granted(R"({"profile": "qest"})")
                  .starts_with("invalid_value sparse.profile: 'sparse.profile': got \"qest\", need "
                               "quest (the nearest), or one of dense, "));
  EXPECT_TRUE(granted(R"({"profile": "quest", "refine_tokens": 3})")
                  .starts_with("invalid_value sparse.refine_tokens: 'sparse.refine_tokens': got a "
                               "dial that this profile lacks, need one of budget_tokens, "));
  EXPECT_TRUE(
      granted(R"({"profile": "quest", "budget_tokens": 1.5})")
          .starts_with("invalid_value sparse.budget_tokens: 'sparse.budget_tokens': got 1.5, "
                       "need a whole number from 0 to "));
  EXPECT_TRUE(granted(R"({"profle": "quest"})")
                  .starts_with("sparse.profle: Unknown parameter: 'sparse.profle', need one of "
                               "profile, mode, audit_fraction, mass_floor, usage, and of dials "
                               "budget_tokens, budget_fraction, "));
}

TEST(SparseRequest, NoMemberIsTooOddToBeRefusedInOneLine) {
  const auto service = Service();
  const std::string long_name(5000, 'x');
  for (const json& sparse : {json{{long_name, 1}}, json{{"profile", long_name}},
                             json{{"profile", "a\nb"}}, json{{"a\nb", 1}}, json{{"", 1}}}) {
    const std::string text = Granted(service.get(), {{"sparse", sparse}});
    EXPECT_NE(text.find("sparse."), std::string::npos) << text;
    EXPECT_LT(text.size(), 1500u) << text;
  }
  json many = json::object();
  for (int i = 0; i < 65; ++i) many[std::string("k").append(std::to_string(i))] = 1;
  EXPECT_EQ(Granted(service.get(), {{"sparse", many}}),
            "sparse: 'sparse' must have at most 64 members.");
}

TEST(SparseRequest, AServerWithoutSparseAttentionSaysSo) {
  EXPECT_EQ(Granted(nullptr, json::object()), "dense");
  EXPECT_EQ(Granted(nullptr, {{"sparse", {{"mode", "dense"}}}}), "dense");
  EXPECT_EQ(Granted(nullptr, {{"sparse", {{"profile", "quest"}}}}),
            "unsupported_parameter sparse: This server has no sparse attention.");
}

TEST(SparseRequest, HeadersSpeakUnlessTheBodyDoes) {
  HttpRequest request;
  json body = {{"model", "m"}};
  EXPECT_FALSE(AddSparseHeaders(request, body));
  EXPECT_FALSE(body.contains("sparse"));
  request.sparse_profile = "quest";
  request.sparse_budget_tokens = "512";
  EXPECT_FALSE(AddSparseHeaders(request, body));
  EXPECT_EQ(body["sparse"], (json{{"profile", "quest"}, {"budget_tokens", 512}}));
  EXPECT_EQ(Granted(Service().get(), body), "quest 512");
  body = {{"sparse", {{"mode", "dense"}}}};
  EXPECT_FALSE(AddSparseHeaders(request, body));
  EXPECT_EQ(body["sparse"], (json{{"mode", "dense"}}));
  body = {{"sparse", nullptr}};
  EXPECT_FALSE(AddSparseHeaders(request, body));
  EXPECT_EQ(body["sparse"]["profile"], "quest");
  for (const char* bad : {"x", "5x", "1e3", " 5", "99999999999999999999", "1, 2"}) {
    request.sparse_budget_tokens = bad;
    body = json::object();
    const auto error = AddSparseHeaders(request, body);
    ASSERT_TRUE(error) << bad;
    EXPECT_EQ(error->param, "sparse.budget_tokens");
  }
}

TEST(SparseRequest, WhatTheEngineRefusesIsAboutTheField) {
  const ApiError error = FromSubmit(InvalidArgument("sparse: profile x is too much"), "prompt");
  EXPECT_EQ(error.param, "sparse");
  EXPECT_EQ(error.message, "'sparse': profile x is too much.");
  EXPECT_EQ(error.http_status(), 400);
  EXPECT_EQ(FromSubmit(Exhausted("full"), "prompt").param, "prompt");
}

TEST(SparseUsage, JsonAndSums) {
  engine::SparseUsage one;
  one.dense_steps = 1;
  one.sparse_steps = 3;
  one.pages_considered = 300;
  one.pages_selected = 30;
  one.estimated_mass = 0.5;
  json usage = SparseUsageJson("quest", one);
  EXPECT_EQ(usage["profile"], "quest");
  EXPECT_EQ(usage["steps"], (json{{"dense", 1}, {"sparse", 3}}));
  EXPECT_EQ(usage["pages"], (json{{"considered", 300}, {"selected", 30}}));
  EXPECT_EQ(usage["mass"]["estimated"], 0.5);
  EXPECT_TRUE(usage["mass"]["audited"].is_null());
  EXPECT_TRUE(usage["mass"]["output_error"].is_null());

  engine::SparseUsage two;
  two.sparse_steps = 1;
  two.estimated_mass = 0.9;
  two.audited_steps = 2;
  two.captured_mass[2] = 0.8;
  two.output_error[0] = 0.25;
  two.budget_widened = 1;
  engine::SparseUsage sum;
  AddSparseUsage(one, sum);
  AddSparseUsage(two, sum);
  EXPECT_EQ(sum.sparse_steps, 4);
  EXPECT_DOUBLE_EQ(sum.estimated_mass, (0.5 * 3 + 0.9) / 4);
  EXPECT_DOUBLE_EQ(sum.captured_mass[2], 0.8);  // only the second was audited
  usage = SparseUsageJson("quest", sum);
  EXPECT_EQ(usage["mass"]["audited"], (json{0.0, 0.0, 0.8}));
  EXPECT_EQ(usage["mass"]["output_error"], (json{0.25, 0.0, 0.0}));
  EXPECT_EQ(usage["audited_steps"], 2);
  EXPECT_EQ(usage["budget_widened"], 1);
}

}  // namespace
}  // namespace lacuna::server
