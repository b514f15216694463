#include "bench/load/answer_reader.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace lacuna::bench {
namespace {

using nlohmann::json;

int64_t IntOr0(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

// The text of a choice, or nothing.
std::string TextOf(const json& choice, bool chat, bool stream) {
  const json* holder = &choice;
  if (chat) {
    const auto inner = choice.find(stream ? "delta" : "message");
    if (inner == choice.end() || !inner->is_object()) return "";
    holder = &*inner;
  }
  const auto text = holder->find(chat ? "content" : "text");
  return text != holder->end() && text->is_string() ? text->get<std::string>() : "";
}

}  // namespace

AnswerReader::AnswerReader(unsigned http_status, bool stream, bool chat)
    : stream_(stream), chat_(chat) {
  if (http_status != 200) error_ = std::string("http ").append(std::to_string(http_status));
}

void AnswerReader::Fail(std::string error) {
  if (error_.empty()) error_ = std::move(error);
}

void AnswerReader::Push(std::string_view bytes) {
  if (!error_.empty()) return;
  if (!stream_) {
    body_.append(bytes);
    return;
  }
  sse_.Push(bytes);
  while (const std::optional<std::string> data = sse_.Next()) {
    if (*data == "[DONE]") {
      done_ = true;
    } else {
      OnEvent(*data);
    }
  }
}

void AnswerReader::OnEvent(std::string_view data) {
  const json event = json::parse(data.begin(), data.end(), nullptr, false);
  if (!event.is_object()) return Fail("bad answer");
  if (event.contains("error")) return Fail("stream error");
  const auto usage = event.find("usage");
  if (usage != event.end() && usage->is_object()) {
    has_usage_ = true;
    input_tokens_ = IntOr0(*usage, "prompt_tokens");
    output_tokens_ = IntOr0(*usage, "completion_tokens");
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array()) return;
  for (const json& choice : *choices) {
    if (!choice.is_object()) return Fail("bad answer");
    if (!TextOf(choice, chat_, stream_).empty()) ++pieces_;
    const auto reason = choice.find("finish_reason");
    finished_ = finished_ || (reason != choice.end() && reason->is_string());
  }
}

void AnswerReader::Finish() {
  if (!error_.empty()) return;
  if (!stream_) {
    OnEvent(body_);
    done_ = finished_;
  }
  if (!done_ || !finished_) Fail("truncated");
  if (!has_usage_) output_tokens_ = pieces_;
}

}  // namespace lacuna::bench
