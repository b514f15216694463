// AttentionWorld: sequences in a paged KV pool that starts full of NaN, with what the tests need to
// attend to them and to compute the same in double precision. Single-threaded but for its pool.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/cpu/attention.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cpu {

struct AttentionSpec final {
  DType dtype = DType::kF32;
  Isa isa = Isa::kScalar;
  int q_heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  int page_tokens = 64;
  StaticShape shape;
  float softcap = 0.0f;
  bool sink_logits = false;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)
};
std::string Describe(const AttentionSpec& spec);

// The instruction sets of this machine, each once.
std::vector<Isa> IsasHere();

// Rows of dtype elements between guard bytes.
class GuardedTensor final {
 public:
  GuardedTensor(DType dtype, int64_t rows, int64_t heads, int64_t dim);
  TensorView view() { return {data_.data() + kGuard, dtype_, {rows_, heads_, dim_}}; }
  TensorView matrix() { return {data_.data() + kGuard, dtype_, {rows_, heads_ * dim_}}; }
  float At(int64_t row, int64_t head, int64_t d) const;
  void Set(int64_t row, int64_t head, int64_t d, float value);
  std::vector<std::byte> RowBytes(int64_t row) const;
  bool GuardsIntact() const;
  bool RowUntouched(int64_t row) const;  // still as constructed

 private:
  static constexpr size_t kGuard = 128;
  static constexpr std::byte kFill{0xa5};
  size_t Offset(int64_t row, int64_t head, int64_t d) const;
  DType dtype_;
  int64_t rows_, heads_, dim_;
  std::vector<std::byte> data_;
};

// Page lists under construction.
struct ListBuilder final {
  std::vector<int32_t> pages, logical;
  std::vector<int64_t> offsets{0};
  void Close() { offsets.push_back(static_cast<int64_t>(pages.size())); }
  PageLists View() const {
    return {pages.data(), logical.data(), offsets.data(), offsets.data() + 1,
            static_cast<int64_t>(offsets.size()) - 1};
  }
};

class AttentionWorld final {
 public:
  AttentionWorld(const AttentionSpec& spec, std::vector<int> sequence_tokens, uint32_t seed);

  const AttentionSpec& spec() const { return spec_; }
  KvPool pool() const { return pool_; }
  AttentionParams params() const;
  int tokens(int sequence) const { return tokens_[static_cast<size_t>(sequence)]; }
  int pages(int sequence) const {
    return static_cast<int>(page_table_[static_cast<size_t>(sequence)].size());
  }
  void AddPage(ListBuilder* lists, int sequence, int logical) const;
  void AddAllPages(ListBuilder* lists, int sequence) const;
  float Random(float limit);
  void FillRandom(GuardedTensor* q, float limit);

  // In double precision, over the keys of `sequence` that `listed(token)` lets through.
  struct Expected final {
    std::vector<double> out;
    double lse;
  };
  Expected Reference(const GuardedTensor& q, int64_t row, int head, int sequence, int position,
                     const std::function<bool(int)>& listed) const;

  float out_tolerance() const { return spec_.dtype == DType::kF32 ? 2e-5f : 8e-3f; }
  float lse_tolerance() const { return spec_.dtype == DType::kF32 ? 2e-5f : 1e-3f; }

 private:
  void Append(int sequence);
  size_t KeyIndex(int token, int kv_head) const;

  AttentionSpec spec_;
  std::vector<int> tokens_;
  std::vector<std::vector<int32_t>> page_table_;
  std::vector<std::byte> memory_;
  KvPool pool_;
  std::vector<std::vector<float>> k_, v_;  // [sequence][token, kv_head, head_dim], as stored
  std::vector<float> sink_logits_;
  std::mt19937 random_;
};

}  // namespace lacuna::kernels::cpu
