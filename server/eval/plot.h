// A scatter plot as inline SVG, styled by classes of the page around it (html_report.cc). Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lacuna::server {

struct PlotPoint final {
  std::string label;  // beside the point, where there is room, and when pointed at
  double x = 0, y = 0;
  std::string series;  // points of one are joined in their order
  int shape = 0;       // 0 circle, 1 diamond, 2 triangle, 3 square; more: again from 0
  int color = 0;       // class c0, c1, ...; 0 is the quiet one
};

// x is a share of 1 on a logarithmic axis from 1 % (smaller ones lie on its edge), y linear.
struct Plot final {
  std::string title, x_name;
  double y_min = 0, y_max = 1;
  std::string y_unit;  // "%" or "x"; after each number
  double y_mark = -1;  // a dashed line; below y_min: none
  std::vector<PlotPoint> points;
};

std::string PlotSvg(const Plot& plot);

// & < > " ' as entities.
std::string EscapeHtml(std::string_view text);

}  // namespace lacuna::server
