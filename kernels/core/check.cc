#include "kernels/core/check.h"

#include <cstdio>
#include <cstdlib>

namespace lacuna {

void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "lacuna: broken invariant: %s (%s:%d)\n", condition, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace lacuna
