#include "server/text/chat_template.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "server/text/jinja_interpreter.h"
#include "server/text/jinja_parser.h"

namespace lacuna::server {
namespace {

// Evaluations inside each other for each macro call that may be: the deepest templates of the
// tests run in 512 KiB of stack (optimised; threads have 8 MiB).
constexpr int kNestingPerMacro = 8;
constexpr int kDepthCeiling = 64;

int64_t WallClock() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

}  // namespace

ChatTemplate::ChatTemplate(std::unique_ptr<const jinja::Program> program)
    : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  LACUNA_ASSIGN_OR_RETURN(jinja::Program program, jinja::ParseTemplate(source));
  auto owned = std::make_unique<const jinja::Program>(std::move(program));
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(owned)));
}

Result<std::string> ChatTemplate::Render(const nlohmann::ordered_json& variables,
                                         const Limits& limits,
                                         std::optional<int64_t> now_unix_s) const {
  Result<jinja::Value> values = jinja::Value::FromJson(variables);
  if (!values.ok()) {
    return Status(values.status().code(), "chat template: " + values.status().message());
  }
  if (values->AsDict() == nullptr)
    return InvalidArgument("chat template: variables: not an object");
  const int depth_max = std::min(limits.depth_max, kDepthCeiling);
  jinja::Runtime runtime(jinja::Budget(limits.steps_max, limits.output_bytes_max),
                         now_unix_s.value_or(WallClock()), depth_max * kNestingPerMacro);
  jinja::Interpreter interpreter(runtime, depth_max);
  Result<std::string> text = interpreter.Run(*program_, *values->AsDict());
  if (text.ok() || runtime.raised) return text;
  return Status(text.status().code(), "chat template: line " + std::to_string(interpreter.line()) +
                                          ": " + text.status().message());
}

}  // namespace lacuna::server
