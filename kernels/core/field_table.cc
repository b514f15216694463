#include "kernels/core/field_table.h"

#include <cmath>
#include <cstdio>

namespace lacuna {
namespace {

std::string FormatNumber(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.15g", value);
  return text;
}

}  // namespace

std::string NeedRange(double min, double max) {
  if (std::isinf(min) && std::isinf(max)) return "a number";
  if (std::isinf(max)) return "a number of at least " + FormatNumber(min);
  if (std::isinf(min)) return "a number of at most " + FormatNumber(max);
  return "a number from " + FormatNumber(min) + " to " + FormatNumber(max);
}

}  // namespace lacuna
