// Loading, overriding, printing; the generated reference is up to date; every shipped file loads.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "server/config/server_config.h"

namespace lacuna::server {
namespace {

std::string FileText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ConfigLoad, NoFileGivesTheDefaults) {
  const LoadedConfig loaded = LoadConfig("");
  EXPECT_TRUE(loaded.errors.empty());
  EXPECT_EQ(loaded.config.engine.running_max, 64);
  EXPECT_EQ(loaded.config.http.host, "127.0.0.1");
  EXPECT_TRUE(loaded.config.model.path.empty());
}

TEST(ConfigLoad, CommentsAndEveryTypeOfField) {
  const LoadedConfig loaded = ParseConfig(R"(// a comment
      {"engine": {"running_max": 8 /* inside */, "deterministic": true},
       "model": {"served_name": "tiny", "aliases": ["a", "b"]},
       "admit": {"rate_per_s": 2.5}})",
                                          "f.json");
  EXPECT_EQ(loaded.errors, std::vector<std::string>{});
  EXPECT_EQ(loaded.config.engine.running_max, 8);
  EXPECT_TRUE(loaded.config.engine.deterministic);
  EXPECT_EQ(loaded.config.model.served_name, "tiny");
  EXPECT_EQ(loaded.config.model.aliases, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(loaded.config.admit.rate_per_s, 2.5);
}

TEST(ConfigLoad, OverridesWinAndTakeTheFieldsType) {
  const std::vector<std::string> overrides = {"engine.running_max=16", "engine.deterministic=true",
                                              "model.served_name=42",  "model.aliases=a,b=c",
                                              "admit.rate_per_s=1e2",  "engine.running_max=32"};
  const LoadedConfig loaded = ParseConfig(R"({"engine": {"running_max": 8}})", "f.json", overrides);
  EXPECT_EQ(loaded.errors, std::vector<std::string>{});
  EXPECT_EQ(loaded.config.engine.running_max, 32);  // the last one
  EXPECT_TRUE(loaded.config.engine.deterministic);
  EXPECT_EQ(loaded.config.model.served_name, "42");
  EXPECT_EQ(loaded.config.model.aliases, (std::vector<std::string>{"a", "b=c"}));
  EXPECT_EQ(loaded.config.admit.rate_per_s, 100.0);
  const std::vector<std::string> empty_list = {"model.aliases="};
  const LoadedConfig cleared =
      ParseConfig(R"({"model": {"aliases": ["a"]}})", "f.json", empty_list);
  EXPECT_TRUE(cleared.errors.empty());
  EXPECT_TRUE(cleared.config.model.aliases.empty());
}

TEST(ConfigLoad, AnErrorLeavesTheOtherValuesInPlace) {
  const LoadedConfig loaded =
      ParseConfig(R"({"engine": {"running_max": 0, "events_max": 5}})", "f.json");
  EXPECT_EQ(loaded.errors.size(), 1u);
  EXPECT_EQ(loaded.config.engine.running_max, 64);
  EXPECT_EQ(loaded.config.engine.events_max, 5);
}

TEST(ConfigPrint, PrintsWhatItReads) {
  ServerConfig config;
  config.engine.running_max = 7;
  config.model.served_name = "quote \" and \\ and \x01";
  config.model.aliases = {"x", "y"};
  config.admit.rate_per_s = 0.1;
  const std::string printed = PrintConfig(config);
  EXPECT_NE(printed.find("Default: 64."), std::string::npos);
  const LoadedConfig again = ParseConfig(printed, "printed");
  EXPECT_EQ(again.errors, std::vector<std::string>{});
  EXPECT_EQ(again.config.engine.running_max, 7);
  EXPECT_EQ(again.config.model.served_name, config.model.served_name);
  EXPECT_EQ(again.config.model.aliases, config.model.aliases);
  EXPECT_EQ(again.config.admit.rate_per_s, 0.1);
  EXPECT_EQ(PrintConfig(again.config), printed);
}

// LACUNA_UPDATE=1 writes the file anew.
TEST(ConfigPrint, ReferenceFileIsFresh) {
  const std::string path = "configs/serve.json";
  if (std::getenv("LACUNA_UPDATE") != nullptr) std::ofstream(path) << ReferenceConfig();
  EXPECT_EQ(FileText(path), ReferenceConfig())
      << "run config_test with LACUNA_UPDATE=1 and commit " << path;
}

TEST(ConfigPrint, ReferenceHoldsEveryDefault) {
  const LoadedConfig loaded = ParseConfig(ReferenceConfig(), "reference");
  EXPECT_EQ(loaded.errors, std::vector<std::string>{});
  EXPECT_EQ(PrintConfig(loaded.config), PrintConfig(ServerConfig{}));
  EXPECT_EQ(ReferenceConfig().find("Default:"), std::string::npos);
}

TEST(ConfigFiles, ShippedServerConfigsLoad) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs")) {
    if (entry.path().extension() != ".json") continue;
    ++files;
    EXPECT_EQ(LoadConfig(entry.path()).errors, std::vector<std::string>{}) << entry.path();
  }
  EXPECT_GE(files, 2);
}

// A limit that stays at its default does not bite.
TEST(ConfigFiles, TinyLimitsAreAllBelowTheDefaults) {
  const LoadedConfig tiny = LoadConfig("configs/tiny-limits.json");
  ASSERT_TRUE(tiny.errors.empty());
  const auto expect_smaller = [](const auto& fields, const auto& tiny_struct,
                                 const auto& standard) {
    for (const auto& field : fields) {
      if (!field.name.ends_with("_max")) continue;
      const auto* member =
          std::get_if<int64_t std::remove_cvref_t<decltype(standard)>::*>(&field.member);
      if (member == nullptr || standard.**member == 0) continue;
      EXPECT_LT(tiny_struct.**member, standard.**member) << field.name;
    }
  };
  const ServerConfig standard;
  expect_smaller(engine::EngineFields(), tiny.config.engine, standard.engine);
  expect_smaller(HttpFields(), tiny.config.http, standard.http);
  expect_smaller(GrpcFields(), tiny.config.grpc, standard.grpc);
  expect_smaller(ApiLimitFields(), tiny.config.limits, standard.limits);
}

}  // namespace
}  // namespace lacuna::server
