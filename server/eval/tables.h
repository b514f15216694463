// The figures of an evaluation as tables: aligned text, Markdown; html_report.h has the page. Pure.
#pragma once

#include <string>
#include <vector>

#include "server/eval/figures.h"

namespace lacuna::server {

struct EvalTable final {
  std::string title;
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // as wide as the header; the first cell is a name
};

// For each length what it costs and how much is right, and by task; last the sum of lengths.
std::vector<EvalTable> EvalTables(const EvalReport& report);

// All tables, then notes and failures.
std::string EvalText(const EvalReport& report);
std::string EvalMarkdown(const EvalReport& report);

// 32768 -> "32K"
std::string LengthName(int64_t tokens);

}  // namespace lacuna::server
