// The words that facts of generated suites are made of: those that recall-12m was trained on.
#pragma once

#include <span>
#include <string_view>

namespace lacuna::server {

struct SuiteWords final {
  std::span<const std::string_view> adjectives, nouns;
  std::span<const std::string_view> first_names, last_names;
  std::span<const std::string_view> cities, jobs, colors, pets, pet_names, rooms, settings;
};

const SuiteWords& Words();

}  // namespace lacuna::server
