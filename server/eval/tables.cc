#include "server/eval/tables.h"

#include <algorithm>
#include <cstdio>

namespace lacuna::server {
namespace {

std::string Format(const char* format, double value) {
  char text[48];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// "-": nothing chooses, as in dense prefill and behind fixed windows.
std::string DecodeRead(const EvalFigures& f) {
  if (f.decode_read) return Format("%.1f %%", 100 * *f.decode_read);
  return f.dense_steps > 0 && f.sparse_steps == 0 ? "dense" : "-";
}

std::string PrefillRead(const EvalFigures& f) {
  if (f.prefill_read) return Format("%.1f %%", 100 * *f.prefill_read);
  return f.prefilled == 0 ? "cached" : "-";
}

std::string Times(const std::optional<double>& ratio) {
  return ratio ? Format("%.2fx", *ratio) : "-";
}

std::string Ttft(const EvalFigures& f) {
  return f.ttft_s ? Format("%.0f", 1000 * *f.ttft_s) : "cached";
}

std::string Right(const EvalCell& cell) {
  return std::to_string(cell.right) + " of " + std::to_string(cell.count);
}

std::string LengthTitle(int64_t length) {
  return length == 0 ? "all lengths" : std::to_string(length) + " tokens";
}

EvalTable CostTable(const EvalReport& report, int64_t length) {
  const bool all = length == 0;
  EvalTable table;
  table.title = "Right and cost, " + LengthTitle(length);
  table.header = {"profile", "right", "%", "lost, gained", "decode reads", "prefill reads"};
  // Times of different lengths do not add up to anything.
  if (!all) {
    table.header.insert(table.header.end(),
                        {"TTFT ms", "against dense", "decode tokens/s", "against dense"});
  }
  const bool audited = std::ranges::any_of(report.variants, [&](const EvalVariant& v) {
    const EvalFigures* f = report.Find(v.label, length);
    return f != nullptr && f->captured_mass;
  });
  if (audited) table.header.push_back("captured mass");
  for (const EvalVariant& variant : report.variants) {
    const EvalFigures* f = report.Find(variant.label, length);
    if (f == nullptr) continue;
    std::vector<std::string> row = {variant.label,
                                    Right(f->all),
                                    Format("%.1f", 100 * f->all.share()),
                                    std::to_string(f->lost) + ", " + std::to_string(f->gained),
                                    DecodeRead(*f),
                                    PrefillRead(*f)};
    if (!all) {
      const bool dense = variant.label == kEvalDense;
      row.insert(row.end(), {Ttft(*f), dense ? "1" : Times(f->ttft_speedup),
                             f->decode_tokens_per_s ? Format("%.0f", *f->decode_tokens_per_s) : "-",
                             dense ? "1" : Times(f->decode_speedup)});
    }
    if (audited) row.push_back(f->captured_mass ? Format("%.3f", *f->captured_mass) : "-");
    table.rows.push_back(std::move(row));
  }
  return table;
}

EvalTable TaskTable(const EvalReport& report, int64_t length) {
  EvalTable table;
  table.title = "Right by task, " + LengthTitle(length);
  table.header = {"profile"};
  table.header.insert(table.header.end(), report.tasks.begin(), report.tasks.end());
  for (const EvalVariant& variant : report.variants) {
    const EvalFigures* f = report.Find(variant.label, length);
    if (f == nullptr) continue;
    std::vector<std::string> row = {variant.label};
    for (const std::string& task : report.tasks) {
      const auto cell = f->tasks.find(task);
      row.push_back(cell == f->tasks.end() ? "-"
                                           : std::to_string(cell->second.right) + "/" +
                                                 std::to_string(cell->second.count));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string TextTable(const EvalTable& table) {
  std::vector<size_t> widths;
  for (const std::string& name : table.header) widths.push_back(name.size());
  for (const auto& row : table.rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text = table.title + "\n";
  const auto add = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      text += (i == 0 ? "  " : "   ") + (i == 0 ? row[i] + space : space + row[i]);
    }
    while (text.ends_with(' ')) text.pop_back();
    text += "\n";
  };
  add(table.header);
  for (const auto& row : table.rows) add(row);
  return text;
}

std::string MarkdownCell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

std::string MarkdownTable(const EvalTable& table) {
  std::string text = "### " + table.title + "\n\n";
  const auto add = [&](const std::vector<std::string>& row) {
    for (const std::string& cell : row) text += "| " + MarkdownCell(cell) + " ";
    text += "|\n";
  };
  add(table.header);
  text += "|---|" + [&] {
    std::string rule;
    for (size_t i = 1; i < table.header.size(); ++i) rule += "---:|";
    return rule;
  }() + "\n";
  for (const auto& row : table.rows) add(row);
  return text;
}

}  // namespace

std::string LengthName(int64_t tokens) {
  return tokens % 1024 == 0 ? std::to_string(tokens / 1024) + "K" : std::to_string(tokens);
}

std::vector<EvalTable> EvalTables(const EvalReport& report) {
  std::vector<EvalTable> tables;
  std::vector<int64_t> lengths = report.lengths;
  if (lengths.size() > 1) lengths.push_back(0);
  for (const int64_t length : lengths) {
    tables.push_back(CostTable(report, length));
    tables.push_back(TaskTable(report, length));
  }
  return tables;
}

std::string EvalText(const EvalReport& report) {
  std::string text;
  for (const EvalTable& table : EvalTables(report)) text += TextTable(table) + "\n";
  for (const std::string& note : report.notes) text += note + "\n";
  for (const std::string& failure : report.failures) text += "failed: " + failure + "\n";
  return text;
}

std::string EvalMarkdown(const EvalReport& report) {
  std::string text;
  for (const EvalTable& table : EvalTables(report)) text += MarkdownTable(table) + "\n";
  for (const std::string& note : report.notes) text += "- " + MarkdownCell(note) + "\n";
  for (const std::string& failure : report.failures) {
    text += "- Failed: " + MarkdownCell(failure) + "\n";
  }
  return text;
}

}  // namespace lacuna::server
