// Status and Result<T>: how every layer reports an error. No exceptions cross our own layers.
//
// Three classes, never mixed: the caller's fault (kInvalidArgument .. kUnauthenticated), a
// resource's (kExhausted .. kCancelled) and ours (kInternal; a broken invariant is a LACUNA_CHECK
// instead). A message is one line, says what is wrong with the input, and shows nothing internal.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "kernels/core/check.h"

namespace lacuna {

enum class StatusCode {
  kOk,
  // The caller's.
  kInvalidArgument,
  kNotFound,
  kTooLong,  // a prompt longer than the context or the page pool
  kUnauthenticated,
  // A resource's.
  kExhausted,  // a queue or a pool is full; try later
  kDeadline,
  kUnavailable,  // loading or draining
  kCancelled,
  // Ours.
  kInternal,
};

std::string_view StatusCodeName(StatusCode code);

class [[nodiscard]] Status final {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "invalid_argument: message"
  std::string ToString() const;

  bool operator==(const Status&) const = default;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return {}; }
inline Status InvalidArgument(std::string message) {
  return {StatusCode::kInvalidArgument, std::move(message)};
}
inline Status NotFound(std::string message) { return {StatusCode::kNotFound, std::move(message)}; }
inline Status Exhausted(std::string message) {
  return {StatusCode::kExhausted, std::move(message)};
}
inline Status InternalError(std::string message) {
  return {StatusCode::kInternal, std::move(message)};
}

template <typename T>
class [[nodiscard]] Result final {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}        // NOLINT: implicit
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {  // NOLINT: implicit
    LACUNA_CHECK(!std::get<1>(state_).ok());
  }

  bool ok() const { return state_.index() == 0; }
  const Status& status() const {
    static const Status kOk;
    return ok() ? kOk : std::get<1>(state_);
  }
  T& value() & {
    LACUNA_CHECK(ok());
    return std::get<0>(state_);
  }
  const T& value() const& {
    LACUNA_CHECK(ok());
    return std::get<0>(state_);
  }
  T&& value() && {
    LACUNA_CHECK(ok());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace lacuna

#define LACUNA_RETURN_IF_ERROR(expr)                 \
  do {                                               \
    ::lacuna::Status lacuna_status_ = (expr);        \
    if (!lacuna_status_.ok()) return lacuna_status_; \
  } while (false)

#define LACUNA_CONCAT_INNER(a, b) a##b
#define LACUNA_CONCAT(a, b) LACUNA_CONCAT_INNER(a, b)
#define LACUNA_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                                 \
  if (!tmp.ok()) return tmp.status();                \
  lhs = std::move(tmp).value()
// LACUNA_ASSIGN_OR_RETURN(auto x, MakeX());
#define LACUNA_ASSIGN_OR_RETURN(lhs, expr) \
  LACUNA_ASSIGN_OR_RETURN_IMPL(LACUNA_CONCAT(lacuna_result_, __LINE__), lhs, expr)
