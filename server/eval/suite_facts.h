// Facts for a prompt, and a question about one of them, in the wording of recall-12m's suite.
// Decided by the Random alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/random.h"

namespace lacuna::server {

struct FactSheet final {
  std::vector<std::string> facts;  // sentences, in the order that they are put into the text
  std::string question;
  std::vector<std::string> answers;
};

// needle: a pass key or a thing's place among three others; multi_key: a magic number, uuid or word
// of one key among many; multi_value: all values of one key; key_value: a pair or a setting; lines:
// a register; bios: what a person has or is.
std::span<const std::string_view> SuiteTasks();

// `task` is one of SuiteTasks; `keys`: how many things the facts are about, at least 1. Tasks of
// two kinds take turns by `number`.
FactSheet MakeFacts(std::string_view task, int64_t keys, int64_t number, Random& random);

}  // namespace lacuna::server
