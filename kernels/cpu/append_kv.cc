#include "kernels/cpu/append_kv.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace lacuna::kernels::cpu {
namespace {

// Below this many elements, waking the workers costs more than it saves.
constexpr int64_t kParallelElementsMin = 1 << 15;

// A run of tokens that lie one after the other in one page.
struct Run final {
  int64_t token = 0;
  int64_t page = 0;
  int64_t offset = 0;
  int64_t count = 0;
};

Run NextRun(const int32_t* slots, int64_t token, int64_t tokens, int64_t page_tokens) {
  while (token < tokens && slots[token] < 0) ++token;
  Run run{token, 0, 0, 0};
  if (token == tokens) return run;
  run.page = slots[token] / page_tokens;
  run.offset = slots[token] % page_tokens;
  const int64_t count_max = std::min(tokens - token, page_tokens - run.offset);
  run.count = 1;
  while (run.count < count_max && slots[token + run.count] == slots[token] + run.count) ++run.count;
  return run;
}

struct Rows final {
  const std::byte* data;
  int64_t stride_bytes;
  template <typename T>
  const T* at(int64_t row) const {
    return static_cast<const T*>(static_cast<const void*>(data + row * stride_bytes));
  }
};

void WriteF32(const KvPool& pool, const Run& run, Rows k, Rows v, std::byte* slab) {
  auto* keys = static_cast<float*>(static_cast<void*>(slab));
  float* values = keys + pool.head_dim * pool.page_tokens;
  for (int64_t t = 0; t < run.count; ++t) {
    const float* key = k.at<float>(t);
    for (int64_t d = 0; d < pool.head_dim; ++d) {
      keys[d * pool.page_tokens + run.offset + t] = key[d];
    }
    std::memcpy(values + (run.offset + t) * pool.head_dim, v.at<float>(t),
                static_cast<size_t>(pool.head_dim) * sizeof(float));
  }
}

void WriteBf16(const KvPool& pool, const Run& run, Rows k, Rows v, std::byte* slab) {
  // A pair of channels of K moves as one word.
  auto* keys = static_cast<uint32_t*>(static_cast<void*>(slab));
  auto* values =
      static_cast<uint16_t*>(static_cast<void*>(slab)) + pool.head_dim * pool.page_tokens;
  for (int64_t pair = 0; pair < pool.head_dim / 2; ++pair) {
    uint32_t* to = keys + pair * pool.page_tokens + run.offset;
    for (int64_t t = 0; t < run.count; ++t) {
      std::memcpy(to + t, k.at<uint16_t>(t) + 2 * pair, sizeof(*to));
    }
  }
  for (int64_t t = 0; t < run.count;) {
    const int64_t slot = run.offset + t;
    uint16_t* to = values + slot / 2 * (2 * pool.head_dim) + slot % 2;
    const auto* first = v.at<uint16_t>(t);
    if (slot % 2 == 0 && t + 1 < run.count) {
      const auto* second = v.at<uint16_t>(t + 1);
      for (int64_t d = 0; d < pool.head_dim; ++d) {
        to[2 * d] = first[d];
        to[2 * d + 1] = second[d];
      }
      t += 2;
    } else {
      for (int64_t d = 0; d < pool.head_dim; ++d) to[2 * d] = first[d];
      t += 1;
    }
  }
}

void AppendHead(const AppendKvArgs& args, int64_t head) {
  const KvPool& pool = args.pool;
  const auto* slots = args.slots.as<const int32_t>();
  const int64_t tokens = args.slots.dim(0);
  const auto bytes = static_cast<int64_t>(DTypeBytes(pool.dtype));
  const Rows k{args.k.as<const std::byte>() + head * pool.head_dim * bytes,
               args.k.stride(0) * bytes};
  const Rows v{args.v.as<const std::byte>() + head * pool.head_dim * bytes,
               args.v.stride(0) * bytes};
  for (Run run = NextRun(slots, 0, tokens, pool.page_tokens); run.count > 0;
       run = NextRun(slots, run.token + run.count, tokens, pool.page_tokens)) {
    std::byte* slab = pool.Slab(run.page, head);
    if (run.offset == 0) std::memset(slab, 0, static_cast<size_t>(pool.SlabBytes()));
    const Rows run_k{k.data + run.token * k.stride_bytes, k.stride_bytes};
    const Rows run_v{v.data + run.token * v.stride_bytes, v.stride_bytes};
    if (pool.dtype == DType::kF32) {
      WriteF32(pool, run, run_k, run_v, slab);
    } else {
      WriteBf16(pool, run, run_k, run_v, slab);
    }
  }
}

}  // namespace

Status AppendKvCpu(const AppendKvArgs& args, Isa /*isa*/, ThreadPool& pool) {
  const int64_t heads = args.pool.kv_heads;
  if (args.slots.dim(0) * heads * args.pool.head_dim < kParallelElementsMin) {
    for (int64_t head = 0; head < heads; ++head) AppendHead(args, head);
  } else {
    pool.ParallelFor(heads, [&](int64_t head, int) { AppendHead(args, head); });
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
