#include "server/commands/tokenize_command.h"

#include <fstream>
#include <iterator>

#include "server/text/pairs_check.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

int RunTokenize(const TokenizeOptions& options, std::ostream& out, std::ostream& err) {
  std::ifstream file(options.tokenizer, std::ios::binary);
  if (!file) {
    err << "lacuna: " << options.tokenizer << ": cannot be read\n";
    return 2;
  }
  const std::string json{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto tokenizer = Tokenizer::FromJson(json);
  if (!tokenizer.ok()) {
    err << "lacuna: " << options.tokenizer << ": " << tokenizer.status().message() << "\n";
    return 2;
  }
  std::ifstream pairs(options.pairs, std::ios::binary);
  if (!pairs) {
    err << "lacuna: " << options.pairs << ": cannot be read\n";
    return 2;
  }
  const Result<PairsReport> report = CheckPairs(**tokenizer, pairs, out);
  if (!report.ok()) {
    err << "lacuna: " << options.pairs << ": " << report.status().message() << "\n";
    return 2;
  }
  out << report->matched << " of " << report->total << " match\n";
  return report->matched == report->total ? 0 : 1;
}

}  // namespace lacuna::server
