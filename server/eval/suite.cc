#include "server/eval/suite.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "kernels/core/json_text.h"

namespace lacuna::server {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLineBytesMax = 64 << 20;
constexpr int64_t kContextTokensMax = int64_t{1} << 31;
constexpr size_t kNameBytesMax = 128, kAnswersMax = 64;

Status Bad(const std::string& key, const std::string& got, const std::string& need) {
  return InvalidArgument(key + ": got " + got + ", need " + need);
}

Status ReadName(const Json& row, const char* key, std::string& out) {
  const auto value = row.find(key);
  const bool fine = value != row.end() && value->is_string();
  if (fine) out = value->get<std::string>();
  if (fine && !out.empty() && out.size() <= kNameBytesMax) return OkStatus();
  return Bad(key, fine ? "a text of " + std::to_string(out.size()) + " bytes" : "no text",
             "1 to 128 bytes");
}

Result<EvalQuestion> ReadQuestion(std::string_view line) {
  LACUNA_ASSIGN_OR_RETURN(Json row,
                          ParseJsonText(line, {.bytes_max = kLineBytesMax, .depth_max = 8}));
  if (!row.is_object()) return InvalidArgument("got no JSON object, need one in each line");
  EvalQuestion question;
  LACUNA_RETURN_IF_ERROR(ReadName(row, "id", question.id));
  LACUNA_RETURN_IF_ERROR(ReadName(row, "task", question.task));
  const auto tokens = row.find("context_tokens");
  const bool whole = tokens != row.end() && tokens->is_number_unsigned();
  if (whole) question.context_tokens = static_cast<int64_t>(tokens->get<uint64_t>());
  if (!whole || question.context_tokens < 1 || question.context_tokens > kContextTokensMax) {
    return Bad("context_tokens", whole ? tokens->dump() : "no whole number", "1 to 2147483648");
  }
  const auto messages = row.find("messages");
  if (messages == row.end() || !messages->is_array() || messages->empty()) {
    return Bad("messages", "no list", "a list of chat messages");
  }
  question.messages = std::move(*messages);
  const auto answers = row.find("answers");
  if (answers == row.end() || !answers->is_array() || answers->empty() ||
      answers->size() > kAnswersMax) {
    return Bad("answers", "no list", "a list of 1 to 64 texts");
  }
  for (const Json& answer : *answers) {
    if (!answer.is_string() || answer.get_ref<const std::string&>().empty()) {
      return Bad("answers", answer.dump().substr(0, 40), "texts that are not empty");
    }
    question.answers.push_back(answer.get<std::string>());
  }
  return question;
}

// "FLAG: got X, need one of ..." unless every wanted one is there.
template <typename T>
Status CheckWanted(const char* flag, const std::vector<T>& wanted, const std::set<T>& there) {
  const auto show = [](const T& one) {
    if constexpr (std::is_same_v<T, std::string>) {
      return one;
    } else {
      return std::to_string(one);
    }
  };
  for (const T& one : wanted) {
    if (there.contains(one)) continue;
    std::string names;
    for (const T& name : there) names += (names.empty() ? "" : ", ") + show(name);
    return InvalidArgument(std::string(flag) + ": got " + show(one) + ", need one of " + names);
  }
  return OkStatus();
}

template <typename T>
bool Wanted(const std::vector<T>& wanted, const T& one) {
  return wanted.empty() || std::ranges::find(wanted, one) != wanted.end();
}

}  // namespace

Result<std::vector<EvalQuestion>> ParseSuite(std::string_view text, const std::string& file) {
  std::vector<EvalQuestion> suite;
  std::set<std::string, std::less<>> ids;
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    Result<EvalQuestion> question = ReadQuestion(line);
    Status status = question.status();
    if (status.ok() && !ids.insert(question->id).second) {
      status = Bad("id", "\"" + question->id + "\" again", "another for each question");
    }
    if (!status.ok()) {
      return InvalidArgument(file + ": line " + std::to_string(number) + ": " + status.message());
    }
    suite.push_back(std::move(*question));
  }
  if (suite.empty()) return InvalidArgument(file + ": got no questions, need one in each line");
  return suite;
}

Result<std::vector<EvalQuestion>> ChooseQuestions(std::vector<EvalQuestion> suite,
                                                  const EvalChoice& choice) {
  std::set<int64_t> lengths;
  std::set<std::string> tasks;
  for (const EvalQuestion& question : suite) {
    lengths.insert(question.context_tokens);
    tasks.insert(question.task);
  }
  LACUNA_RETURN_IF_ERROR(CheckWanted("--lengths", choice.lengths, lengths));
  LACUNA_RETURN_IF_ERROR(CheckWanted("--tasks", choice.tasks, tasks));
  std::erase_if(suite, [&](const EvalQuestion& question) {
    return !Wanted(choice.lengths, question.context_tokens) || !Wanted(choice.tasks, question.task);
  });
  if (suite.empty()) {
    return InvalidArgument("--lengths, --tasks: got no question that is both, need one");
  }
  const auto limit = static_cast<size_t>(choice.limit);
  if (limit == 0 || suite.size() <= limit) return suite;
  // In rounds: the n-th question of each cell before the n + 1st of any.
  std::map<std::pair<int64_t, std::string>, int64_t> seen;
  std::vector<std::pair<int64_t, size_t>> by_round;
  for (size_t i = 0; i < suite.size(); ++i) {
    by_round.emplace_back(seen[{suite[i].context_tokens, suite[i].task}]++, i);
  }
  std::ranges::sort(by_round);
  by_round.resize(limit);
  std::ranges::sort(by_round, {}, &std::pair<int64_t, size_t>::second);
  std::vector<EvalQuestion> chosen;
  for (const auto& [round, i] : by_round) chosen.push_back(std::move(suite[i]));
  return chosen;
}

bool IsRight(std::span<const std::string> answers, std::string_view text) {
  return std::ranges::all_of(answers, [&](const std::string& answer) {
    return text.find(answer) != std::string_view::npos;
  });
}

}  // namespace lacuna::server
