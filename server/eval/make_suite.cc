#include "server/eval/make_suite.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "kernels/core/random.h"
#include "server/eval/suite_facts.h"

namespace lacuna::server {
namespace {

constexpr int64_t kKeys[] = {4, 16, 48};  // things that facts are about, as in the shared suite
constexpr int64_t kNeedleKeys = 4;
constexpr int64_t kTextTokensMin = 1024;
constexpr int kFitRoundsMax = 8;

bool StartsCodePoint(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }

// Where facts may stand: behind a sentence's end, or a blank line; else behind any word.
std::vector<size_t> Gaps(std::string_view text) {
  std::vector<size_t> gaps;
  for (size_t i = 2; i < text.size(); ++i) {
    const char before = text[i - 1];
    const bool quoted = before == '"' || before == '\'';
    const char stop = quoted ? text[i - 2] : before;
    const bool sentence = text[i] == ' ' && (stop == '.' || stop == '!' || stop == '?');
    const bool paragraph = before == '\n' && text[i - 2] == '\n' && text[i] != '\n';
    if (sentence || paragraph) gaps.push_back(i);
  }
  if (!gaps.empty()) return gaps;
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == ' ') gaps.push_back(i);
  }
  if (!gaps.empty()) return gaps;
  for (size_t i = 1; i < text.size(); ++i) {
    if (StartsCodePoint(text[i])) gaps.push_back(i);
  }
  if (gaps.empty()) gaps.push_back(text.size());
  return gaps;
}

// `count` tokens from `first` on, around the end if need be, as text. What a cut code point leaves
// at either end is dropped.
std::string Piece(std::span<const TokenId> tokens, int64_t first, int64_t count,
                  const Tokenizer& tokenizer) {
  std::vector<TokenId> ids;
  ids.reserve(static_cast<size_t>(count));
  const auto size = static_cast<int64_t>(tokens.size());
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(tokens[static_cast<size_t>((first + i) % size)]);
  std::string text = tokenizer.Decode(ids, /*skip_special_tokens=*/true);
  constexpr std::string_view kBroken = "\xef\xbf\xbd";
  while (text.ends_with(kBroken)) text.resize(text.size() - kBroken.size());
  while (text.starts_with(kBroken)) text.erase(0, kBroken.size());
  return text;
}

Status CheckOptions(const SuiteOptions& options) {
  for (const int64_t length : options.lengths) {
    if (length < kSuiteTokensMin || length > kSuiteTokensMax) {
      return InvalidArgument("--lengths: got " + std::to_string(length) + ", need " +
                             std::to_string(kSuiteTokensMin) + " to " +
                             std::to_string(kSuiteTokensMax) + " tokens");
    }
  }
  for (const std::string& task : options.tasks) {
    const auto tasks = SuiteTasks();
    if (std::ranges::find(tasks, task) != tasks.end()) continue;
    std::string names;
    for (const std::string_view name : tasks) names.append(names.empty() ? "" : ", ").append(name);
    return InvalidArgument("--tasks: got " + task + ", need of " + names);
  }
  return OkStatus();
}

class Maker final {
 public:
  Maker(const Tokenizer& tokenizer, const CountPrompt& count_prompt, std::vector<TokenId> tokens)
      : tokenizer_(tokenizer), count_prompt_(count_prompt), tokens_(std::move(tokens)) {}

  Result<std::string> Line(const std::string& task, int64_t length, int64_t number,
                           Random& random) const {
    int64_t keys = task == "needle" ? kNeedleKeys : kKeys[random.Below(std::size(kKeys))];
    // Facts are to be found: they are at most half of a prompt.
    FactSheet sheet = MakeFacts(task, keys, number, random);
    while (true) {
      LACUNA_ASSIGN_OR_RETURN(const int64_t facts, FactTokens(sheet));
      if (facts <= length / 2 || keys == 1) break;
      keys = std::max<int64_t>(keys / 2, 1);
      sheet = MakeFacts(task, keys, number, random);
    }
    const int64_t first = random.Below(static_cast<int64_t>(tokens_.size()));
    LACUNA_ASSIGN_OR_RETURN(const std::string prompt, Fit(sheet, length, first, random.Next()));
    const nlohmann::ordered_json line = {
        {"id", task + "-" + std::to_string(length) + "-" + std::to_string(number)},
        {"task", task},
        {"context_tokens", length},
        {"messages", {{{"role", "user"}, {"content", prompt}}}},
        {"answers", sheet.answers}};
    return line.dump() + "\n";
  }

 private:
  Result<int64_t> FactTokens(const FactSheet& sheet) const {
    std::string text;
    for (const std::string& fact : sheet.facts) text += " " + fact;
    LACUNA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer_.Encode(text));
    return static_cast<int64_t>(ids.size());
  }

  // As much text as makes a prompt of `length` tokens, found in a few rounds: tokens join or part
  // where a fact is put between them.
  Result<std::string> Fit(const FactSheet& sheet, int64_t length, int64_t first,
                          uint64_t seed) const {
    LACUNA_ASSIGN_OR_RETURN(const int64_t facts, FactTokens(sheet));
    const int64_t slack = std::max<int64_t>(length / 100, 32);
    int64_t count = std::max<int64_t>(length - facts - 64, 16);
    std::string best;
    for (int round = 0; round < kFitRoundsMax; ++round) {
      std::string prompt = HideFacts(Piece(tokens_, first, count, tokenizer_), sheet.facts, seed) +
                           "\n\n" + sheet.question;
      LACUNA_ASSIGN_OR_RETURN(const int64_t tokens, count_prompt_(prompt));
      const int64_t missing = length - tokens;
      if (missing >= 0) best = std::move(prompt);
      if (missing >= 0 && missing <= slack) return best;
      if (count + missing < 16) break;
      // One more than too many: the next round rather ends a little short.
      count += missing >= 0 ? missing - slack / 4 : missing - slack / 4 - 1;
    }
    if (!best.empty()) return best;
    return InvalidArgument("--lengths: got " + std::to_string(length) +
                           ", need more tokens for facts and a question");
  }

  const Tokenizer& tokenizer_;
  const CountPrompt& count_prompt_;
  const std::vector<TokenId> tokens_;
};

}  // namespace

std::string HideFacts(std::string_view text, const std::vector<std::string>& facts, uint64_t seed) {
  const std::vector<size_t> gaps = Gaps(text);
  Random random(seed);
  std::map<size_t, std::string> hidden;  // by place
  for (const std::string& fact : facts) {
    const auto gap = static_cast<size_t>(random.Uniform() * static_cast<double>(gaps.size()));
    hidden[gaps[gap]] += " " + fact;
  }
  std::string out;
  size_t at = 0;
  for (const auto& [place, sentence] : hidden) {
    out.append(text.substr(at, place - at)).append(sentence);
    at = place;
  }
  return out.append(text.substr(at));
}

Result<std::string> MakeSuite(const SuiteOptions& options, std::string_view text,
                              const Tokenizer& tokenizer, const CountPrompt& count_prompt,
                              const std::function<void()>& on_question) {
  LACUNA_RETURN_IF_ERROR(CheckOptions(options));
  LACUNA_ASSIGN_OR_RETURN(
      std::vector<TokenId> tokens,
      tokenizer.Encode(text, {.add_special_tokens = false, .match_special_tokens = false}));
  if (static_cast<int64_t>(tokens.size()) < kTextTokensMin) {
    return InvalidArgument("--text: got " + std::to_string(tokens.size()) + " tokens, need " +
                           std::to_string(kTextTokensMin) + " or more");
  }
  const Maker maker(tokenizer, count_prompt, std::move(tokens));
  std::string suite;
  for (const std::string& task : options.tasks) {
    for (const int64_t length : options.lengths) {
      for (int64_t i = 0; i < options.count; ++i) {
        // Each question by itself, so that other lengths or tasks change none of it.
        uint64_t seed = options.seed * 0x100000001b3ull + static_cast<uint64_t>(length);
        for (const char c : task) seed = seed * 31 + static_cast<unsigned char>(c);
        Random random(Random(seed + static_cast<uint64_t>(i) * 0x9e3779b9ull).Next());
        LACUNA_ASSIGN_OR_RETURN(const std::string line, maker.Line(task, length, i, random));
        suite += line;
        if (on_question) on_question();
      }
    }
  }
  return suite;
}

}  // namespace lacuna::server
