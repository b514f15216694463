// Asks every question of a suite with every variant, over HTTP like any client. Prompt-major: all
// variants of a prompt in turn, so that the server's prefix cache serves those that compute prompts
// alike. Runs an io_context on the calling thread until the last answer.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "server/client/http_client.h"
#include "server/eval/record.h"
#include "server/eval/suite.h"
#include "server/eval/variants.h"

namespace lacuna::server {

struct EvalRun final {
  const HttpTarget& target;
  std::string model;
  std::span<const EvalQuestion> questions;
  std::span<const EvalVariant> variants;
  int64_t max_tokens = 64;
  int64_t concurrency = 1;  // prompts at a time; times are of use at 1 only
  // (question, variant) pairs that are known from a former run.
  std::set<std::pair<std::string, std::string>> done;
};

// `on_record` sees each answer once. A variant that the server refuses is not asked again. Not ok
// when the server cannot be reached or went away, which ends the run.
Status RunEval(boost::asio::io_context& io, const EvalRun& run,
               const std::function<void(EvalRecord)>& on_record);

// What is left of a run after `done`, as work that grows with the length of prompts.
class EvalProgress final {
 public:
  EvalProgress(std::span<const EvalQuestion> questions, size_t variants);

  void Add(int64_t context_tokens, bool asked, double elapsed_s);
  // "\r[###...] 12/24, 0 failed, 35 s, 40 s left"
  std::string Bar(size_t failed, double elapsed_s) const;
  double remaining_s(double elapsed_s) const;

 private:
  size_t answers_ = 0, ended_ = 0;
  double work_ = 0, work_ended_ = 0, work_asked_ = 0, asked_s_ = 0;
};

}  // namespace lacuna::server
