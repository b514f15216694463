// ChatTemplate: the Jinja subset that published chat templates use, rendered as Hugging Face
// transformers renders it (trim_blocks and lstrip_blocks on, the last newline dropped, an immutable
// sandbox: templates see values, never attributes of the program).
//
// Immutable after Parse; Render may be called from any thread. Work is bounded: steps, output bytes
// and nesting, at parse time as well as at render time, whatever the template says.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/core/status.h"

namespace lacuna::server {

namespace jinja {
struct Program;
}

struct ChatTemplateLimits {
  int64_t steps_max = 1'000'000;       // nodes evaluated and bytes touched by filters, together
  int64_t output_bytes_max = 8 << 20;  // of the prompt, and of any one string made on the way
  int depth_max = 64;                  // macro calls inside each other (64 at most)
};

class ChatTemplate final {
 public:
  // Errors (kInvalidArgument): "chat template: line 3: ..."
  static Result<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);
  ~ChatTemplate();

  using Limits = ChatTemplateLimits;

  // `variables` (an object): messages, tools, add_generation_prompt, bos_token, eos_token, ... The
  // caller decides which names a request may set. `now_unix_s`: what strftime_now prints, in UTC;
  // the wall clock when absent. Errors: kInvalidArgument with the template's own message for
  // raise_exception, with the line for anything else; kTooLong when a limit is met.
  Result<std::string> Render(const nlohmann::ordered_json& variables, const Limits& limits = {},
                             std::optional<int64_t> now_unix_s = {}) const;

 private:
  explicit ChatTemplate(std::unique_ptr<const jinja::Program> program);

  std::unique_ptr<const jinja::Program> program_;
};

}  // namespace lacuna::server
