#include "server/eval/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>

namespace lacuna::server {
namespace {

constexpr double kWidth = 460, kHeight = 320;
constexpr double kLeft = 52, kRight = 24, kTop = 34, kBottom = 44;
constexpr double kXMin = 0.01, kXMax = 1.0;
constexpr double kCharWidth = 5.8, kLineHeight = 12;  // of a label, about
constexpr int kShapes = 4;

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

// A coordinate: a tenth of a pixel is fine enough.
std::string At(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

// To a list of "x,y".
void AddPoint(double x, double y, std::string& points) {
  points.append(points.empty() ? "" : " ").append(At(x)).append(",").append(At(y));
}

struct Box final {
  double x0 = 0, y0 = 0, x1 = 0, y1 = 0;
  bool Overlaps(const Box& other) const {
    return x0 < other.x1 && other.x0 < x1 && y0 < other.y1 && other.y0 < y1;
  }
};

std::string ColorClass(int color) { return std::string("c").append(std::to_string(color)); }

struct Dot final {
  const PlotPoint* point = nullptr;
  double x = 0, y = 0;
};

double XOf(double share) {
  const double clamped = std::clamp(share, kXMin, kXMax);
  return kLeft + (kWidth - kLeft - kRight) * std::log(clamped / kXMin) / std::log(kXMax / kXMin);
}

double YOf(const Plot& plot, double value) {
  const double clamped = std::clamp(value, plot.y_min, plot.y_max);
  const double share = (clamped - plot.y_min) / (plot.y_max - plot.y_min);
  return kHeight - kBottom - (kHeight - kTop - kBottom) * share;
}

// 1, 2 or 5 times a power of ten, for about five lines.
double TickStep(double span) {
  const double raw = span / 5, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * 0.999) return factor * power;
  }
  return 10 * power;
}

std::string Line(const char* kind, double x0, double y0, double x1, double y1) {
  return std::string("<line class=\"") + kind + "\" x1=\"" + At(x0) + "\" y1=\"" + At(y0) +
         "\" x2=\"" + At(x1) + "\" y2=\"" + At(y1) + "\"/>\n";
}

std::string Text(const char* kind, const char* anchor, double x, double y, std::string_view text) {
  return std::string("<text class=\"") + kind + "\" text-anchor=\"" + anchor + "\" x=\"" + At(x) +
         "\" y=\"" + At(y) + "\">" + EscapeHtml(text) + "</text>\n";
}

std::string Axes(const Plot& plot) {
  const double bottom = kHeight - kBottom, right = kWidth - kRight;
  std::string svg = Text("title", "start", kLeft, 18, plot.title);
  for (const double share : {0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0}) {
    svg += Line("grid", XOf(share), kTop, XOf(share), bottom);
    svg += Text("tick", "middle", XOf(share), bottom + 15, Number(100 * share) + " %");
  }
  const double step = TickStep(plot.y_max - plot.y_min);
  const auto first = static_cast<int>(std::ceil(plot.y_min / step));
  const auto last = static_cast<int>(std::floor(plot.y_max / step + 0.001));
  for (int tick = first; tick <= last; ++tick) {
    const double y = tick * step;
    svg += Line("grid", kLeft, YOf(plot, y), right, YOf(plot, y));
    svg += Text("tick", "end", kLeft - 6, YOf(plot, y) + 4, Number(y) + plot.y_unit);
  }
  if (plot.y_mark >= plot.y_min && plot.y_mark <= plot.y_max) {
    svg += Line("mark", kLeft, YOf(plot, plot.y_mark), right, YOf(plot, plot.y_mark));
  }
  svg += Text("name", "middle", (kLeft + right) / 2, kHeight - 8, plot.x_name);
  return svg;
}

std::string Shape(const Dot& dot) {
  constexpr double kR = 4.5;
  const std::string open = "<g class=\"" + ColorClass(dot.point->color) + "\"><title>" +
                           EscapeHtml(dot.point->label) + "</title>";
  const auto polygon = [&](std::initializer_list<std::array<double, 2>> corners) {
    std::string points;
    for (const auto& [dx, dy] : corners) {
      AddPoint(dot.x + kR * dx, dot.y + kR * dy, points);
    }
    return open + "<polygon points=\"" + points + "\"/></g>\n";
  };
  switch (dot.point->shape % kShapes) {
    case 1:
      return polygon({{0, -1.2}, {1.2, 0}, {0, 1.2}, {-1.2, 0}});
    case 2:
      return polygon({{0, -1.2}, {1.1, 0.8}, {-1.1, 0.8}});
    case 3:
      return polygon({{-0.9, -0.9}, {0.9, -0.9}, {0.9, 0.9}, {-0.9, 0.9}});
    default:
      return open + "<circle cx=\"" + At(dot.x) + "\" cy=\"" + At(dot.y) + "\" r=\"" + At(kR) +
             "\"/></g>\n";
  }
}

// Joins the points of a series.
std::string Paths(const std::vector<Dot>& dots) {
  std::map<std::string, std::vector<const Dot*>> series;
  for (const Dot& dot : dots) series[dot.point->series].push_back(&dot);
  std::string svg;
  for (const auto& [name, line] : series) {
    if (line.size() < 2) continue;
    std::string points;
    for (const Dot* dot : line) AddPoint(dot->x, dot->y, points);
    svg += "<polyline class=\"" + ColorClass(line[0]->point->color) + "\" points=\"" + points +
           "\"/>\n";
  }
  return svg;
}

// A label beside each point where it covers neither a point nor another label; those of coloured
// points first.
std::string Labels(const std::vector<Dot>& dots) {
  std::vector<Box> taken;
  for (const Dot& dot : dots) taken.push_back({dot.x - 6, dot.y - 6, dot.x + 6, dot.y + 6});
  std::vector<const Dot*> order;
  for (const Dot& dot : dots) order.push_back(&dot);
  std::stable_partition(order.begin(), order.end(),
                        [](const Dot* dot) { return dot->point->color != 0; });
  std::string svg;
  for (const Dot* dot : order) {
    const double width = kCharWidth * static_cast<double>(dot->point->label.size());
    struct Place final {
      double dx, dy;
      const char* anchor;
    };
    constexpr Place kPlaces[] = {{9, 4, "start"},   {-9, 4, "end"},   {0, -9, "middle"},
                                 {0, 17, "middle"}, {8, -8, "start"}, {-8, -8, "end"},
                                 {8, 16, "start"},  {-8, 16, "end"}};
    for (const Place& place : kPlaces) {
      const double x = dot->x + place.dx, y = dot->y + place.dy;
      const double left = *place.anchor == 's'   ? x
                          : *place.anchor == 'e' ? x - width
                                                 : x - width / 2;
      const Box box{left, y - kLineHeight + 2, left + width, y + 2};
      const bool inside = box.x0 >= kLeft && box.x1 <= kWidth - 2 && box.y0 >= kTop - 8 &&
                          box.y1 <= kHeight - kBottom;
      if (!inside || std::ranges::any_of(taken, [&](const Box& b) { return b.Overlaps(box); })) {
        continue;
      }
      taken.push_back(box);
      svg += Text(std::string("label ").append(ColorClass(dot->point->color)).c_str(), place.anchor,
                  x, y, dot->point->label);
      break;
    }
  }
  return svg;
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string PlotSvg(const Plot& plot) {
  std::vector<Dot> dots;
  for (const PlotPoint& point : plot.points) {
    dots.push_back({&point, XOf(point.x), YOf(plot, point.y)});
  }
  std::string svg = "<svg viewBox=\"0 0 " + Number(kWidth) + " " + Number(kHeight) +
                    "\" role=\"img\" aria-label=\"" + EscapeHtml(plot.title) + "\">\n";
  svg += Axes(plot) + Paths(dots);
  for (const Dot& dot : dots) svg += Shape(dot);
  return svg + Labels(dots) + "</svg>\n";
}

}  // namespace lacuna::server
