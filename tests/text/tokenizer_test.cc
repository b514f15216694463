// Tokenizer: each feature on small hand-made files, then recorded pairs of published ones.
#include "server/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include "server/text/bpe_merge.h"
#include "server/text/detokenizer.h"
#include "server/text/pairs_check.h"
#include "tests/text/tokenizer_fixture.h"

namespace lacuna::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kByteLevelPre[] = R"({"type":"ByteLevel","add_prefix_space":false})";
constexpr char kByteLevel[] = R"({"type":"ByteLevel"})";

std::string LoadError(const TokenizerSpec& spec) {
  const auto tokenizer = Tokenizer::FromJson(SpecJson(spec));
  return tokenizer.ok() ? "" : tokenizer.status().message();
}

TEST(Tokenizer, MergesTheLowestRankLeftmost) {
  const TokenizerSpec spec{.tokens = {"a", "b", "c", "ab", "bc", "abc", "aa"},
                           .merges = {"b c", "a b", "a bc", "a a"}};
  const auto tokenizer = MakeTokenizer(SpecJson(spec));
  EXPECT_THAT(Ids(*tokenizer, "abc"), ElementsAre(5));
  EXPECT_THAT(Ids(*tokenizer, "abab"), ElementsAre(3, 3));
  EXPECT_THAT(Ids(*tokenizer, "aaa"), ElementsAre(6, 0));
  EXPECT_TRUE(Ids(*tokenizer, "x").empty());
  EXPECT_THAT(Ids(*tokenizer, "axb"), ElementsAre(3));  // without an unknown token x is dropped
}

TEST(Tokenizer, IgnoreMergesTakesWholeWords) {
  TokenizerSpec spec{.tokens = {"a", "b", "ab", "abb"}, .merges = {"a b"}};
  EXPECT_THAT(Ids(*MakeTokenizer(SpecJson(spec)), "abb"), ElementsAre(2, 1));
  spec.model_extra = R"({"ignore_merges":true})";
  EXPECT_THAT(Ids(*MakeTokenizer(SpecJson(spec)), "abb"), ElementsAre(3));
}

TEST(Tokenizer, UnknownCharactersAndByteFallback) {
  TokenizerSpec spec{.tokens = {"<unk>", "a", "<0xC3>", "<0xA9>"},
                     .decoder = R"({"type":"ByteFallback"})",
                     .model_extra = R"({"unk_token":"<unk>","fuse_unk":true})"};
  EXPECT_THAT(Ids(*MakeTokenizer(SpecJson(spec)), "zza\u00e9"), ElementsAre(0, 1, 0));
  spec.model_extra = R"({"unk_token":"<unk>","byte_fallback":true})";
  const auto tokenizer = MakeTokenizer(SpecJson(spec));
  EXPECT_THAT(Ids(*tokenizer, "zza\u00e9"), ElementsAre(0, 0, 1, 2, 3));
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{1, 2, 3}, false), "a\u00e9");
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{2, 3, 2, 1}, false), "\uFFFD\uFFFD\uFFFDa");
  EXPECT_EQ(tokenizer->TokenBytes(2), "\xC3");
}

TEST(Tokenizer, WordPartsAndSuffix) {
  const TokenizerSpec spec{
      .tokens = {"a", "##b", "a##b", "##b</w>", "ab</w>"},
      .merges = {"a ##b</w>"},
      .model_extra = R"({"continuing_subword_prefix":"##","end_of_word_suffix":"</w>"})"};
  EXPECT_THAT(Ids(*MakeTokenizer(SpecJson(spec)), "ab"), ElementsAre(4));
  EXPECT_THAT(Ids(*MakeTokenizer(SpecJson(spec)), "abb"), ElementsAre(0, 1, 3));
}

TEST(Tokenizer, UnigramTakesTheBestPath) {
  const std::string json = R"({
    "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"},
    "decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"},
    "model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0],["▁",-2.0],["a",-1.5],["b",-1.6],
             ["ab",-2.5],["▁a",-3.0],["abb",-9.0]]}})";
  const auto tokenizer = MakeTokenizer(json);
  EXPECT_THAT(Ids(*tokenizer, "abb"), ElementsAre(1, 4, 3));
  EXPECT_THAT(Ids(*tokenizer, "a a"), ElementsAre(5, 5));
  EXPECT_THAT(Ids(*tokenizer, "ab\u00e9\u00e9b"), ElementsAre(1, 4, 0, 3));  // one token for a run
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, "a b"), false), "a b");
}

TEST(Tokenizer, UnigramByteFallback) {
  const std::string json = R"({"decoder":{"type":"ByteFallback"},
    "model":{"type":"Unigram","unk_id":0,"byte_fallback":true,
             "vocab":[["<unk>",0],["<0xC3>",-9],["<0xA9>",-9],["a",-1]]}})";
  const auto tokenizer = MakeTokenizer(json);
  EXPECT_THAT(Ids(*tokenizer, "a\u00e9"), ElementsAre(3, 1, 2));
  EXPECT_THAT(Ids(*tokenizer, "\u4e2d"), ElementsAre(0));
  EXPECT_EQ(tokenizer->Decode(Ids(*tokenizer, "a\u00e9"), false), "a\u00e9");
}

TEST(Tokenizer, AddedTokenFlags) {
  const TokenizerSpec spec{.tokens = {"a", " ", "b", "A"}, .added_tokens = R"([
    {"id":4,"content":"<l>","lstrip":true,"special":true,"normalized":false},
    {"id":5,"content":"<r>","rstrip":true,"special":true,"normalized":false},
    {"id":6,"content":"<w>","single_word":true,"special":false,"normalized":false},
    {"id":7,"content":"<l>long","special":false,"normalized":false}])"};
  const auto tokenizer = MakeTokenizer(SpecJson(spec));
  EXPECT_THAT(Ids(*tokenizer, "a  <l> b"), ElementsAre(0, 4, 1, 2));
  EXPECT_THAT(Ids(*tokenizer, "a <r>  b"), ElementsAre(0, 1, 5, 2));
  EXPECT_THAT(Ids(*tokenizer, "<r>  <l>"), ElementsAre(5, 4));
  EXPECT_THAT(Ids(*tokenizer, "<w> a<w>"), ElementsAre(6, 1, 0));
  EXPECT_THAT(Ids(*tokenizer, "<l>long"), ElementsAre(7));  // the longest at one place
  EXPECT_THAT(Ids(*tokenizer, "<l>a<w>", {.match_special_tokens = false}), ElementsAre(0));
  EXPECT_TRUE(tokenizer->IsSpecial(4));
  EXPECT_FALSE(tokenizer->IsSpecial(6));
  EXPECT_EQ(tokenizer->Decode(std::vector<TokenId>{4, 0, 6, 99, -1}, true), "a<w>");
  EXPECT_EQ(tokenizer->vocab_size(), 8);
  EXPECT_EQ(tokenizer->TokenToId("<r>"), 5);
  EXPECT_EQ(tokenizer->TokenToId("b"), 2);
  EXPECT_EQ(tokenizer->TokenToId("none"), std::nullopt);
}

TEST(Tokenizer, NormalizedAddedTokensMatchAfterTheNormalizer) {
  const TokenizerSpec spec{
      .tokens = {"a", "b"}, .normalizer = R"({"type":"Lowercase"})", .added_tokens = R"([
    {"id":2,"content":"ABA","normalized":true,"special":false},
    {"id":3,"content":"BB","normalized":false,"special":false}])"};
  const auto tokenizer = MakeTokenizer(SpecJson(spec));
  EXPECT_THAT(Ids(*tokenizer, "aBaBB"), ElementsAre(2, 3));
  EXPECT_THAT(Ids(*tokenizer, "bb"), ElementsAre(1, 1));
}

TEST(Tokenizer, TemplatePostProcessor) {
  const TokenizerSpec spec{
      .tokens = {"a", "<s>", "</s>"},
      .post_processor = R"({"type":"Sequence","processors":[{"type":"ByteLevel"},
        {"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
          {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}],"pair":[],
         "special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]},
                           "</s>":{"id":"</s>","ids":[2],"tokens":["</s>"]}}}]})"};
  const auto tokenizer = MakeTokenizer(SpecJson(spec));
  EXPECT_THAT(Ids(*tokenizer, "aa"), ElementsAre(0, 0));
  EXPECT_THAT(Ids(*tokenizer, "aa", {.add_special_tokens = true}), ElementsAre(1, 0, 0, 2));
  EXPECT_THAT(Ids(*tokenizer, "", {.add_special_tokens = true}), ElementsAre(1, 2));
}

TEST(Tokenizer, DecoderSteps) {
  const auto decode = [](const std::string& decoder, const std::vector<std::string>& tokens) {
    const auto tokenizer = MakeTokenizer(SpecJson({.tokens = tokens, .decoder = decoder}));
    std::vector<TokenId> ids(tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
    return tokenizer->Decode(ids, false);
  };
  EXPECT_EQ(decode("null", {"a", "b", "c"}), "a b c");
  EXPECT_EQ(decode(R"({"type":"Strip","content":"-","start":1,"stop":2})",
                   {"--a---", "-", "b-c-", "---"}),
            "-a-b-c");
  EXPECT_EQ(decode(R"({"type":"Sequence","decoders":[{"type":"Fuse"},
                      {"type":"Strip","content":"-","start":1,"stop":2}]})",
                   {"--a-", "---", "-b-", "-", "--"}),
            "-a-----b--");
  EXPECT_EQ(decode(R"({"type":"Sequence","decoders":[{"type":"Fuse"},
                      {"type":"Replace","pattern":{"String":"aab"},"content":"_"}]})",
                   {"aa", "a", "b", "xaa"}),
            "a_xaa");
  EXPECT_EQ(
      decode(R"({"type":"Replace","pattern":{"Regex":"[0-9]+"},"content":"#"})", {"a12", "3"}),
      "a##");
  EXPECT_EQ(decode(R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"always"})",
                   {"▁Hey", "▁you"}),
            "Hey you");
  EXPECT_EQ(decode(kByteLevel, {"\u0120a", "\u00c3", "\u00a9", "\u00c3b", "\u00e4\u00bd"}),
            " a\u00e9\uFFFDb\uFFFD");
}

TEST(Tokenizer, LoadErrorsNameWhatIsUnknown) {
  EXPECT_EQ(LoadError({.tokens = {"a"}, .normalizer = R"({"type":"BertNormalizer"})"}),
            "tokenizer.json: normalizer: unknown type \"BertNormalizer\"");
  EXPECT_EQ(LoadError({.tokens = {"a"}, .pre_tokenizer = R"({"type":"X"})"}),
            "tokenizer.json: pre_tokenizer: unknown type \"X\"");
  EXPECT_EQ(LoadError({.tokens = {"a"}, .post_processor = R"({"type":"BertProcessing"})"}),
            "tokenizer.json: post_processor: unknown type \"BertProcessing\"");
  EXPECT_EQ(LoadError({.tokens = {"a"}, .decoder = R"({"type":"CTC"})"}),
            "tokenizer.json: decoder: unknown type \"CTC\"");
  EXPECT_EQ(LoadError({.tokens = {"a"}, .model_extra = R"({"type":"WordPiece"})"}),
            "tokenizer.json: model: unknown type \"WordPiece\"");
  EXPECT_THAT(LoadError({.tokens = {"a", "b"}, .merges = {"a b"}}), HasSubstr("merges: number 0"));
  EXPECT_THAT(LoadError({.tokens = {"a"}, .model_extra = R"({"vocab":{"a":4194304}})"}),
              HasSubstr("vocab"));
  EXPECT_THAT(LoadError({.tokens = {"a"}, .added_tokens = R"([{"id":0,"content":"x"}])"}),
              HasSubstr("added_tokens"));
  EXPECT_FALSE(Tokenizer::FromJson("{").ok());
  EXPECT_FALSE(Tokenizer::FromJson(std::string(100, '[')).ok());
  EXPECT_FALSE(Tokenizer::FromJson("[]").ok());
}

TEST(Tokenizer, InvalidUtf8IsTheCallersFault) {
  const auto tokenizer = MakeTokenizer(SpecJson({.tokens = {"a"}}));
  for (const char* text : {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80"}) {
    EXPECT_EQ(tokenizer->Encode(text).status().code(), StatusCode::kInvalidArgument);
  }
}

// A byte-level tokenizer with random merges, so that words are long and merges interleave.
TEST(Tokenizer, LongWordsMergeAsShortOnesDo) {
  BpeMerges merges;
  std::mt19937 random(3);
  uint32_t rank = 0;
  TokenId next = 4;
  for (int i = 0; i < 300; ++i) {
    const auto pick = [&] { return static_cast<TokenId>(random() % static_cast<uint32_t>(next)); };
    const TokenId left = pick();
    const TokenId right = pick();
    if (!merges.Find(left, right)) merges.Add(left, right, {rank++, next++});
  }
  BpeMerger merger(merges, rank);
  for (int round = 0; round < 300; ++round) {
    std::vector<TokenId> word(33 + random() % 200);
    for (TokenId& id : word) id = static_cast<TokenId>(random() % 4);
    std::vector<TokenId> want = word;
    for (;;) {  // the definition, literally
      const BpeMerge* best = nullptr;
      size_t at = 0;
      for (size_t i = 0; i + 1 < want.size(); ++i) {
        const BpeMerge* merge = merges.Find(want[i], want[i + 1]);
        if (merge && (!best || merge->rank < best->rank)) {
          best = merge;
          at = i;
        }
      }
      if (!best) break;
      want[at] = best->merged;
      want.erase(want.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    merger.Run(word);
    ASSERT_EQ(word, want);
  }
}

TEST(Detokenizer, EqualsDecodeAndNeverSplitsACodePoint) {
  TokenizerSpec byte_level{
      .tokens = ByteLevelTokens(), .pre_tokenizer = kByteLevelPre, .decoder = kByteLevel};
  TokenizerSpec fallback{.tokens = {"▁", "a", "é", "<0xE4>", "<0xBD>", "<0xA0>", "<0x41>", "▁b"},
                         .decoder = R"({"type":"Sequence","decoders":[
      {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
      {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})"};
  std::mt19937 random(11);
  for (const TokenizerSpec& spec : {byte_level, fallback}) {
    const auto tokenizer = MakeTokenizer(SpecJson(spec));
    for (int round = 0; round < 2000; ++round) {
      std::vector<TokenId> ids(random() % 12);
      for (TokenId& id : ids) id = static_cast<TokenId>(random() % spec.tokens.size());
      Detokenizer stream(*tokenizer, false);
      std::string text;
      for (const TokenId id : ids) {
        const std::string piece = stream.Push(id);
        ASSERT_TRUE(IsValidUtf8(piece));
        text += piece;
      }
      text += stream.Flush();
      ASSERT_EQ(text, tokenizer->Decode(ids, false));
      ASSERT_TRUE(IsValidUtf8(text));
    }
  }
}

TEST(Detokenizer, SendsACodePointWithItsLastByte) {
  const auto tokenizer = MakeTokenizer(SpecJson(
      {.tokens = ByteLevelTokens(), .pre_tokenizer = kByteLevelPre, .decoder = kByteLevel}));
  Detokenizer stream(*tokenizer, false);
  EXPECT_EQ(stream.Push(0xF0), "");
  EXPECT_EQ(stream.Push(0x9F), "");
  EXPECT_EQ(stream.Push(0x98), "");
  EXPECT_EQ(stream.Push(0x80), "\U0001F600");
  EXPECT_EQ(stream.Push('x'), "x");
  EXPECT_EQ(tokenizer->TokenBytes(0x9F), "\x9F");
}

// 1 MiB of one character: far from the bound when merging is linear, hours when quadratic.
TEST(Tokenizer, LongRunsStayLinear) {
  TokenizerSpec spec{
      .tokens = ByteLevelTokens(), .pre_tokenizer = kByteLevelPre, .decoder = kByteLevel};
  std::string run = "a";
  for (int i = 0; i < 6; ++i) {
    spec.merges.push_back(run + " " + run);
    run += run;
    spec.tokens.push_back(run);
  }
  const auto tokenizer = MakeTokenizer(SpecJson(spec));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(Ids(*tokenizer, std::string(1 << 20, 'a')).size(), (1u << 20) / 64);
  EXPECT_EQ(Ids(*tokenizer, std::string(1 << 20, ' ')).size(), 1u << 20);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(120));
}

TEST(Tokenizer, ThreadsShareOneTokenizer) {
  const auto tokenizer = MakeTokenizer(ReadFile("tests/data/tokenizers/gpt-2/tokenizer.json"));
  ASSERT_TRUE(tokenizer);
  const std::string text = ReadFile("tests/data/tokenizers/gpt-2/pairs.jsonl").substr(0, 20000);
  const auto cut = std::string_view(text).substr(0, text.rfind('\n'));
  const auto want = tokenizer->Encode(cut);
  ASSERT_TRUE(want.ok());
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 5; ++k) EXPECT_EQ(*tokenizer->Encode(cut), *want);
    });
  }
}

void ExpectAllMatch(const std::string& folder) {
  const auto tokenizer = MakeTokenizer(ReadFile(folder + "/tokenizer.json"));
  ASSERT_TRUE(tokenizer);
  std::ifstream pairs(folder + "/pairs.jsonl");
  std::ostringstream mismatches;
  const auto report = CheckPairs(*tokenizer, pairs, mismatches);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_GT(report->total, 500);
  EXPECT_EQ(report->matched, report->total) << mismatches.str();
}

TEST(TokenizerPairs, Gpt2) { ExpectAllMatch("tests/data/tokenizers/gpt-2"); }
TEST(TokenizerPairs, Phi3) { ExpectAllMatch("tests/data/tokenizers/phi-3"); }

TEST(TokenizerPairs, AllOfAFolder) {
  const char* root = std::getenv("LACUNA_TOKENIZERS_DIR");
  if (!root)
    GTEST_SKIP() << "set LACUNA_TOKENIZERS_DIR to folders with tokenizer.json, pairs.jsonl";
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    ExpectAllMatch(entry.path().string());
  }
}

TEST(TokenizerPairs, ReportsMismatchesAndBadLines) {
  const auto tokenizer = MakeTokenizer(SpecJson({.tokens = {"a", "b"}}));
  std::istringstream pairs(R"({"text":"ab","ids":[0,1]}
{"text":"ab","ids":[1]}
)");
  std::ostringstream mismatches;
  const auto report = CheckPairs(*tokenizer, pairs, mismatches);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->matched, 1);
  EXPECT_EQ(report->total, 2);
  EXPECT_EQ(mismatches.str(), "line 2: \"ab\": want [1] got [0,1]\n");
  std::istringstream bad("{\"text\":1}\n");
  EXPECT_EQ(CheckPairs(*tokenizer, bad, mismatches).status().message(),
            "line 1: text: need a string");
}

TEST(TokenizerPairs, EmbeddedModelRoundTrip) {
  const auto tokenizer = MakeTokenizer(ReadFile("models/recall-12m/tokenizer.json"));
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
  const std::string text = "<|im_start|>user\nWhat's 1234 + \u00e9\U0001F600?\r\n\n  x<|im_end|>";
  const auto ids = Ids(*tokenizer, text);
  EXPECT_EQ(tokenizer->Decode(ids, false), text);
  EXPECT_EQ(ids.front(), *tokenizer->TokenToId("<|im_start|>"));
  const auto plain = Ids(*tokenizer, "<|im_end|>", {.match_special_tokens = false});
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(tokenizer->Decode(plain, false), "<|im_end|>");
}

}  // namespace
}  // namespace lacuna::server
