#include "server/api/json_parse.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace lacuna::server {
namespace {

using nlohmann::json;

// Builds the value bottom up on an explicit stack.
class BoundedBuilder final : public nlohmann::json_sax<json> {
 public:
  explicit BoundedBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(json(nullptr)); }
  bool boolean(bool value) override { return Add(json(value)); }
  bool number_integer(number_integer_t value) override { return Add(json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return Add(json(value)); }
  bool number_float(number_float_t value, const string_t&) override { return Add(json(value)); }
  bool string(string_t& value) override { return Add(json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("The body holds binary data."); }
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& value) override {
    keys_.back() = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail("The body is not valid JSON: error near byte " + std::to_string(position) + ".");
  }

  const std::string& error() const { return error_; }
  json& root() { return root_; }

 private:
  bool Fail(std::string message) {
    error_ = std::move(message);
    return false;
  }
  bool Count() {
    if (++nodes_ <= limits_.nodes_max) return true;
    return Fail("The body holds more than " + std::to_string(limits_.nodes_max) + " values.");
  }
  bool Open(json container) {
    if (static_cast<int64_t>(open_.size()) >= limits_.depth_max) {
      return Fail("The body is nested deeper than " + std::to_string(limits_.depth_max) + ".");
    }
    open_.push_back(std::move(container));
    keys_.emplace_back();
    return Count();
  }
  bool Close() {
    json done = std::move(open_.back());
    open_.pop_back();
    keys_.pop_back();
    Store(std::move(done));
    return true;
  }
  bool Add(json value) {
    if (!Count()) return false;
    Store(std::move(value));
    return true;
  }
  void Store(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().is_array()) {
      open_.back().push_back(std::move(value));
    } else {
      open_.back()[keys_.back()] = std::move(value);
    }
  }

  const JsonLimits limits_;
  std::vector<json> open_;
  std::vector<std::string> keys_;  // the last key read in each open container
  json root_;
  int64_t nodes_ = 0;
  std::string error_;
};

}  // namespace

ApiResult<json> ParseJsonObject(std::string_view body, const JsonLimits& limits) {
  BoundedBuilder builder(limits);
  if (!json::sax_parse(body, &builder)) {
    return ApiError{ErrorKind::kBadBody, builder.error(), {}};
  }
  if (!builder.root().is_object()) {
    return ApiError{ErrorKind::kBadBody, "The body must be a JSON object.", {}};
  }
  return std::move(builder.root());
}

}  // namespace lacuna::server
