// Every error line of a config, word for word: what is wrong, where, and what is needed.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "server/config/server_config.h"

namespace lacuna::server {
namespace {

struct Case final {
  std::string text;                // of the file
  std::vector<std::string> lines;  // without the leading "f.json: "
};

std::vector<std::string> Prefixed(const std::vector<std::string>& lines) {
  std::vector<std::string> all;
  for (const std::string& line : lines) all.push_back("f.json: " + line);
  return all;
}

const std::vector<Case>& FileCases();

TEST(ConfigErrors, EveryFileErrorWordForWord) {
  EXPECT_GE(FileCases().size(), 45u);
  for (const Case& one : FileCases()) {
    EXPECT_EQ(ParseConfig(one.text, "f.json").errors, Prefixed(one.lines)) << one.text;
  }
}

TEST(ConfigErrors, OverridesWordForWord) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"engine.running_max", R"(--set: got "engine.running_max", need section.key=value)"},
      {"running_max=3", R"(--set: got "running_max=3", need section.key=value)"},
      {"engine.running_max=abc",
       R"(engine.running_max: got "abc", need a whole number from 1 to 4096)"},
      {"engine.running_max=0", "engine.running_max: got 0, need a whole number from 1 to 4096"},
      {"engine.running_max=", R"(engine.running_max: got "", need a whole number from 1 to 4096)"},
      {"engine.running_max=[1]",
       R"(engine.running_max: got "[1]", need a whole number from 1 to 4096)"},
      {"engine.deterministic=yes", R"(engine.deterministic: got "yes", need true or false)"},
      {"engin.running_max=1", "engin: got an unknown key, need engine (the nearest known key)"},
      {"http.queue_len_max=1",
       "http.queue_len_max: got an unknown key, need engine.queue_len_max (it lives there)"},
      {"device.precision=int8", R"(device.precision: got "int8", need one of bf16, f16, fp32)"},
      {std::string("log.level=\n\xff"),
       R"(log.level: got "\n\ufffd", need one of trace, debug, info, warn, error, off)"},
  };
  for (const auto& [text, line] : cases) {
    const std::vector<std::string> overrides = {text};
    EXPECT_EQ(ParseConfig("{}", "f.json", overrides).errors,
              std::vector<std::string>{"--set: " + line});
  }
}

TEST(ConfigErrors, AllErrorsAtOnceInFileOrderOverridesLast) {
  const std::vector<std::string> overrides = {"kv.page_tokens=a", "log.json=2"};
  const LoadedConfig loaded =
      ParseConfig(R"({"log": {"level": "loud"}, "engine": {"running_max": -1, "x": 0}, "zz": {}})",
                  "f.json", overrides);
  ASSERT_EQ(loaded.errors.size(), 6u);
  EXPECT_TRUE(loaded.errors[0].starts_with("f.json: log.level: "));
  EXPECT_TRUE(loaded.errors[1].starts_with("f.json: engine.running_max: "));
  EXPECT_TRUE(loaded.errors[2].starts_with("f.json: engine.x: "));
  EXPECT_TRUE(loaded.errors[3].starts_with("f.json: zz: "));
  EXPECT_TRUE(loaded.errors[4].starts_with("--set: kv.page_tokens: "));
  EXPECT_TRUE(loaded.errors[5].starts_with("--set: log.json: "));
}

TEST(ConfigErrors, Files) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(LoadConfig("no/such.json").errors,
            Lines{"no/such.json: file: got no such file, need a readable JSON file"});
  EXPECT_EQ(LoadConfig("configs").errors,
            Lines{"configs: file: got no such file, need a readable JSON file"});
  const std::string path = testing::TempDir() + "lacuna_config_error_test.json";
  std::ofstream(path) << "";
  EXPECT_EQ(LoadConfig(path).errors,
            Lines{path + ": line 1, column 1: got broken JSON (value - unexpected end of input; "
                         "expected '[', '{', or a literal), need valid JSON with // comments"});
  std::ofstream(path) << std::string((1 << 20) + 1, ' ');
  EXPECT_EQ(LoadConfig(path).errors,
            Lines{path + ": line 1, column 1: got 1048577 bytes, need at most 1048576"});
  std::ofstream(path) << R"({"model": {"path": "no/model"}, "admit": {"api_keys_file": "no/k"}})";
  EXPECT_EQ(LoadConfig(path).errors,
            (Lines{path + R"(: model.path: got "no/model", need an existing folder)",
                   path + R"(: admit.api_keys_file: got "no/k", need a readable file)"}));
  std::remove(path.c_str());
}

// Names of profiles are known before a model is loaded.
TEST(ConfigErrors, SparseProfiles) {
  const auto errors = [](std::vector<std::string> overrides) {
    return LoadConfig("", overrides).errors;
  };
  EXPECT_EQ(errors({"sparse.profile=lacuna-balanced", "sparse.profiles=all,dense,quest"}),
            std::vector<std::string>{});
  EXPECT_EQ(errors({"sparse.profile=dense", "sparse.profiles="}), std::vector<std::string>{});
  const auto typo = errors({"sparse.profile=qest", "sparse.profiles=quest,nobody"});
  ASSERT_EQ(typo.size(), 2u);
  EXPECT_TRUE(typo[0].starts_with(
      R"(defaults: sparse.profile: got "qest", need quest (the nearest), or one of delta, )"))
      << typo[0];
  EXPECT_TRUE(
      typo[1].starts_with(R"(defaults: sparse.profiles: got "nobody", need one of delta, )"))
      << typo[1];
  EXPECT_EQ(errors({"sparse.profile_dir=no/folder", "sparse.artefacts=configs"}),
            (std::vector<std::string>{
                R"(defaults: sparse.artefacts: got "configs", need a readable file)",
                "defaults: sparse.profile_dir: no/folder: got no such folder, need one of "
                "profiles"}));
  // One of the operator's that is broken is told when it is asked for.
  const std::string folder = testing::TempDir() + "lacuna_config_profiles";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/mine.json")
      << R"({"name": "mine", "extends": "quest", "summary": "s", "decode": {"select": 7}})";
  const auto mine = errors({"sparse.profile_dir=" + folder, "sparse.profile=mine"});
  ASSERT_EQ(mine.size(), 1u);
  EXPECT_TRUE(mine[0].starts_with("defaults: sparse.profile: mine: decode.select: got 7"))
      << mine[0];
  EXPECT_EQ(errors({"sparse.profile_dir=" + folder, "sparse.profile=quest"}),
            std::vector<std::string>{});
  std::filesystem::remove_all(folder);
}

// At 1 MiB and full of brackets or keys: bounded work, one line.
TEST(ConfigErrors, AbsurdFiles) {
  const LoadedConfig brackets = ParseConfig(std::string(1 << 20, '['), "f.json");
  EXPECT_EQ(brackets.errors,
            std::vector<std::string>{"f.json: got nesting deeper than 8, need at most that"});
  const LoadedConfig key = ParseConfig("{\"" + std::string(100'000, 'k') + "\": {}}", "f.json");
  ASSERT_EQ(key.errors.size(), 1u);
  EXPECT_LT(key.errors[0].size(), 300u);
}

const std::vector<Case>& FileCases() {
  const std::string sections =
      "model, engine, kv, device, cpu, http, grpc, limits, admit, sparse, log";
  const std::string json = "), need valid JSON with // comments";
  const std::string listen =
      "need a loopback address, or admit.api_keys_file, or admit.allow_public_without_key";
  static const std::vector<Case> kCases = {
      // Broken text.
      {"{",
       {"line 1, column 1: got broken JSON (object key - unexpected end of input; expected "
        "string literal" +
        json}},
      {"{\n  \"engine\": {,}\n}",
       {"line 2, column 14: got broken JSON (object key - unexpected ','; expected string "
        "literal" +
        json}},
      {"{\"kv\": {\"page_tokens\": 16,}}",
       {"line 1, column 27: got broken JSON (object key - unexpected '}'; expected string "
        "literal" +
        json}},
      {"{} x",
       {"line 1, column 4: got broken JSON (value - invalid literal; last read: '{} x'; "
        "expected end of input" +
        json}},
      {"{\"kv\": {\"pool_bytes\": 1e999}}",
       {"got broken JSON ([json.exception.out_of_range.406] number overflow parsing '1e999'" +
        json}},
      {"{\"kv\": {\"pool_bytes\": NaN}}",
       {"line 1, column 23: got broken JSON (value - invalid literal; last read: "
        "'\"pool_bytes\": N'" +
        json}},
      {"{\"kv\": {}, \"kv\": {}}", {R"(got the key "kv" twice, need it once)"}},
      {R"({"kv": {"page_tokens": 16, "page_tokens": 64}})",
       {R"(got the key "page_tokens" twice, need it once)"}},
      {"[[[[[[[[[0]]]]]]]]]", {"got nesting deeper than 8, need at most that"}},
      // Wrong shapes.
      {"[]", {"file: got [], need an object of sections"}},
      {"7", {"file: got 7, need an object of sections"}},
      {R"({"engine": 7})", {"engine: got 7, need an object"}},
      {R"({"engine": []})", {"engine: got [], need an object"}},
      {R"({"engine": null})", {"engine: got null, need an object"}},
      // Unknown keys.
      {R"({"engnie": {}})", {"engnie: got an unknown key, need engine (the nearest known key)"}},
      {R"({"running_max": 1})",
       {"running_max: got an unknown key, need engine.running_max (it lives there)"}},
      {R"({"zzzzzzzz": {}})", {"zzzzzzzz: got an unknown key, need one of " + sections}},
      {R"({"engine": {"runing_max": 1}})",
       {"engine.runing_max: got an unknown key, need engine.running_max (the nearest known key)"}},
      {R"({"engine": {"maximum": 1}})",
       {"engine.maximum: got an unknown key, need one of deterministic, step_tokens_max, "
        "running_max, queue_len_max, queue_tokens_max, context_tokens_max, cuda_graphs, "
        "events_max"}},
      {R"({"http": {"page_tokens": 16}})",
       {"http.page_tokens: got an unknown key, need kv.page_tokens (it lives there)"}},
      {"{\"log\": {\"a\\nb\": 1}}", {"log.a?b: got an unknown key, need one of level, json"}},
      // Wrong types.
      {R"({"engine": {"deterministic": 1}})", {"engine.deterministic: got 1, need true or false"}},
      {R"({"engine": {"deterministic": "true"}})",
       {R"(engine.deterministic: got "true", need true or false)"}},
      {R"({"engine": {"running_max": "8"}})",
       {R"(engine.running_max: got "8", need a whole number from 1 to 4096)"}},
      {R"({"engine": {"running_max": 8.5}})",
       {"engine.running_max: got 8.5, need a whole number from 1 to 4096"}},
      {R"({"engine": {"running_max": true}})",
       {"engine.running_max: got true, need a whole number from 1 to 4096"}},
      {R"({"engine": {"running_max": null}})",
       {"engine.running_max: got null, need a whole number from 1 to 4096"}},
      {R"({"admit": {"rate_per_s": "fast"}})",
       {R"(admit.rate_per_s: got "fast", need a number from 0 to 1000000)"}},
      {R"({"http": {"host": 8000}})", {"http.host: got 8000, need a string of 1 to 255 bytes"}},
      {R"({"model": {"aliases": "a"}})",
       {R"(model.aliases: got "a", need a list of strings of 0 to 64 items)"}},
      {R"({"model": {"aliases": ["a", 1]}})",
       {R"(model.aliases: got ["a",1], need a list of strings of 0 to 64 items)"}},
      // Bounds.
      {R"({"engine": {"running_max": 0}})",
       {"engine.running_max: got 0, need a whole number from 1 to 4096"}},
      {R"({"engine": {"running_max": 4097}})",
       {"engine.running_max: got 4097, need a whole number from 1 to 4096"}},
      {R"({"engine": {"queue_tokens_max": -9223372036854775808}})",
       {"engine.queue_tokens_max: got -9223372036854775808, need a whole number of at least 1"}},
      {R"({"kv": {"pool_bytes": 18446744073709551615}})",
       {"kv.pool_bytes: got 18446744073709551615, need a whole number of at least 0"}},
      {R"({"kv": {"pool_bytes": 1e30}})",
       {"kv.pool_bytes: got 1e+30, need a whole number of at least 0"}},
      {R"({"http": {"port": 65536}})",
       {"http.port: got 65536, need a whole number from 0 to 65535"}},
      {R"({"grpc": {"port": -1}})", {"grpc.port: got -1, need a whole number from 0 to 65535"}},
      {R"({"admit": {"rate_per_s": -0.5}})",
       {"admit.rate_per_s: got -0.5, need a number from 0 to 1000000"}},
      {R"({"http": {"host": ""}})", {R"(http.host: got "", need a string of 1 to 255 bytes)"}},
      {"{\"http\": {\"host\": \"" + std::string(256, 'h') + "\"}}",
       {"http.host: got \"" + std::string(59, 'h') + "..., need a string of 1 to 255 bytes"}},
      {R"({"cpu": {"isa_max": "avx"}})",
       {R"(cpu.isa_max: got "avx", need one of auto, scalar, avx2, avx512, avx512_bf16, amx)"}},
      {R"({"log": {"level": "INFO"}})",
       {R"(log.level: got "INFO", need one of trace, debug, info, warn, error, off)"}},
      // Contradictions.
      {R"({"kv": {"page_tokens": 32}})", {"kv.page_tokens: got 32, need 16 or 64"}},
      {R"({"engine": {"step_tokens_max": 16}})",
       {"engine.step_tokens_max: got 16, need at least engine.running_max (64)"}},
      {R"({"engine": {"queue_tokens_max": 10, "context_tokens_max": 11}})",
       {"engine.queue_tokens_max: got 10, need at least engine.context_tokens_max (11)"}},
      {R"({"engine": {"context_tokens_max": 1}})",
       {"engine.context_tokens_max: got 1, need 0 or at least 2 (a prompt token and one more)"}},
      {R"({"http": {"host": "0.0.0.0"}})", {R"(http.host: got "0.0.0.0", )" + listen}},
      {R"({"grpc": {"host": "::"}})", {R"(grpc.host: got "::", )" + listen}},
      {R"({"http": {"host": "127.0.0.1.evil.org"}})",
       {R"(http.host: got "127.0.0.1.evil.org", )" + listen}},
      {R"({"http": {"host": "http://localhost"}})",
       {R"(http.host: got "http://localhost", need a host name or an address without port)"}},
      {R"({"grpc": {"port": 8000}})", {"grpc.port: got 8000, need another port than http.port"}},
      {R"({"grpc": {"calls_max": 100}})",
       {"grpc.calls_max: got 100, need at least grpc.streams_per_connection_max (128)"}},
      {R"({"http": {"connections_max": 8}})",
       {"http.connections_max: got 8, need at least http.connections_per_address_max (256)"}},
      {R"({"http": {"header_bytes_max": 256}})",
       {"http.header_bytes_max: got 256, need at least http.request_line_bytes_max (8192)"}},
      {R"({"limits": {"choices_max": 4}})",
       {"limits.choices_max: got 4, need at least limits.n_max (8)"}},
      {R"({"model": {"aliases": ["a", "a"]}})", {R"(model.aliases: got "a", need each name once)"}},
      {R"({"model": {"aliases": [""]}})",
       {R"(model.aliases: got "", need names of at least one byte)"}},
      {R"({"sparse": {"mass_floor": 0.5}})",
       {"sparse.mass_floor: got 0.5, need 0, or sparse.audit_fraction above 0"}},
      {R"({"sparse": {"store_streaming_heads": false}})",
       {"sparse.store_streaming_heads: got false, need true, or a sparse.profile with streaming "
        "heads"}},
      {R"({"sparse": {"audit_fraction": 1.5}})",
       {"sparse.audit_fraction: got 1.5, need a number from 0 to 1"}},
      {R"({"sparse": {"profiles": "quest"}})",
       {R"(sparse.profiles: got "quest", need a list of strings of 0 to 512 items)"}},
      {R"({"sparse": {"budget_tokens": 512}})",
       {"sparse.budget_tokens: got an unknown key, need one of profile, profiles, profile_dir, "
        "artefacts, audit_fraction, mass_floor, store_streaming_heads"}},
      // Not errors.
      {R"({"sparse": {"profile": "quest", "audit_fraction": 0.1, "mass_floor": 0.5}})", {}},
      {R"({"http": {"host": "::1"}, "grpc": {"host": "localhost"}})", {}},
      {R"({"http": {"host": "0.0.0.0"}, "admit": {"api_keys_file": "k"}})", {}},
      {R"({"grpc": {"host": "::", "enabled": false}})", {}},
      {R"({"http": {"port": 0}, "grpc": {"port": 0}})", {}},
  };
  return kCases;
}

}  // namespace
}  // namespace lacuna::server
