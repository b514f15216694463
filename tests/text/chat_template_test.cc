// Expected outputs stand in chat_templates/, made by other implementations, never by ours:
//   <name>.expected.json  by @huggingface/jinja (regenerate_expected.sh; --check tells staleness)
//   npm_departures.json   by jinja2 as transformers sets it up, where the former departs from it
//                         (Python prints None and lists where JavaScript throws or prints JSON)
//   snippets.json         by jinja2 (chat_template_reference.py); null: it raises an error
#include "server/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace lacuna::server {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kNow = 1721952000;  // 2024-07-26 00:00:00 UTC
const std::filesystem::path kFolder = "tests/text/chat_templates";

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}
Json ReadJson(const std::string& name) { return Json::parse(ReadText(kFolder / name)); }

Result<std::string> Render(const std::string& source, const Json& variables = Json::object(),
                           const ChatTemplate::Limits& limits = {}) {
  LACUNA_ASSIGN_OR_RETURN(auto parsed, ChatTemplate::Parse(source));
  return parsed->Render(variables, limits, kNow);
}

void ExpectRender(const std::string& source, const Json& variables, const Json& expected) {
  const Result<std::string> got = Render(source, variables);
  if (expected.is_null()) {
    EXPECT_FALSE(got.ok()) << *got;
  } else {
    ASSERT_TRUE(got.ok()) << got.status().ToString();
    EXPECT_EQ(*got, expected.get<std::string>());
  }
}

std::string ErrorOf(const std::string& source, const Json& variables = Json::object()) {
  const Result<std::string> got = Render(source, variables);
  EXPECT_FALSE(got.ok()) << source << " gives " << *got;
  return got.status().message();
}

TEST(ChatTemplate, PublishedStyleTemplatesMatchTheOracles) {
  const Json inputs = ReadJson("inputs.json");
  const Json departures = ReadJson("npm_departures.json");
  int templates = 0, cases = 0, departed = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (entry.path().extension() != ".jinja") continue;
    const std::string name = entry.path().stem();
    const std::string source = ReadText(entry.path());
    ++templates;
    const Json all = ReadJson(name + ".expected.json");
    for (const auto& [input, expected] : all.items()) {
      SCOPED_TRACE(name + " on " + input);
      const bool departs = departures.contains(name) && departures[name].contains(input);
      const Json& want = departs ? departures[name][input] : expected;
      ExpectRender(source, inputs[input], want.value("text", Json()));
      ++cases;
      departed += departs ? 1 : 0;
    }
  }
  EXPECT_GE(templates, 14);
  EXPECT_GE(cases, templates * 10);
  EXPECT_LT(departed * 5, cases);
}

TEST(ChatTemplate, SnippetsMatchJinja2) {
  const Json snippets = ReadJson("snippets.json");
  EXPECT_GE(snippets["cases"].size(), 80u);
  for (const Json& snippet : snippets["cases"]) {
    const std::string source = snippet["template"];
    SCOPED_TRACE(source);
    ExpectRender(source, snippets["variables"], snippet["expected"]);
  }
}

TEST(ChatTemplate, RaiseExceptionGivesItsOwnMessage) {
  const Result<std::string> got = Render("{{ raise_exception('No\\nsystem, ' ~ x) }}", {{"x", 1}});
  ASSERT_FALSE(got.ok());
  EXPECT_EQ(got.status(), InvalidArgument("No system, 1"));
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  EXPECT_EQ(ErrorOf("a\nb\n{{ x + 1 }}"), "chat template: line 3: 'x' is undefined");
  EXPECT_EQ(ErrorOf("a\n{% if x %}\n"), "chat template: line 2: missing 'endif'");
  EXPECT_EQ(ErrorOf("\n{{ 'a }}"), "chat template: line 2: string without an end");
  EXPECT_EQ(ErrorOf("{% include 'x' %}"), "chat template: line 1: unknown tag 'include'");
  EXPECT_EQ(ErrorOf("\n\n{{ 1|nope }}"), "chat template: line 3: no filter named 'nope'");
  EXPECT_EQ(ErrorOf("{{ l.append(1) }}", {{"l", Json::array()}}),
            "chat template: line 1: 'append' would change a value; templates may not");
  EXPECT_EQ(ErrorOf("\xff"), "chat template: not valid UTF-8");
}

TEST(ChatTemplate, NothingOfTheProgramCanBeReached) {
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ range.__globals__.x }}", "{{ {}.__init__.x }}",
        "{{ namespace.__subclasses__() }}", "{{ messages|attr('x') }}", "{{ self.x }}"}) {
    EXPECT_THAT(ErrorOf(source), StartsWith("chat template: line 1: ")) << source;
  }
}

TEST(ChatTemplate, NestingIsBoundedWhenParsing) {
  const auto repeat = [](const std::string& text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  constexpr int kMany = 200'000;
  for (const std::string& source :
       {"{{ " + repeat("(", kMany), "{{ " + repeat("[", kMany), "{{ " + repeat("{1:", kMany),
        "{{ " + repeat("not ", kMany) + "1 }}", "{{ " + repeat("-", kMany) + "1 }}",
        repeat("{% if 1 %}", kMany), repeat("{% for x in y %}", kMany),
        "{{ " + repeat("1 if 1 else ", kMany) + "1 }}", "{{ x" + repeat("[x", kMany),
        "{{ x" + repeat("|f(x", kMany), "{% for " + repeat("(", kMany),
        repeat("{% macro m() %}", kMany), "{{ x is " + repeat("f(1 is ", kMany)}) {
    EXPECT_THAT(ErrorOf(source), HasSubstr("nested too deep")) << source.substr(0, 30);
  }
  // Chains are not nesting.
  EXPECT_EQ(*Render("{{ 0" + repeat(" + 1", 10'000) + " }}"), "10000");
  EXPECT_EQ(*Render("{{ 'a'" + repeat("|string", 10'000) + " }}"), "a");
  EXPECT_EQ(*Render("{% if 0 %}" + repeat("{% elif 0 %}", 10'000) + "{% else %}x{% endif %}"), "x");
}

TEST(ChatTemplate, RunawayTemplatesMeetALimit) {
  const Json variables = {{"s", std::string(1 << 20, 'a')}};
  for (const char* source :
       {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set l = range(9999)|list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
        "{% set l = range(9999)|list %}{% for a in l %}{% for b in l if 0 %}{% endfor %}"
        "{% endfor %}",
        "{% set l = range(9999)|list %}{% for a in l %}{% set b = l|reverse %}{% endfor %}",
        "{{ s.strip(s) }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ range(1000000000)|list }}", "{{ 'x' * 1000000000000 }}", "{{ [1] * 1000000000 }}",
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{% for a in range(1000) %}{{ s }}{% endfor %}", "{{ s.replace('', s) }}",
        "{{ s|indent(1000000000) }}", "{{ s|list|join(s) }}", "{{ 'a\\nb'|indent(100000000) }}",
        "{% set ns = namespace(x=[]) %}{% for a in range(1000) %}{% set ns.x = [ns.x] %}"
        "{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(100) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x={}) %}{% for a in range(9999) %}"
        "{% set ns.x = {'a': ns.x.get} %}{% endfor %}",
        "{{ 'a'|map('map', 'map', 'map', 'upper')|list ~ s.split('a')|map('list')|list * 99 }}"}) {
    const Result<std::string> got = Render(source, variables);
    ASSERT_FALSE(got.ok()) << source;
    EXPECT_EQ(got.status().code(), StatusCode::kTooLong) << got.status().ToString();
    EXPECT_THAT(got.status().message(), StartsWith("chat template: line 1: "));
  }
}

TEST(ChatTemplate, LimitsAreThoseGiven) {
  ChatTemplate::Limits limits;
  limits.output_bytes_max = 10;
  EXPECT_TRUE(Render("0123456789", {}, limits).ok() == false);  // variables: not an object
  EXPECT_TRUE(Render("0123456789", Json::object(), limits).ok());
  EXPECT_FALSE(Render("0123456789a", Json::object(), limits).ok());
  limits = {};
  limits.steps_max = 50;
  EXPECT_TRUE(Render("{% for x in range(5) %}{% endfor %}", Json::object(), limits).ok());
  EXPECT_FALSE(Render("{% for x in range(50) %}{% endfor %}", Json::object(), limits).ok());
  limits = {};
  const std::string recurse =
      "{% macro m(n) %}{% if n > 1 %}{{ m(n - 1) }}{% endif %}.{% endmacro %}{{ m(n) }}";
  limits.depth_max = 8;
  EXPECT_EQ(*Render(recurse, {{"n", 8}}, limits), "........");
  EXPECT_FALSE(Render(recurse, {{"n", 9}}, limits).ok());
}

TEST(ChatTemplate, DeepVariablesAreRefused) {
  Json deep = 1;
  for (int i = 0; i < 1000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_EQ(Render("{{ x }}", {{"x", deep}}).status().code(), StatusCode::kTooLong);
}

TEST(ChatTemplate, CyclesThroughNamespacesAreFreed) {  // the leak checker of ASan watches
  EXPECT_EQ(
      *Render("{% set a = namespace() %}{% set b = namespace(a=[a]) %}{% set a.b = {'b': b} %}"
              "{% for i in [1] %}{{ loop.changed(loop.cycle) }}{% set a.l = loop %}"
              "{% endfor %}{{ a.l.changed(a.l) }}"),
      "TrueTrue");
}

TEST(ChatTemplate, LongMessagesFitTheBudget) {
  Json messages = Json::array();
  for (int i = 0; i < 1000; ++i) {
    messages.push_back(
        {{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", std::string(4000, 'x') + "\n"}});
  }
  const std::string source = ReadText(kFolder / "qwen3.jinja");
  const Result<std::string> got = Render(source, {{"messages", messages}});
  ASSERT_TRUE(got.ok()) << got.status().ToString();
  EXPECT_GT(got->size(), 4'000'000u);
}

}  // namespace
}  // namespace lacuna::server
