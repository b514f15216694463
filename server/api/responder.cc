#include "server/api/responder.h"

#include <algorithm>
#include <utility>

#include "server/api/sparse_fields.h"

namespace lacuna::server {
namespace {

using nlohmann::ordered_json;

std::string Dump(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace

void AppendSse(const ordered_json& value, std::string& out) {
  out += "data: ";
  out += Dump(value);  // holds no newline: JSON escapes them
  out += "\n\n";
}

Responder::Responder(Header header, Shape shape, std::vector<Choice> choices)
    : header_(std::move(header)),
      shape_(shape),
      choices_(std::move(choices)),
      usages_(choices_.size()) {}

std::vector<int> Responder::descriptors() const {
  std::vector<int> fds;
  for (const Choice& choice : choices_) fds.push_back(choice.fd());
  return fds;
}

void Responder::Begin(std::string& out) {
  if (begun_ || !shape_.streaming) return;
  begun_ = true;
  OnBegin(out);
}

bool Responder::Pump(std::string& out) {
  for (size_t i = 0; i < choices_.size() && !complete_; ++i) {
    while (std::optional<Choice::Delta> delta = choices_[i].Poll()) {
      if (delta->outcome && !delta->outcome->error.ok()) {
        Fail(FromStatus(delta->outcome->error), out);
        break;
      }
      Begin(out);
      usages_[i].completion_tokens += static_cast<int64_t>(delta->tokens.size());
      if (delta->outcome) {
        usages_[i] = delta->outcome->usage;
        sparse_usage_of_ = delta->outcome->sparse_usage_of;
      }
      OnDelta(i, *delta, out);
    }
  }
  if (!complete_ && std::ranges::all_of(choices_, &Choice::done)) End(out);
  return complete_;
}

void Responder::End(std::string& out) {
  complete_ = true;
  if (!begun_) return;
  if (shape_.include_usage) {
    ordered_json chunk = Envelope();
    chunk["choices"] = ordered_json::array();
    chunk["usage"] = UsageJson();
    AppendSse(chunk, out);
  }
  out += kSseDone;
}

void Responder::Fail(ApiError error, std::string& out) {
  if (complete_) return;
  complete_ = true;
  for (Choice& choice : choices_) {
    if (!choice.done()) choice.Cancel();
  }
  if (begun_) {
    out += "data: " + error.Json() + "\n\n";
    out += kSseDone;
  }
  error_ = std::move(error);
}

HttpReply Responder::Reply() {
  if (error_) return ErrorReply(*error_);
  ordered_json body = Envelope();
  body["choices"] = Choices();
  body["usage"] = UsageJson();
  HttpReply reply;
  reply.body = Dump(body);
  return reply;
}

void Responder::AppendChunk(ordered_json choice, std::string& out) const {
  ordered_json chunk = Envelope();
  chunk["choices"] = ordered_json::array({std::move(choice)});
  if (shape_.include_usage) {
    chunk["usage"] = shape_.continuous_usage ? UsageJson() : ordered_json(nullptr);
  }
  AppendSse(chunk, out);
}

ordered_json Responder::Envelope() const {
  return {{"id", header_.id},
          {"object", header_.object},
          {"created", header_.created_s},
          {"model", header_.model},
          {"system_fingerprint", header_.system_fingerprint.empty()
                                     ? ordered_json(nullptr)
                                     : ordered_json(header_.system_fingerprint)}};
}

// The prompt of n choices is counted once, with what the first of them found in the cache.
ordered_json Responder::UsageJson() const {
  engine::Usage sum;
  for (size_t i = 0; i < usages_.size(); ++i) {
    sum.completion_tokens += usages_[i].completion_tokens;
    AddSparseUsage(usages_[i].sparse, sum.sparse);
    if (i % static_cast<size_t>(shape_.n) != 0) continue;
    sum.prompt_tokens += usages_[i].prompt_tokens;
    sum.cached_tokens += usages_[i].cached_tokens;
  }
  ordered_json usage = {{"prompt_tokens", sum.prompt_tokens},
                        {"completion_tokens", sum.completion_tokens},
                        {"total_tokens", sum.prompt_tokens + sum.completion_tokens},
                        {"prompt_tokens_details", {{"cached_tokens", sum.cached_tokens}}},
                        {"completion_tokens_details", {{"reasoning_tokens", 0}}}};
  if (complete_ && !sparse_usage_of_.empty()) {
    usage["sparse"] = SparseUsageJson(sparse_usage_of_, sum.sparse);
  }
  return usage;
}

}  // namespace lacuna::server
