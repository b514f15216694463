// Profiles as text: every shipped one is sound, reads back as printed, and resolves; every error
// has its line, word for word.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>

#include "kvcache/sparse/profile_pages.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::kvcache {
namespace {

using Lines = std::vector<std::string>;

const ProfileSet& Shipped() {
  static const ProfileSet::Loaded kLoaded = ProfileSet::Load(ShippedProfiles());
  EXPECT_EQ(kLoaded.errors, Lines{});
  return kLoaded.set;
}

ParsedProfile Parse(const std::string& name, const std::string& text) {
  return ParseProfile({name, text}, [](std::string_view base) { return Shipped().Find(base); });
}

// A legal profile but for `keys`, which follow its own.
Lines ErrorsOf(const std::string& keys) {
  return Parse("p", R"({"name": "p", "summary": "s")" + (keys.empty() ? "" : ", " + keys) + "}")
      .errors;
}

std::string FileText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(SparseProfiles, EveryMethodIsShipped) {
  std::set<std::string> names;
  for (const SparseProfile& profile : Shipped().all()) names.insert(profile.name);
  for (const char* name : {"quest",
                           "lserve",
                           "streamingllm",
                           "duoattention",
                           "tidaldecode",
                           "lessismore",
                           "delta",
                           "double-sparsity",
                           "twilight-quest",
                           "twilight-double-sparsity",
                           "tokenselect",
                           "kinetics",
                           "minference",
                           "flexprefill",
                           "xattention",
                           "trianglemix",
                           "prism",
                           "sampleattention",
                           "moa",
                           "delta-streamingllm",
                           "delta-minference",
                           "lacuna-fast",
                           "lacuna-balanced",
                           "lacuna-safe"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(SparseProfiles, TheBinaryHoldsTheFilesOfTheFolder) {
  const Result<std::vector<ProfileText>> folder = ReadProfileFolder("configs/sparse");
  ASSERT_TRUE(folder.ok()) << folder.status().message();
  const std::vector<ProfileText> shipped = ShippedProfiles();
  ASSERT_EQ(shipped.size(), folder->size());
  for (size_t i = 0; i < shipped.size(); ++i) {
    EXPECT_EQ(shipped[i].name, (*folder)[i].name);
    EXPECT_EQ(shipped[i].text, (*folder)[i].text) << shipped[i].name;
  }
}

TEST(SparseProfiles, EachSaysWhatItIsAndDiffersFromDense) {
  for (const SparseProfile& profile : Shipped().all()) {
    EXPECT_FALSE(profile.paper.empty()) << profile.name;
    EXPECT_TRUE(profile.sparse_decode() || profile.sparse_prefill() || profile.who.heads != "all")
        << profile.name;
  }
}

TEST(SparseProfiles, PrintedOnesReadBackEqual) {
  for (SparseProfile profile : Shipped().all()) {
    const ParsedProfile again = Parse(profile.name, PrintProfile(profile));
    EXPECT_EQ(again.errors, Lines{});
    profile.extends.clear();
    EXPECT_EQ(again.profile, profile) << PrintProfile(profile);
  }
}

TEST(SparseProfiles, EachResolvesForASmallAndAnOrdinaryModel) {
  for (const AttentionShape& shape : {Recall12m(), Llama8B()}) {
    const SparseArtefacts artefacts = MakeArtefacts(shape);
    std::set<uint64_t> fingerprints;
    for (const SparseProfile& profile : Shipped().all()) {
      const ResolvedPlan resolved = ResolvePlan(profile, shape, artefacts);
      ASSERT_NE(resolved.plan, nullptr) << resolved.errors.front();
      EXPECT_TRUE(fingerprints.insert(resolved.plan->fingerprint).second) << profile.name;
      EXPECT_EQ(resolved.plan->sparse_decode, profile.sparse_decode()) << profile.name;
      EXPECT_EQ(resolved.plan->sparse_prefill, profile.sparse_prefill()) << profile.name;
      EXPECT_EQ(*ResolvePlan(profile, shape, artefacts).plan, *resolved.plan);  // a pure function
      EXPECT_NE(DescribePlan(*resolved.plan), "");
    }
  }
}

TEST(SparseProfiles, GeneratedFilesAreUpToDate) {
  EXPECT_EQ(FileText("configs/sparse/schema.json"), ProfileSchema())
      << "run: lacuna profiles --schema > configs/sparse/schema.json";
  EXPECT_EQ(FileText("docs/profiles.md"), ProfileReference(Shipped().all()))
      << "run: lacuna profiles --reference > docs/profiles.md";
}

TEST(SparseProfiles, TheSchemaNamesEveryKey) {
  const ConfigJson schema = ConfigJson::parse(ProfileSchema());
  SparseProfile profile;
  for (const BoundSection& section : BindProfile(profile)) {
    const ConfigJson* object = &schema;
    std::string_view path = section.name;
    while (!path.empty()) {
      const size_t dot = std::min(path.find('.'), path.size());
      object = &object->at("properties").at(std::string(path.substr(0, dot)));
      path.remove_prefix(std::min(dot + 1, path.size()));
    }
    EXPECT_EQ(object->at("additionalProperties"), false);
    for (const BoundField& field : section.fields) {
      EXPECT_TRUE(object->at("properties").contains(field.name)) << section.name << field.name;
    }
  }
}

TEST(SparseProfiles, AVariantTakesOverTheKeysOfItsBase) {
  const SparseProfile& quest = *Shipped().Find("quest");
  const SparseProfile& twilight = *Shipped().Find("twilight-quest");
  EXPECT_EQ(twilight.decode_metadata, quest.decode_metadata);
  EXPECT_EQ(twilight.decode_layers, quest.decode_layers);
  EXPECT_EQ(twilight.decode_select.budget_tokens, 8192);
  EXPECT_EQ(twilight.decode_refine.kind, "top_p");
  ASSERT_EQ(twilight.departures.size(), quest.departures.size() + 1);
  EXPECT_EQ(twilight.departures.front(), quest.departures.front());
}

TEST(SparseProfiles, OperatorsReplaceShippedOnesAndTheirVariantsFollow) {
  std::vector<ProfileText> texts = ShippedProfiles();
  SparseProfile quest = *Shipped().Find("quest");
  quest.decode_layers.dense_layers = {0};
  texts.push_back({"quest", PrintProfile(quest)});
  const ProfileSet::Loaded loaded = ProfileSet::Load(texts);
  EXPECT_EQ(loaded.errors, Lines{});
  EXPECT_EQ(loaded.set.all().size(), Shipped().all().size());
  EXPECT_EQ(loaded.set.Find("twilight-quest")->decode_layers.dense_layers, std::vector<int64_t>{0});
}

TEST(SparseProfiles, BasesThatAreMissingBrokenOrInACircle) {
  const std::vector<ProfileText> texts = {
      {"a", R"({"name": "a", "summary": "s", "extends": "b"})"},
      {"b", R"({"name": "b", "summary": "s", "extends": "a"})"},
      {"c", R"({"name": "c", "summary": "s", "extends": "none"})"},
      {"d", R"({"name": "d", "summary": "s", "extends": "e"})"},
      {"e", R"({"name": "e", "summary": "s", "who": 7})"},
      {"f", R"({"name": "f", "summary": "s"})"},
      {"g", R"({"name": "g", "extends": "f"})"}};
  const ProfileSet::Loaded loaded = ProfileSet::Load(texts);
  const std::string need = "need the name of a sound profile that does not extend this";
  EXPECT_EQ(loaded.errors,
            (Lines{"e: who: got 7, need an object", "g: summary: got nothing, need one line",
                   "a: extends: got \"b\", " + need, "b: extends: got \"a\", " + need,
                   "c: extends: got \"none\", " + need, "d: extends: got \"e\", " + need}));
  ASSERT_EQ(loaded.set.all().size(), 1u);
  EXPECT_EQ(loaded.set.all()[0].name, "f");
}

TEST(SparseProfiles, UnknownNamesListThoseThatExist) {
  const ProfileSet set =
      ProfileSet::Load(std::vector<ProfileText>{{"quest", R"({"name": "quest", "summary": "s"})"},
                                                {"moa", R"({"name": "moa", "summary": "s"})"}})
          .set;
  EXPECT_TRUE(set.Get("quest").ok());
  EXPECT_EQ(set.Get("qest").status().message(),
            "profile: got \"qest\", need quest (the nearest), or one of moa, quest");
  EXPECT_EQ(set.Get("zzzzzz").status().message(),
            "profile: got \"zzzzzz\", need one of moa, quest");
}

TEST(SparseProfiles, ErrorsOfTextAndValuesWordForWord) {
  EXPECT_EQ(ErrorsOf(""), Lines{});
  EXPECT_EQ(Parse("p", "{").errors,
            Lines{"p: line 1, column 1: got broken JSON (object key - unexpected end of input; "
                  "expected string literal), need valid JSON with // comments"});
  EXPECT_EQ(Parse("p", "[]").errors, Lines{"p: file: got [], need an object of sections"});
  EXPECT_EQ(Parse("p", R"({"name": "q", "summary": "s"})").errors,
            Lines{R"(p: name: got "q", need "p", the file's name)"});
  EXPECT_EQ(ErrorsOf(R"("decode": {"select": {"knd": "all"}})"),
            Lines{"p: decode.select.knd: got an unknown key, need decode.select.kind (the nearest "
                  "known key)"});
  EXPECT_EQ(ErrorsOf(R"("decode": {"selct": {}})"),
            Lines{"p: decode.selct: got an unknown key, need decode.select (the nearest known "
                  "key)"});
  EXPECT_EQ(ErrorsOf(R"("prefil": {})"),
            Lines{"p: prefil: got an unknown key, need prefill (the nearest known key)"});
  EXPECT_EQ(ErrorsOf(R"("decode": {"select": 1})"),
            Lines{"p: decode.select: got 1, need an object"});
  EXPECT_EQ(ErrorsOf(R"("who": {"heads": "some"})"),
            Lines{"p: who.heads: got \"some\", need one of all, streaming, artefact, spans"});
  EXPECT_EQ(ErrorsOf(R"("decode": {"layers": {"dense_layers": [0, -1]}})"),
            Lines{"p: decode.layers.dense_layers: got [0,-1], need a list of whole numbers from 0 "
                  "to 1023"});
  EXPECT_EQ(ErrorsOf(R"("decode": {"layers": {"share_layers": 0}, "select": {"p": 2}})"),
            (Lines{"p: decode.layers.share_layers: got 0, need a whole number from 1 to 64",
                   "p: decode.select.p: got 2, need a number from 0.01 to 1"}));
}

}  // namespace
}  // namespace lacuna::kvcache
