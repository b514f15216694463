// LACUNA_CHECK: an invariant of ours, always compiled in; a failure prints one line and aborts.
// A request, a file or a config must never be able to reach one: those get a Status.
#pragma once

namespace lacuna {

[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);

}  // namespace lacuna

#define LACUNA_CHECK(condition)                        \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : ::lacuna::CheckFailed(#condition, __FILE__, __LINE__))

// Only inside hot loops.
#ifdef NDEBUG
#define LACUNA_DCHECK(condition) static_cast<void>(0)
#else
#define LACUNA_DCHECK(condition) LACUNA_CHECK(condition)
#endif
