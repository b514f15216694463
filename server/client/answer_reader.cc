#include "server/client/answer_reader.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace lacuna::server {
namespace {

using nlohmann::json;

constexpr size_t kErrorBytesMax = 64 << 10;

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

void AnswerReader::KeepDetail(const json& answer) {
  const json::json_pointer message("/error/message");
  if (!answer.is_object() || !answer.contains(message)) return;
  if (answer.at(message).is_string()) detail_ = answer.at(message).get<std::string>();
  std::ranges::replace(detail_, '\n', ' ');
}

void AnswerReader::Push(std::string_view bytes) {
  if (!error_.empty()) {
    body_.append(bytes.substr(0, kErrorBytesMax - std::min(kErrorBytesMax, body_.size())));
    return;
  }
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
  if (event.contains("error")) {
    KeepDetail(event);
    return Fail("stream error");
  }
  const auto usage = event.find("usage");
  if (usage != event.end() && usage->is_object()) {
    usage_ = *usage;
    input_tokens_ = IntOr0(*usage, "prompt_tokens");
    output_tokens_ = IntOr0(*usage, "completion_tokens");
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array()) return;
  for (const json& choice : *choices) {
    if (!choice.is_object()) return Fail("bad answer");
    const std::string text = TextOf(choice, chat_, stream_);
    pieces_ += !text.empty();
    text_ += text;
    const auto reason = choice.find("finish_reason");
    finished_ = finished_ || (reason != choice.end() && reason->is_string());
  }
}

void AnswerReader::Finish() {
  if (!error_.empty()) {
    if (detail_.empty()) KeepDetail(json::parse(body_, nullptr, false));
    return;
  }
  if (!stream_) {
    OnEvent(body_);
    done_ = finished_;
  }
  if (!done_ || !finished_) Fail("truncated");
  if (usage_.is_null()) output_tokens_ = pieces_;
}

}  // namespace lacuna::server
