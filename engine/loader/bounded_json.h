// JSON files of a model folder: parsed with a bound on depth, and typed reads of their fields.
//
// nlohmann destroys and copies values recursively (its issue 5387), so depth is checked before a
// value exists. A key that is named twice is an error: two readers could take different ones.
// Pure functions; any thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/core/status.h"

namespace lacuna::engine {

// An object at the top, nothing after it. kInvalidArgument: "FILE: ...".
Result<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view file,
                                       int depth_max = 16);

// Reads the fields of one object; the first error is kept, and reads after it give the fallback.
// A field that is absent or null gives the fallback; one without fallback is then an error.
class FieldReader final {
 public:
  // `path` precedes a key in messages: "config.json: " or "config.json: rope_scaling.".
  FieldReader(const nlohmann::json& object, std::string path)
      : object_(object), path_(std::move(path)) {}

  bool Has(const char* key) const;                                        // there, and not null
  bool Contains(const char* key) const { return object_.contains(key); }  // there, or null
  int64_t Int(const char* key, int64_t min, int64_t max, std::optional<int64_t> fallback = {});
  double Double(const char* key, double min, double max, std::optional<double> fallback = {});
  bool Bool(const char* key, bool fallback);
  std::string String(const char* key, std::string fallback);
  // The object under `key`, or null when there is none.
  const nlohmann::json* Object(const char* key);
  const nlohmann::json* Array(const char* key, size_t size_max);

  void Fail(std::string_view key, std::string_view expected, std::string_view found);
  void Fail(const Status& status) {
    if (status_.ok()) status_ = status;  // an ok one changes nothing
  }
  const Status& status() const { return status_; }
  const std::string& path() const { return path_; }

 private:
  const nlohmann::json* Find(const char* key) const;

  const nlohmann::json& object_;
  std::string path_;
  Status status_;
};

// A short, one-line picture of a value for a message.
std::string Describe(const nlohmann::json& value);

}  // namespace lacuna::engine
