#include "server/eval/runner.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <chrono>
#include <cstdio>
#include <optional>

#include "kernels/core/clock.h"
#include "server/client/answer_reader.h"

namespace lacuna::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

std::string Body(const EvalRun& run, const EvalQuestion& question, const EvalVariant& variant) {
  nlohmann::ordered_json body = {
      {"model", run.model}, {"messages", question.messages},
      {"temperature", 0},   {"max_tokens", run.max_tokens},
      {"stream", true},     {"stream_options", {{"include_usage", true}}}};
  if (!variant.sparse.is_null()) body["sparse"] = variant.sparse;
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

class Run final {
 public:
  Run(asio::io_context& io, const EvalRun& run, const std::function<void(EvalRecord)>& on_record)
      : io_(io), run_(run), on_record_(on_record) {}

  Status Go() {
    for (int64_t i = 0; i < run_.concurrency; ++i) asio::co_spawn(io_, Work(), asio::detached);
    io_.restart();
    io_.run();
    return lost_;
  }

 private:
  asio::awaitable<void> Work() {
    HttpClient client(run_.target);
    while (next_ < run_.questions.size() && lost_.ok()) {
      const EvalQuestion& question = run_.questions[next_++];
      for (const EvalVariant& variant : run_.variants) {
        if (!lost_.ok()) break;
        if (run_.done.contains({question.id, variant.label})) continue;
        if (refused_.contains(variant.label)) continue;
        EvalRecord record{.question = question.id,
                          .task = question.task,
                          .variant = variant.label,
                          .context_tokens = question.context_tokens,
                          .error = {},
                          .text = {}};
        co_await Ask(client, question, variant, record);
        on_record_(std::move(record));
      }
    }
  }

  asio::awaitable<void> Ask(HttpClient& client, const EvalQuestion& question,
                            const EvalVariant& variant, EvalRecord& record) {
    std::string body = Body(run_, question, variant);
    const TimePoint begin = std::chrono::steady_clock::now();
    const auto lost = [&](const Status& status) {
      record.error = status.message();
      lost_ = Status(status.code(), question.id + ", " + variant.label + ": " + status.message());
    };
    const Status sent =
        co_await client.Send(http::verb::post, "/v1/chat/completions", std::move(body));
    if (!sent.ok()) co_return lost(sent);
    std::optional<AnswerReader> reader;
    TimePoint first{}, last{};
    const Result<unsigned> status =
        co_await client.Receive([&](unsigned http_status, std::string_view bytes) {
          if (!reader) reader.emplace(http_status, /*stream=*/true, /*chat=*/true);
          const int64_t before = reader->pieces();
          reader->Push(bytes);
          if (reader->pieces() == before) return true;
          last = std::chrono::steady_clock::now();
          if (before == 0) first = last;
          return true;
        });
    if (!status.ok()) co_return lost(status.status());
    reader->Finish();
    record.error = reader->error();
    if (!reader->detail().empty()) record.error += ": " + reader->detail();
    if (*status >= 400 && *status < 500) refused_.insert(variant.label);
    if (!record.error.empty()) co_return;
    record.text = reader->text();
    record.right = IsRight(question.answers, record.text);
    ReadUsage(reader->usage(), record);
    if (reader->pieces() == 0) first = last = std::chrono::steady_clock::now();
    record.ttft_s = Seconds(first - begin);
    record.decode_s = Seconds(last - first);
  }

  asio::io_context& io_;
  const EvalRun& run_;
  const std::function<void(EvalRecord)>& on_record_;
  size_t next_ = 0;
  std::set<std::string> refused_;
  Status lost_;
};

// Of one answer, in any unit: products grow with the length, attention with its square; the two are
// alike at 32K for small models.
double Work(int64_t context_tokens) {
  const auto tokens = static_cast<double>(context_tokens);
  return 500 + tokens * (1 + tokens / 32768);
}

}  // namespace

Status RunEval(asio::io_context& io, const EvalRun& run,
               const std::function<void(EvalRecord)>& on_record) {
  return Run(io, run, on_record).Go();
}

EvalProgress::EvalProgress(std::span<const EvalQuestion> questions, size_t variants)
    : answers_(questions.size() * variants) {
  for (const EvalQuestion& question : questions) {
    work_ += Work(question.context_tokens) * static_cast<double>(variants);
  }
}

void EvalProgress::Add(int64_t context_tokens, bool asked, double elapsed_s) {
  ++ended_;
  const double work = Work(context_tokens);
  work_ended_ += work;
  if (!asked) return;
  work_asked_ += work;
  asked_s_ = elapsed_s;
}

double EvalProgress::remaining_s(double elapsed_s) const {
  if (work_asked_ == 0) return 0;
  return std::max(0.0, (work_ - work_ended_) * asked_s_ / work_asked_ - (elapsed_s - asked_s_));
}

std::string EvalProgress::Bar(size_t failed, double elapsed_s) const {
  constexpr double kWidth = 30;
  const auto full = static_cast<size_t>(work_ == 0 ? 0 : kWidth * work_ended_ / work_);
  char tail[96];
  std::snprintf(tail, sizeof tail, "] %zu/%zu, %zu failed, %.0f s, %.0f s left   ", ended_,
                answers_, failed, elapsed_s, remaining_s(elapsed_s));
  return "\r[" + std::string(full, '#') + std::string(static_cast<size_t>(kWidth) - full, '.') +
         tail;
}

}  // namespace lacuna::server
