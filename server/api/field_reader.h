// FieldReader: reads the members of one JSON object into plain variables, with bounds. The first
// error stays; later reads do nothing, so that a parser is a straight list of fields.
//
// One use, one thread. A member that is null counts as absent, as in OpenAI's API.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "server/api/api_error.h"

namespace lacuna::server {

class FieldReader final {
 public:
  // `object` must be a JSON object that outlives the reader; `path` is its name in messages, empty
  // for the body itself.
  FieldReader(const nlohmann::json& object, std::string path)
      : object_(object), path_(std::move(path)) {}

  bool ok() const { return !error_; }
  const ApiError& error() const { return *error_; }

  // The member, or null when absent or null, or after an error.
  const nlohmann::json* Find(std::string_view name);
  // Like Find, but absent is kMissing.
  const nlohmann::json* Require(std::string_view name);

  // Each returns true when the member was there and is valid.
  bool Bool(std::string_view name, bool& out);
  bool Number(std::string_view name, double min, double max, double& out);
  bool Int(std::string_view name, int64_t min, int64_t max, int64_t& out);
  bool String(std::string_view name, size_t bytes_max, std::string& out);
  // An array of at most `len_max`; null otherwise.
  const nlohmann::json* Array(std::string_view name, size_t len_max);

  // Members that are fine to send and have no effect here.
  void Ignore(std::initializer_list<std::string_view> names);
  // Members that must be absent, null, false, or empty: failing closed instead of ignoring them.
  void Refuse(std::initializer_list<std::string_view> names);
  // kBadValue for any member that no call above has named.
  void RefuseUnknown();

  // `name` may be a path below this object, such as "stop[3]".
  void Fail(ErrorKind kind, std::string_view name, std::string message);
  void Fail(ApiError error);
  std::string Path(std::string_view name) const;

 private:
  const nlohmann::json& object_;
  std::string path_;
  std::set<std::string, std::less<>> known_;
  std::optional<ApiError> error_;
};

// An integer in [min, max]; 5.0 counts as 5. Nothing for other JSON types and values.
std::optional<int64_t> AsInt(const nlohmann::json& value, int64_t min, int64_t max);

}  // namespace lacuna::server
