// `lacuna verify`: compares a model with logits that another implementation computed.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/commands/device_options.h"

namespace lacuna::server {

struct VerifyOptions final {
  std::string model;  // folder
  std::string
      expected;  // safetensors with input_ids [n] i32, logits [n, vocab] f32, greedy [m] i32
  DeviceOptions device;
};

struct VerifyReport final {
  struct Miss {
    int64_t index = 0;
    TokenId got = 0, expected = 0;
    float margin = 0.0f;  // how much more likely the model finds `got`, in logits
  };
  double rel_error = 0.0;  // ||logits - expected||_2 / ||expected||_2 over all logits
  double max_abs = 0.0;
  // The continuation is fed with the expected tokens: it matches in all if and only if a free
  // running one does, and a miss does not hide those after it.
  int64_t greedy_tokens = 0;
  std::vector<Miss> misses;
  // These figures are with rotary frequencies rounded to bf16 (engine/model/load_model.h); the
  // error with exact ones stands beside.
  bool bf16_rope = false;
  double exact_rope_rel_error = 0.0;

  // fp32: rel_error <= 1e-4 and no miss with a margin of 1e-3 or more; bf16: rel_error <= 2e-2.
  bool Passes(bool fp32) const;
};

// Runs the model with exact rotary frequencies and, when that is out of tolerance, with rounded
// ones: an expected file does not say which its reference had. The closer run is reported.
Result<VerifyReport> VerifyModel(const VerifyOptions& options);

// Prints `rel_error=... max_abs=... greedy_match=N/N`, a line per miss and one for a rounded rope.
// 0: within tolerance; 1: not; 2: an error, told on `err`.
int RunVerify(const VerifyOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
