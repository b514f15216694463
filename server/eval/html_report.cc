#include "server/eval/html_report.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "server/eval/plot.h"
#include "server/eval/tables.h"

namespace lacuna::server {
namespace {

constexpr const char* kHead = R"(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lacuna: quality beside speed</title>
<style>
:root { color-scheme: light dark; --ground: #fdfdfc; --ink: #1c1e21; --quiet: #6a7078; --line: #e2e4e8;
  --c0: #8a9099; --c1: #1f6fd6; --c2: #c2571a; --c3: #2f8a4e; --c4: #8046c4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15171a; --ink: #e8eaed; --quiet: #9aa1ab; --line: #2c3036;
    --c0: #838b96; --c1: #6aa9ff; --c2: #f0955a; --c3: #67c587; --c4: #b98cf2; }
}
body { margin: 0 auto; padding: 24px; max-width: 1120px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 32px 0 8px; }
p, li { max-width: 80ch; }
.about { color: var(--quiet); margin: 0 0 16px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 16px; }
.plots > div { border: 1px solid var(--line); border-radius: 6px; padding: 6px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
svg .label { paint-order: stroke; stroke: var(--ground); stroke-width: 3px; }
svg .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .label.c1, svg .label.c2, svg .label.c3, svg .label.c4 { fill: var(--ink); }
svg .grid { stroke: var(--line); }
svg .mark { stroke: var(--quiet); stroke-dasharray: 4 4; }
svg g { stroke: var(--ground); stroke-width: 1; fill: var(--c0); }
svg g.c1 { fill: var(--c1); } svg g.c2 { fill: var(--c2); }
svg g.c3 { fill: var(--c3); } svg g.c4 { fill: var(--c4); }
svg polyline { fill: none; stroke: var(--c0); stroke-opacity: .5; }
svg polyline.c1 { stroke: var(--c1); } svg polyline.c2 { stroke: var(--c2); }
svg polyline.c3 { stroke: var(--c3); } svg polyline.c4 { stroke: var(--c4); }
.scroll { overflow-x: auto; }
table { font-size: 14px; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--quiet); font-weight: 500; }
</style>
</head>
<body>
)";

constexpr const char* kHowTo =
    "<p class=\"about\">Right: every answer occurs in the text. Decode and prefill reads: the "
    "share of pages and of blocks that sparse steps selected; \"dense\": every step was; \"-\": "
    "nothing "
    "chooses there. Cached: prompts whose prefill another profile had done. TTFT: median over "
    "computed prompts. In the plots a profile's points are joined: a circle is its defaults, the "
    "other shapes are budgets; the dashed line is dense.</p>\n";

// Our own profiles have colours; of the rest the label tells.
int ColorOf(const std::string& profile) {
  if (profile == kEvalDense) return 4;
  if (profile == "lacuna-balanced") return 1;
  if (profile == "lacuna-fast") return 2;
  return profile == "lacuna-safe" ? 3 : 0;
}

// What a plot takes of a cell; a point needs both.
struct Axis final {
  std::optional<double> EvalFigures::*share;
  const char* name;
  const char* dial;  // scales it; budgets of other dials leave it as it is
};
constexpr Axis kDecode{&EvalFigures::decode_read, "share of pages read in decode",
                       "budget_fraction"};
constexpr Axis kPrefill{&EvalFigures::prefill_read, "share of blocks read in prefill",
                        "prefill_fraction"};

using ValueOf = std::optional<double> (*)(const EvalFigures&);

std::map<double, int> ShapesOf(const EvalReport& report) {
  std::map<double, int> shapes;
  for (const EvalVariant& variant : report.variants) {
    shapes.emplace(variant.fraction, static_cast<int>(shapes.size()));
  }
  return shapes;
}

std::vector<PlotPoint> Points(const EvalReport& report, int64_t length, const Axis& axis,
                              ValueOf value_of) {
  const std::map<double, int> shapes = ShapesOf(report);
  std::vector<PlotPoint> points;
  for (const EvalVariant& variant : report.variants) {
    const EvalFigures* f = report.Find(variant.label, length);
    if (f == nullptr || (variant.fraction > 0 && !variant.sparse.contains(axis.dial))) continue;
    const bool dense = variant.label == kEvalDense;
    const std::optional<double> share = dense ? 1.0 : f->*axis.share;
    const std::optional<double> value = value_of(*f);
    if (!share || !value) continue;
    points.push_back({variant.label, *share, *value, variant.profile, shapes.at(variant.fraction),
                      ColorOf(variant.profile)});
  }
  return points;
}

// Empty when only dense would be in it.
std::string AccuracyPlot(const EvalReport& report, int64_t length, const Axis& axis) {
  Plot plot{.title = "Accuracy, " + std::to_string(length) + " tokens",
            .x_name = axis.name,
            .y_max = 100,
            .y_unit = " %",
            .points = Points(report, length, axis, [](const EvalFigures& f) {
              return std::optional<double>(100 * f.all.share());
            })};
  if (plot.points.size() < 2) return "";
  double low = 100;
  for (const PlotPoint& point : plot.points) low = std::min(low, point.y);
  plot.y_min = std::max(0.0, std::floor((low - 4) / 10) * 10);
  plot.y_mark = plot.points[0].label == kEvalDense ? plot.points[0].y : -1;
  return "<div>" + PlotSvg(plot) + "</div>\n";
}

std::string SpeedPlot(const EvalReport& report, int64_t length, const Axis& axis, const char* title,
                      ValueOf value_of) {
  Plot plot{.title = std::string(title) + " against dense, " + std::to_string(length) + " tokens",
            .x_name = axis.name,
            .y_unit = "x",
            .y_mark = 1,
            .points = Points(report, length, axis, value_of)};
  if (plot.points.size() < 2) return "";
  double high = 1.5;
  for (const PlotPoint& point : plot.points) high = std::max(high, point.y);
  plot.y_max = std::ceil(high * 1.05 * 2) / 2;
  return "<div>" + PlotSvg(plot) + "</div>\n";
}

std::string Plots(const EvalReport& report) {
  std::string html;
  for (const int64_t length : report.lengths) {
    std::string plots = AccuracyPlot(report, length, kDecode);
    plots += SpeedPlot(report, length, kDecode, "Decode speed",
                       [](const EvalFigures& f) { return f.decode_speedup; });
    plots += AccuracyPlot(report, length, kPrefill);
    plots += SpeedPlot(report, length, kPrefill, "Time to the first token",
                       [](const EvalFigures& f) { return f.ttft_speedup; });
    if (plots.empty()) continue;
    html.append("<h2>").append(std::to_string(length)).append(" tokens</h2>\n");
    html.append("<div class=\"plots\">\n").append(plots).append("</div>\n");
  }
  return html;
}

std::string Legend(const EvalReport& report) {
  constexpr const char* kNames[] = {"circle", "diamond", "triangle", "square"};
  std::string text;
  std::vector<std::pair<int, double>> shapes;
  for (const auto& [fraction, shape] : ShapesOf(report)) shapes.emplace_back(shape, fraction);
  std::ranges::sort(shapes);
  for (const auto& [shape, fraction] : shapes) {
    text += (text.empty() ? "" : ", ") + std::string(kNames[shape % 4]) + " " +
            (fraction == 0 ? "defaults" : Percent(fraction));
  }
  return "<p class=\"about\">" + EscapeHtml(text) + "</p>\n";
}

std::string HtmlTable(const EvalTable& table) {
  std::string html =
      "<h2>" + EscapeHtml(table.title) + "</h2>\n<div class=\"scroll\"><table>\n<tr>";
  for (const std::string& name : table.header) html += "<th>" + EscapeHtml(name) + "</th>";
  html += "</tr>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + EscapeHtml(cell) + "</td>";
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

std::string List(const char* title, const std::vector<std::string>& lines) {
  if (lines.empty()) return "";
  std::string html = std::string("<h2>") + title + "</h2>\n<ul>\n";
  for (const std::string& line : lines) html += "<li>" + EscapeHtml(line) + "</li>\n";
  return html + "</ul>\n";
}

}  // namespace

std::string EvalHtml(const EvalReport& report) {
  std::string html = kHead;
  html += "<h1>Quality beside speed</h1>\n<p class=\"about\">" +
          EscapeHtml(report.model + ", " + report.suite + ", " + report.when) + "</p>\n";
  html += kHowTo + Legend(report) + Plots(report);
  for (const EvalTable& table : EvalTables(report)) html += HtmlTable(table);
  html += List("Notes", report.notes) + List("Failed", report.failures);
  return html + "</body>\n</html>\n";
}

}  // namespace lacuna::server
