#include "server/commands/make_suite_command.h"

#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "server/commands/calibrate_prompts.h"
#include "server/commands/served_model.h"
#include "server/eval/make_suite.h"
#include "server/eval/suite_facts.h"

namespace lacuna::server {
namespace {

// gzip without name and time, so that equal suites are equal files.
bool WriteGzip(const std::string& path, const std::string& text) {
  gzFile file = gzopen(path.c_str(), "wb9");
  if (file == nullptr) return false;
  const bool whole = gzfwrite(text.data(), 1, text.size(), file) == text.size();
  return gzclose(file) == Z_OK && whole;
}

bool WritePlain(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  return static_cast<bool>(file.flush());
}

Result<int64_t> PromptTokens(const ServedModel& model, std::string_view user_text) {
  std::string prompt(user_text);
  if (model.chat_template != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(prompt, model.chat_template->Render(
                                        {{"messages", {{{"role", "user"}, {"content", user_text}}}},
                                         {"add_generation_prompt", true},
                                         {"bos_token", model.bos_token},
                                         {"eos_token", model.eos_token}},
                                        // A prompt of the longest suite, not of a stranger.
                                        {.output_bytes_max = 256 << 20}));
  }
  LACUNA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, model.tokenizer->Encode(prompt));
  return static_cast<int64_t>(ids.size());
}

Result<std::string> Make(const MakeSuiteOptions& options, std::ostream& err) {
  std::string text;
  for (const std::string& path : options.texts) {
    LACUNA_ASSIGN_OR_RETURN(const std::string one, ReadTextFile(path));
    text += one;
    if (!text.ends_with('\n')) text += '\n';
  }
  LACUNA_ASSIGN_OR_RETURN(const auto folder, OpenModelFolder(options.model));
  LACUNA_ASSIGN_OR_RETURN(const ServedModel model, LoadServedModel(*folder));
  SuiteOptions suite{options.seed, options.lengths, options.tasks, options.count};
  if (suite.tasks.empty()) suite.tasks.assign(SuiteTasks().begin(), SuiteTasks().end());
  const size_t all = suite.tasks.size() * suite.lengths.size() * static_cast<size_t>(suite.count);
  size_t made = 0;
  Result<std::string> lines = MakeSuite(
      suite, text, *model.tokenizer,
      [&](std::string_view user_text) { return PromptTokens(model, user_text); },
      [&] {
        if (!options.quiet) err << "\r" << ++made << " of " << all << " questions " << std::flush;
      });
  if (made > 0) err << "\n";
  return lines;
}

}  // namespace

int RunMakeSuite(const MakeSuiteOptions& options, std::ostream& out, std::ostream& err) {
  const Result<std::string> suite = Make(options, err);
  if (!suite.ok()) {
    err << "lacuna make-suite: " << suite.status().message() << std::endl;
    return 2;
  }
  const bool packed = options.out.ends_with(".gz");
  if (!(packed ? WriteGzip(options.out, *suite) : WritePlain(options.out, *suite))) {
    err << "lacuna make-suite: --out: got " << options.out << ", need a file that can be written"
        << std::endl;
    return 2;
  }
  out << options.out << ": " << std::count(suite->begin(), suite->end(), '\n') << " questions\n";
  return 0;
}

}  // namespace lacuna::server
