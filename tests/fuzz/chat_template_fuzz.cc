// A template and its variables from one input, split at the first NUL byte: any text must parse and
// render, or fail, within its limits.
#include <nlohmann/json.hpp>

#include "server/text/chat_template.h"

using lacuna::server::ChatTemplate;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(input.find('\0'), input.size());
  const auto parsed = ChatTemplate::Parse(std::string(input.substr(0, split)));
  if (!parsed.ok()) return 0;
  auto variables =
      nlohmann::ordered_json::parse(input.substr(std::min(split + 1, size)), nullptr, false);
  if (!variables.is_object()) {
    variables = {{"messages",
                  {{{"role", "user"}, {"content", "a\nb 'c' \xC3\xA9"}},
                   {{"role", "tool"}, {"content", nullptr}, {"n", -2.5}}}},
                 {"s", "Hello, World"},
                 {"l", {3, 1, 2}},
                 {"d", {{"a", 1}, {"b", {{"c", true}}}}},
                 {"n", 7}};
  }
  ChatTemplate::Limits limits;
  limits.steps_max = 20'000;
  limits.output_bytes_max = 1 << 16;
  const auto text = (*parsed)->Render(variables, limits, 1721952000);
  if (text.ok() && text->size() > (1 << 16)) __builtin_trap();
  return 0;
}
