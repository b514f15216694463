// The report of an evaluation as one HTML page: plots, tables, notes. Nothing outside the page is
// loaded, no script runs; readable in light and dark. Pure.
#pragma once

#include <string>

#include "server/eval/figures.h"

namespace lacuna::server {

std::string EvalHtml(const EvalReport& report);

}  // namespace lacuna::server
