// Pre-tokenizers and normalizers against the results that the rules of Hugging Face tokenizers
// give.
#include "server/text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "server/text/normalizer.h"
#include "server/text/tokenizer_pattern.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

using Texts = std::vector<std::string>;

Texts Cut(const std::string& json, const std::string& text, bool at_start = true) {
  auto pre = PreTokenizer::FromJson(Json::parse(json));
  EXPECT_TRUE(pre.ok()) << pre.status().message();
  PieceArena arena;
  Pieces pieces{{text, at_start}};
  EXPECT_TRUE((*pre)->Apply(pieces, arena).ok());
  Texts texts;
  for (const Piece& piece : pieces) texts.emplace_back(piece.text);
  return texts;
}

Texts CutHyphens(const std::string& behavior, const std::string& invert = "false") {
  return Cut(R"({"type":"Split","pattern":{"String":"-"},"behavior":")" + behavior +
                 R"(","invert":)" + invert + "}",
             "the-final--countdown");
}

TEST(PreTokenizer, SplitBehaviors) {
  EXPECT_EQ(CutHyphens("Removed"), (Texts{"the", "final", "countdown"}));
  EXPECT_EQ(CutHyphens("Isolated"), (Texts{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(CutHyphens("MergedWithPrevious"), (Texts{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(CutHyphens("MergedWithNext"), (Texts{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(CutHyphens("Contiguous"), (Texts{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(CutHyphens("Removed", "true"), (Texts{"-", "-", "-"}));
}

TEST(PreTokenizer, SplitByRegex) {
  const std::string json =
      R"({"type":"Split","pattern":{"Regex":"[0-9]+|x*"},"behavior":"Isolated"})";
  EXPECT_EQ(Cut(json, "ab12xxc"), (Texts{"a", "b", "12", "xx", "c"}));
}

TEST(PreTokenizer, Simple) {
  EXPECT_EQ(Cut(R"({"type":"Digits","individual_digits":true})", "a12\u00bdb"),
            (Texts{"a", "1", "2", "\u00bd", "b"}));
  EXPECT_EQ(Cut(R"({"type":"Digits","individual_digits":false})", "a12b"), (Texts{"a", "12", "b"}));
  EXPECT_EQ(Cut(R"({"type":"Punctuation"})", "Hey\u2026 a_b+"),
            (Texts{"Hey", "\u2026", " a", "_", "b", "+"}));
  EXPECT_EQ(Cut(R"({"type":"Whitespace"})", " Hi there!? caf\u00e9 "),
            (Texts{"Hi", "there", "!?", "caf\u00e9"}));
  EXPECT_EQ(Cut(R"({"type":"WhitespaceSplit"})", " Hi there!\u3000x"),
            (Texts{"Hi", "there!", "x"}));
  EXPECT_EQ(Cut(R"({"type":"CharDelimiterSplit","delimiter":"|"})", "a||b"), (Texts{"a", "b"}));
}

TEST(PreTokenizer, Metaspace) {
  const std::string head = R"({"type":"Metaspace","replacement":"▁","prepend_scheme":)";
  EXPECT_EQ(Cut(head + R"("always"})", "Hey  you", false), (Texts{"▁Hey", "▁", "▁you"}));
  EXPECT_EQ(Cut(head + R"("first"})", "Hey", false), (Texts{"Hey"}));
  EXPECT_EQ(Cut(head + R"("first"})", "Hey", true), (Texts{"▁Hey"}));
  EXPECT_EQ(Cut(head + R"("always"})", " Hey"), (Texts{"▁Hey"}));
  EXPECT_EQ(Cut(head + R"("never","split":false})", "a b"), (Texts{"a▁b"}));
  EXPECT_EQ(Cut(R"({"type":"Metaspace","replacement":"▁","add_prefix_space":false})", "a"),
            (Texts{"a"}));
}

TEST(PreTokenizer, ByteLevelInTheMiddleRewritesBytes) {
  EXPECT_EQ(Cut(R"({"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"Digits"}]})",
                "a b1"),
            (Texts{"\u0120a", "\u0120b", "1"}));
  EXPECT_EQ(Cut(R"({"type":"ByteLevel","add_prefix_space":false})", "Hello  it's"),
            (Texts{"Hello", " ", " it", "'s"}));
}

TEST(PreTokenizer, RefusesTheUnknownByName) {
  const auto unknown = PreTokenizer::FromJson(Json::parse(R"({"type":"UnicodeScripts"})"));
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.status().message(), "unknown type \"UnicodeScripts\"");
  const auto normalizer = Normalizer::FromJson(Json::parse(R"({"type":"Nmt"})"));
  ASSERT_FALSE(normalizer.ok());
  EXPECT_EQ(normalizer.status().message(), "unknown type \"Nmt\"");
  EXPECT_FALSE(
      PreTokenizer::FromJson(Json::parse(R"({"type":"Split","pattern":{"Regex":"("}})")).ok());
}

// Characters at which the classes and the case folding of a regex engine matter.
std::string RandomText(std::mt19937& random, int chars) {
  static const std::vector<std::u32string> kAlphabets = {
      U"'sStTrReEvVmMlLdD\u017f\u212a x1", U" \n\r\t\v\u00a0\u2003\u3000\u0085ab.1",
      U"aZ\u00e9\u0301\u4e2d\u0bbf\u0966\u00bd\u2167\U0001F600\U0001D7D8,. \n"};
  const std::u32string& alphabet = kAlphabets[random() % kAlphabets.size()];
  std::string text;
  for (int i = 0; i < chars; ++i) {
    char32_t c = alphabet[random() % alphabet.size()];
    if (random() % 16 == 0) c = static_cast<char32_t>(random() % 0x110000);
    if (c >= 0xD800 && c < 0xE000) c = U'?';
    AppendUtf8(text, c);
  }
  return text;
}

TEST(TokenizerScan, EqualsOnigurumaOnRandomUnicode) {
  std::mt19937 random(7);
  for (const std::string_view pattern : {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern}) {
    const auto scanner = TextPattern::FromRegex(pattern);
    const auto regex = TextPattern::FromRegex(pattern, /*use_scanner=*/false);
    ASSERT_TRUE(scanner.ok() && regex.ok());
    for (int i = 0; i < 20000; ++i) {
      const std::string text = RandomText(random, 1 + static_cast<int>(random() % 24));
      std::vector<TextPattern::Span> got;
      std::vector<TextPattern::Span> want;
      ASSERT_TRUE(scanner->Cut(text, got).ok() && regex->Cut(text, want).ok());
      ASSERT_EQ(got.size(), want.size()) << Json(text).dump();
      for (size_t k = 0; k < got.size(); ++k) {
        ASSERT_EQ(got[k].end, want[k].end) << Json(text).dump();
        ASSERT_TRUE(want[k].is_match);
      }
    }
  }
}

TEST(TextPattern, HostileRegexEndsInAnError) {
  const auto pattern = TextPattern::FromRegex("(a|aa)+\\z");
  ASSERT_TRUE(pattern.ok());
  std::vector<TextPattern::Span> spans;
  EXPECT_EQ(pattern->Cut(std::string(3000, 'a') + "!", spans).code(), StatusCode::kInvalidArgument);
}

std::string Normalized(const std::string& json, std::string text) {
  const auto normalizer = Normalizer::FromJson(Json::parse(json));
  EXPECT_TRUE(normalizer.ok()) << normalizer.status().message();
  EXPECT_TRUE((*normalizer)->Apply(text).ok());
  return text;
}

TEST(Normalizer, Kinds) {
  EXPECT_EQ(Normalized(R"({"type":"NFC"})", "e\u0301"), "\u00e9");
  EXPECT_EQ(Normalized(R"({"type":"NFD"})", "\u00e9"), "e\u0301");
  EXPECT_EQ(Normalized(R"({"type":"NFKC"})", "\ufb01\u2460"), "fi1");
  EXPECT_EQ(Normalized(R"({"type":"NFKD"})", "\ufb01\u00e9"), "fie\u0301");
  EXPECT_EQ(Normalized(R"({"type":"Lowercase"})", "ÀΣ\u0130"), "àσi\u0307");
  EXPECT_EQ(Normalized(R"({"type":"StripAccents"})", "e\u0301a"), "ea");
  EXPECT_EQ(Normalized(R"({"type":"Strip","strip_left":true,"strip_right":false})", "\u3000 a "),
            "a ");
  EXPECT_EQ(Normalized(R"({"type":"Prepend","prepend":"▁"})", "a"), "▁a");
  EXPECT_EQ(Normalized(R"({"type":"Prepend","prepend":"▁"})", ""), "");
  EXPECT_EQ(
      Normalized(R"({"type":"Replace","pattern":{"Regex":" {2,}"},"content":"_"})", "a   b c"),
      "a_b c");
  EXPECT_EQ(Normalized(R"({"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"StripAccents"},
                           {"type":"Replace","pattern":{"String":"''"},"content":"\""}]})",
                       "''\u00e9''"),
            "\"e\"");
}

std::string Base64(const std::string& bytes) {
  static const char* kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) {
      bits = bits << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0);
    }
    for (int k = 3; k >= 0; --k) out.push_back(kAlphabet[bits >> (6 * k) & 63]);
  }
  for (size_t k = 0; k < (3 - bytes.size() % 3) % 3; ++k) out[out.size() - 1 - k] = '=';
  return out;
}

// A double array that maps "A" to "xy": the root's offset is 256, so "A" is unit 256 ^ 'A', whose
// offset 512 leads to its leaf.
TEST(Normalizer, PrecompiledCharsmap) {
  std::vector<uint32_t> units(1024, 0);
  units[0] = 256u << 10;
  const uint32_t node = 256 ^ 'A';
  units[node] = 512u << 10 | 1u << 8 | 'A';
  units[node ^ 512] = 0x80000000u | 1;
  const auto size = static_cast<uint32_t>(units.size() * 4);
  std::string bytes(reinterpret_cast<const char*>(&size), 4);
  bytes.append(reinterpret_cast<const char*>(units.data()), size);
  bytes.append(std::string("\0xy\0", 4));
  const std::string json =
      R"({"type":"Precompiled","precompiled_charsmap":")" + Base64(bytes) + "\"}";
  EXPECT_EQ(Normalized(json, "bAbA"), "bxybxy");
  EXPECT_EQ(Normalized(json, "éA\u0301"), "éxy");  // the grapheme's shortest prefix wins
  EXPECT_FALSE(
      Normalizer::FromJson(Json::parse(R"({"type":"Precompiled","precompiled_charsmap":"AA"})"))
          .ok());
}

}  // namespace
}  // namespace lacuna::server
