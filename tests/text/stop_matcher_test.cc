#include "server/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace lacuna::server {
namespace {

// Feeds `text` in random pieces and returns all that was sent.
StopMatcher::Output Feed(StopMatcher matcher, const std::string& text, std::mt19937& random) {
  StopMatcher::Output all;
  for (size_t pos = 0; pos < text.size();) {
    const size_t bytes = 1 + random() % 4;
    const auto out = matcher.Push(std::string_view(text).substr(pos, bytes));
    all.text += out.text;
    pos += bytes;
  }
  const auto last = matcher.Flush();
  return {all.text + last.text, last.stopped, last.matched};
}

TEST(StopMatcher, AcrossPieces) {
  StopMatcher matcher({"</s>", "STOP"});
  EXPECT_EQ(matcher.Push("a<").text, "a");
  EXPECT_EQ(matcher.Push("/").text, "");
  EXPECT_EQ(matcher.Push("b</").text, "</b");
  const auto out = matcher.Push("s>tail");
  EXPECT_TRUE(out.stopped);
  EXPECT_EQ(out.text, "");
  EXPECT_EQ(out.matched, "</s>");
  EXPECT_EQ(matcher.Push("more").text, "");
  EXPECT_EQ(matcher.Flush().text, "");
}

TEST(StopMatcher, IncludesTheStopWhenAsked) {
  StopMatcher matcher({"END"}, /*include_stop=*/true);
  EXPECT_EQ(matcher.Push("xE").text, "x");
  EXPECT_EQ(matcher.Push("NDy").text, "END");
}

TEST(StopMatcher, FirstCompleteWinsThenTheLongest) {
  std::mt19937 random(1);
  EXPECT_EQ(Feed(StopMatcher({"abcd", "bc"}), "xabcdy", random).matched, "bc");
  EXPECT_EQ(Feed(StopMatcher({"c", "abc", "bc"}), "xabc", random).matched, "abc");
}

TEST(StopMatcher, FlushGivesTheHeldText) {
  StopMatcher matcher({"abab", ""});
  EXPECT_EQ(matcher.Push("zaba").text, "z");
  const auto out = matcher.Flush();
  EXPECT_EQ(out.text, "aba");
  EXPECT_FALSE(out.stopped);
}

TEST(StopMatcher, RandomEqualsSearchInTheWholeText) {
  std::mt19937 random(5);
  const auto word = [&random](size_t bytes) {
    std::string text;
    while (text.size() < bytes) text.push_back("ab"[random() % 2]);
    return text;
  };
  for (int round = 0; round < 5000; ++round) {
    const std::vector<std::string> stops = {word(2 + random() % 5), word(3 + random() % 5)};
    const std::string text = word(random() % 30);
    size_t end = text.npos;  // of the first complete stop string
    std::string matched;
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == text.npos) continue;
      const size_t stop_end = at + stop.size();
      if (stop_end < end || (stop_end == end && stop.size() > matched.size())) {
        end = stop_end;
        matched = stop;
      }
    }
    const auto out = Feed(StopMatcher(stops), text, random);
    ASSERT_EQ(out.stopped, end != text.npos);
    ASSERT_EQ(out.matched, matched);
    ASSERT_EQ(out.text, end == text.npos ? text : text.substr(0, end - matched.size()));
  }
}

}  // namespace
}  // namespace lacuna::server
