#include "server/text/pairs_check.h"

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/text/tokenizer_json.h"

namespace lacuna::server {
namespace {

struct Pair {
  std::string text;
  std::vector<TokenId> ids;
  bool add_special_tokens = false;
};

Result<Pair> ParsePair(std::string_view line) {
  LACUNA_ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  Pair pair;
  LACUNA_ASSIGN_OR_RETURN(pair.text, JsonString(json, "text"));
  LACUNA_ASSIGN_OR_RETURN(pair.add_special_tokens, JsonBool(json, "add_special_tokens", false));
  LACUNA_ASSIGN_OR_RETURN(const Json* ids, JsonArray(json, "ids"));
  for (const Json& id : *ids) {
    if (!id.is_number_integer()) return InvalidArgument("ids: need integers");
    pair.ids.push_back(id.get<TokenId>());
  }
  return pair;
}

std::string Show(const std::vector<TokenId>& ids) { return Json(ids).dump(); }

// Decodes the texts between special tokens one by one, because a tokenizer that puts a space before
// its text puts one before each of them.
std::string DecodeParts(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::string text;
  for (size_t begin = 0; begin < ids.size();) {
    size_t end = begin;
    while (end < ids.size() && !tokenizer.IsSpecial(ids[end])) ++end;
    if (end == begin) ++end;
    text += tokenizer.Decode(std::span(ids).subspan(begin, end - begin), false);
    begin = end;
  }
  return text;
}

// Empty if the pair matches, else what is wrong.
std::string Check(const Tokenizer& tokenizer, const Pair& pair) {
  const auto ids = tokenizer.Encode(pair.text, {.add_special_tokens = pair.add_special_tokens});
  if (!ids.ok()) return ids.status().message();
  if (*ids != pair.ids) return "want " + Show(pair.ids) + " got " + Show(*ids);
  const auto plain = tokenizer.Encode(pair.text);
  if (!plain.ok()) return plain.status().message();
  const std::string decoded = DecodeParts(tokenizer, *plain);
  if (decoded == pair.text) return {};
  const auto again = tokenizer.Encode(decoded);
  if (again.ok() && *again == *plain) return {};
  return "ids " + Show(*plain) + " decode to " + Json(decoded).dump();
}

}  // namespace

Result<PairsReport> CheckPairs(const Tokenizer& tokenizer, std::istream& jsonl,
                               std::ostream& mismatches) {
  PairsReport report;
  std::string line;
  for (int64_t number = 1; std::getline(jsonl, line); ++number) {
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const auto pair = ParsePair(line);
    if (!pair.ok()) {
      return InvalidArgument("line " + std::to_string(number) + ": " + pair.status().message());
    }
    ++report.total;
    const std::string wrong = Check(tokenizer, *pair);
    report.matched += wrong.empty();
    if (!wrong.empty()) {
      mismatches << "line " << number << ": " << Json(pair->text).dump() << ": " << wrong << "\n";
    }
  }
  return report;
}

}  // namespace lacuna::server
