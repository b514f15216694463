// AttentionWorld: sequences in a paged KV pool that starts full of NaN, with what the tests need to
// attend to them and to compute the same in double precision. Single thread.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops/attention.h"
#include "tests/ops/op_test.h"

namespace lacuna::kernels {

struct AttentionSpec final {
  BackendCase which;
  int q_heads = 4;
  int kv_heads = 2;
  int head_dim = 64;
  int page_tokens = 64;
  StaticShape shape;
  float softcap = 0.0f;
  bool sink_logits = false;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)

  DType dtype() const { return which.precision; }
};
std::string Describe(const AttentionSpec& spec);

// Page lists under construction, on the host.
struct ListBuilder final {
  std::vector<int32_t> pages, logical;
  std::vector<int64_t> offsets{0};
  std::vector<uint64_t> masks;  // of the pages, or empty
  void Close() { offsets.push_back(static_cast<int64_t>(pages.size())); }
};

// Built lists on the backend's device.
class DeviceLists final {
 public:
  DeviceLists(Backend& backend, const ListBuilder& lists)
      : count_(static_cast<int64_t>(lists.offsets.size()) - 1),
        pages_(backend, lists.pages),
        logical_(backend, lists.logical),
        offsets_(backend, lists.offsets),
        masked_(!lists.masks.empty()),
        masks_(backend, lists.masks) {}
  PageLists view() {
    const int64_t* offsets = offsets_.device();
    return {pages_.device(), logical_.device(),
            offsets,         offsets + 1,
            count_,          masked_ ? masks_.device() : nullptr};
  }

 private:
  int64_t count_;
  TestArray<int32_t> pages_, logical_;
  TestArray<int64_t> offsets_;
  bool masked_;
  TestArray<uint64_t> masks_;
};

class AttentionWorld final {
 public:
  AttentionWorld(std::shared_ptr<Backend> backend, const AttentionSpec& spec,
                 std::vector<int> sequence_tokens, uint32_t seed);

  const AttentionSpec& spec() const { return spec_; }
  Backend& backend() { return *backend_; }
  TestPlace place() { return {backend_.get(), spec_.which.aligned}; }
  TestTensor MakeTensor(DType dtype, int64_t rows, int64_t dim) {
    return TestTensor(place(), dtype, rows, dim);
  }
  KvPool pool();
  AttentionParams params();
  int tokens(int sequence) const { return tokens_[static_cast<size_t>(sequence)]; }
  int pages(int sequence) const {
    return static_cast<int>(page_table_[static_cast<size_t>(sequence)].size());
  }
  void AddPage(ListBuilder* lists, int sequence, int logical) const;
  void AddAllPages(ListBuilder* lists, int sequence) const;
  int32_t unwritten_page() const { return unwritten_page_; }  // full of NaN
  // Makes K and V NaN where `bad(token, kv head)`. Reference must not be asked about those.
  void Poison(int sequence, const std::function<bool(int, int)>& bad);
  float Random(float limit);
  void FillRandom(TestTensor* q, float limit);

  // In double precision, over the keys of `sequence` that `listed(token)` and the shape (that of
  // the spec, or `extra`'s) let through.
  struct Extra final {
    std::optional<StaticShape> shape;
    double dropped_lse = -std::numeric_limits<double>::infinity();
  };
  struct Expected final {
    std::vector<double> out;
    double lse;
  };
  Expected Reference(const TestTensor& q, int64_t row, int head, int sequence, int position,
                     const std::function<bool(int)>& listed) const {
    return Reference(q, row, head, sequence, position, listed, Extra{});
  }
  Expected Reference(const TestTensor& q, int64_t row, int head, int sequence, int position,
                     const std::function<bool(int)>& listed, const Extra& extra) const;
  // Compares one head of a row of `out` [rows, heads * dim] and `lse` [rows, heads] with it.
  void ExpectHead(const TestTensor& out, const TestTensor& lse, int64_t row, int head,
                  const Expected& expected) const;

 private:
  void Append(int sequence);
  void AppendTensors(int sequence, TestTensor* k, TestTensor* v, int first);
  size_t KeyIndex(int token, int kv_head) const;

  std::shared_ptr<Backend> backend_;
  AttentionSpec spec_;
  std::vector<int> tokens_;
  std::vector<std::vector<int32_t>> page_table_;
  int32_t unwritten_page_ = 0;
  KvPool shape_;  // of the pool, without its memory
  std::unique_ptr<TestMemory> memory_;
  std::unique_ptr<TestArray<float>> sink_memory_;
  std::vector<std::vector<float>> k_, v_;  // [sequence][token, kv_head, head_dim], as stored
  std::vector<float> sink_logits_;
  std::mt19937 random_;
};

}  // namespace lacuna::kernels
