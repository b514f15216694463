// A field table describes every key of a plain config struct: name, meaning, unit, default, bounds.
//
// Each layer owns its struct and its table; field_reader.h reads and prints by them. The default of
// a field is the value in a default-constructed struct. Supported kinds: bool, int64_t, double,
// std::string, std::vector<std::string>, std::vector<int64_t>.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace lacuna {

template <typename Config>
struct Field final {
  using Member =
      std::variant<bool Config::*, int64_t Config::*, double Config::*, std::string Config::*,
                   std::vector<std::string> Config::*, std::vector<int64_t> Config::*>;
  std::string_view name;     // "queue_len_max"; units last
  std::string_view meaning;  // one sentence
  Member member;
  // Of numbers and of the items of a number list; of the length of a string or a list of strings.
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  std::string_view choices = "";  // strings: "auto|cpu|cuda"; empty for any
};

// "got X, need Y" parts shared by every checker; the caller prefixes file and key.
std::string NeedRange(double min, double max);  // "a number from 1 to 8"

}  // namespace lacuna
