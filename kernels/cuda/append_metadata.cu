// AppendMetadata: the entries that hold new keys are made again from the keys of their pages, which
// were just appended and mostly still lie in the L2 cache. The layout is metadata_layout.h's.
//
// One warp makes one entry of one kv head: the warp of the entry's last token in this call, so no
// two write the same bytes. A lane holds eight values of each vector; keys are spread over groups
// of lanes, each key a row of 16-byte chunks. Integers are computed as the CPU does, in double
// where a rounding could break a bound.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/metadata_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHeadDimMax = 32 * kVector;
constexpr int kTogether = 8;  // keys of a lane that are in flight together

struct Params final {
  const int32_t* slots = nullptr;
  const int32_t* previous_pages = nullptr;  // or null
  const char* keys = nullptr;
  char* metadata = nullptr;
  const int16_t* channels = nullptr;  // kLabels
  MetadataLayout layout;
  MetadataKind kind = MetadataKind::kNone;
  int window_tokens = 0;
  int tokens = 0;
  int tokens_per_warp = 1;
  int pages = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int page_tokens = 0;
  int lanes = 1;  // of one key; a power of two
  int64_t slab_bytes = 0;
  int64_t metadata_slab_bytes = 0;
};

enum class Round { kDown, kNearest, kUp };

// The bf16 number next to `value` on the side that `round` names, as bits.
__device__ uint32_t RoundBf16(float value, Round round) {
  const uint32_t bits = __float_as_uint(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  if (round == Round::kNearest || !finite) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  const bool away = (bits >> 31 != 0) == (round == Round::kDown);  // from zero
  const bool exact = (bits & 0xffffu) == 0;
  return (bits >> 16) + (away && !exact ? 1u : 0u);
}
__device__ float OfBf16(uint32_t bits) { return __uint_as_float(bits << 16); }

// The token whose entry a warp makes.
struct Entry final {
  int page = 0;
  int index = 0;  // in the page
  int end = 0;    // keys of the page that it speaks of end here
  int previous_page = -1;
};

// Slot of the next token that is not skipped, -1 for none. By a whole warp, the same in all lanes.
__device__ int NextSlot(const Params& p, int token) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int first = token + 1; first < p.tokens; first += 32) {
    const int slot = first + lane < p.tokens ? p.slots[first + lane] : -1;
    const unsigned valid = __ballot_sync(~0u, slot >= 0);
    if (valid != 0) return __shfl_sync(~0u, slot, __ffs(static_cast<int>(valid)) - 1);
  }
  return -1;
}

// Whether `token` is the last of an entry in this call. The same in all lanes.
__device__ bool EntryOf(const Params& p, int token, Entry* entry) {
  const int slot = p.slots[token];
  if (slot < 0 || slot / p.page_tokens >= p.pages) return false;
  const int next = NextSlot(p, token);
  const int entry_tokens = p.layout.entry_tokens;
  if (next >= 0 && next / entry_tokens == slot / entry_tokens) return false;
  entry->page = slot / p.page_tokens;
  const int offset = slot % p.page_tokens;
  entry->index = offset / entry_tokens;
  const bool full = next >= 0 && next / p.page_tokens == entry->page;
  entry->end = full ? (entry->index + 1) * entry_tokens : offset + 1;
  const int previous = p.previous_pages == nullptr ? -1 : p.previous_pages[token];
  entry->previous_page = previous < p.pages ? previous : -1;
  return true;
}

// Keys in the order in which they are read: rows of the page before, then of the page.
struct KeyRows final {
  const char* previous = nullptr;
  const char* own = nullptr;
  int before = 0;  // first row of `previous`
  int before_count = 0;
  int first = 0;  // first row of `own`
  int count = 0;  // of both
};
__device__ KeyRows RowsOf(const Params& p, const Entry& entry, int head) {
  const auto slab = [&](int page) {
    return p.keys + (static_cast<int64_t>(page) * p.kv_heads + head) * p.slab_bytes;
  };
  KeyRows rows;
  rows.own = slab(entry.page);
  rows.first = entry.index * p.layout.entry_tokens;
  if (p.kind == MetadataKind::kMean) {
    const int first = entry.end - p.window_tokens;
    if (first < 0 && entry.previous_page >= 0) {
      rows.previous = slab(entry.previous_page);
      rows.before = max(p.page_tokens + first, 0);
      rows.before_count = p.page_tokens - rows.before;
    }
    rows.first = max(first, 0);
  }
  rows.count = rows.before_count + entry.end - rows.first;
  return rows;
}

template <typename T>
__device__ const T* KeyAt(const Params& p, const KeyRows& rows, int i, int channel) {
  const bool before = i < rows.before_count;
  const int row = before ? rows.before + i : rows.first + i - rows.before_count;
  int element = row * p.head_dim + channel;
  if constexpr (!std::is_same_v<T, float>) {
    element = KvElement(row, channel, p.page_tokens, p.head_dim);
  }
  return reinterpret_cast<const T*>(before ? rows.previous : rows.own) + element;
}

// Eight values of each of the entry's vectors: this lane's share.
struct Values final {
  float of[2][kVector];
};

template <bool kSum>
__device__ void Fold(const float (&key)[kVector], bool first, Values* values) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    float& low = values->of[0][i];
    float& high = values->of[1][i];
    if constexpr (kSum) {
      low = first ? key[i] : low + key[i];
    } else {
      low = first || key[i] < low ? key[i] : low;
      high = first || key[i] > high ? key[i] : high;
    }
  }
}

// Folds all keys of `rows`: over this lane's first, then over the groups of lanes. kSum: the sum in
// vector 0; else the least and the largest.
template <typename T, bool kSum>
__device__ void FoldKeys(const Params& p, const KeyRows& rows, Values* values) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int channel = lane % p.lanes * kVector, step = 32 / p.lanes, mine = lane / p.lanes;
  const bool present = channel < p.head_dim;
  for (int first = 0; first < rows.count; first += kTogether * step) {
    Pack<T> packs[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int row = first + i * step + mine;
      packs[i] = {};
      if (present && row < rows.count) {
        packs[i] = *reinterpret_cast<const Pack<T>*>(KeyAt<T>(p, rows, row, channel));
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i * step + mine >= rows.count) continue;
      float key[kVector];
      Unpack(packs[i], key);
      Fold<kSum>(key, first + i == 0, values);
    }
  }
  // Group 0 has a key; a group without one takes no part.
  for (int groups = step; groups > 1; groups /= 2) {
    const int other = (mine ^ groups / 2);
    const bool theirs = other < rows.count, ours = mine < rows.count;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float low = __shfl_xor_sync(~0u, values->of[0][i], groups / 2 * p.lanes);
      const float high = __shfl_xor_sync(~0u, values->of[1][i], groups / 2 * p.lanes);
      if (!theirs) continue;
      if constexpr (kSum) {
        values->of[0][i] = ours ? values->of[0][i] + low : low;
      } else {
        values->of[0][i] = !ours || low < values->of[0][i] ? low : values->of[0][i];
        values->of[1][i] = !ours || high > values->of[1][i] ? high : values->of[1][i];
      }
    }
  }
}

// The lane's values of one key, or of its labels.
template <typename T>
__device__ void CopyKey(const Params& p, const KeyRows& rows, int head, int first, int count,
                        Values* values) {
  if (count <= 0) return;
  if (p.kind != MetadataKind::kLabels) {
    Unpack(*reinterpret_cast<const Pack<T>*>(KeyAt<T>(p, rows, 0, first)), values->of[0]);
    return;
  }
  const int16_t* channels = p.channels + head * p.layout.width + first;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < count) values->of[0][i] = ToF32(*KeyAt<T>(p, rows, 0, channels[i]));
  }
}

// scale and zero such that [low, high] is covered; never a scale of 0.
struct Affine final {
  uint32_t scale_bits, zero_bits;
  double scale, zero;

  __device__ Affine(float low, float high, int levels) {
    zero_bits = RoundBf16(low, Round::kDown);
    zero = OfBf16(zero_bits);
    const double need = (static_cast<double>(high) - zero) / levels;
    const float least = 0x1p-100f, narrow = static_cast<float>(need);
    scale_bits = RoundBf16(narrow < least ? least : narrow, Round::kUp);
    // The narrowing above may have lost the last bit of `need`.
    if (OfBf16(scale_bits) < need) ++scale_bits;
    scale_bits &= 0xffffu;
    scale = OfBf16(scale_bits);
  }
  __device__ double ValueOf(int code) const { return zero + scale * code; }
  // NaN gives code 0. A quotient is a rounding away from the true one at most, so one look at the
  // neighbour on each side makes a bound hold.
  __device__ int Code(double value, Round round, int levels) const {
    const double most = levels;
    double quotient = (value - zero) * (1.0 / scale) + (round == Round::kNearest ? 0.5 : 0.0);
    quotient = quotient > 0.0 ? quotient : 0.0;
    quotient = quotient < most ? quotient : most;
    int code = static_cast<int>(quotient);
    if (round == Round::kDown) code -= ValueOf(code) > value ? 1 : 0;
    if (round == Round::kUp) {
      code += ValueOf(code) < value ? 1 : 0;
      code += ValueOf(code) < value ? 1 : 0;
      code = code < levels ? code : levels;
    }
    return code > 0 ? code : 0;
  }
};

// `bytes` bytes of `words` to memory that 2 * kBits / 8 divides when all eight values are there.
__device__ void StoreBytes(char* to, const uint32_t (&words)[4], int bytes) {
  if (bytes == 16 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
  } else if (bytes == 8 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint2*>(to) = {words[0], words[1]};
  } else if (bytes == 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = words[0];
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (i < bytes) to[i] = static_cast<char>(words[i / 4] >> i % 4 * 8);
    }
  }
}

// `values`: this lane's, [first, first + count) of the vector; lanes of other groups hold the same
// and store nothing.
__device__ void StoreVectorOf(const Params& p, char* slab, int entry, int vector,
                              const float (&values)[kVector], int first, int count) {
  const MetadataLayout& layout = p.layout;
  const Round round = p.kind != MetadataKind::kMinMax ? Round::kNearest
                      : vector == 0                   ? Round::kDown
                                                      : Round::kUp;
  char* to = slab + layout.VectorAt(entry, vector) + first * layout.bits / 8;
  uint32_t words[4] = {};
  if (layout.bits == 16) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) words[i / 2] |= RoundBf16(values[i], round) << i % 2 * 16;
    if (count > 0) StoreBytes(to, words, 2 * count);
    return;
  }
  float low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i >= count) continue;
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    low = fminf(low, __shfl_xor_sync(~0u, low, step));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
  }
  const Affine affine(low, high, layout.levels());
  if (first == 0 && count > 0) {
    *reinterpret_cast<uint32_t*>(slab + layout.ScaleAt(entry, vector)) =
        affine.scale_bits | affine.zero_bits << 16;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i >= count) continue;
    const auto code = static_cast<uint32_t>(affine.Code(values[i], round, layout.levels()));
    const int bit = i * layout.bits;
    words[i * layout.bits / 32] |= code << bit % 32;
  }
  if (count > 0) StoreBytes(to, words, (count * layout.bits + 7) / 8);
}

template <typename T>
__device__ void MakeEntry(const Params& p, const Entry& entry, int head) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const KeyRows rows = RowsOf(p, entry, head);
  Values values = {};
  // All lanes of a fold hold values; those of the first group store them.
  const int first = lane % p.lanes * kVector;
  const int count = lane < p.lanes ? min(max(p.layout.width - first, 0), kVector) : 0;
  if (p.kind == MetadataKind::kMinMax) {
    FoldKeys<T, false>(p, rows, &values);
  } else if (p.kind == MetadataKind::kMean) {
    FoldKeys<T, true>(p, rows, &values);
#pragma unroll
    for (float& value : values.of[0]) value /= static_cast<float>(rows.count);
  } else {
    CopyKey<T>(p, rows, head, first, count, &values);
  }
  char* slab =
      p.metadata + (static_cast<int64_t>(entry.page) * p.kv_heads + head) * p.metadata_slab_bytes;
#pragma unroll
  for (int vector = 0; vector < 2; ++vector) {
    if (vector < p.layout.vectors) {
      StoreVectorOf(p, slab, entry.index, vector, values.of[vector], first, count);
    }
  }
}

// Grid: (warps over tokens / tokens_per_warp and kv heads; heads of a token lie together).
template <typename T>
__global__ void __launch_bounds__(kThreads) AppendMetadataKernel(const Params p) {
  LetNextStart();
  WaitForPrevious();
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int head = static_cast<int>(warp % p.kv_heads);
  const int64_t first = warp / p.kv_heads * p.tokens_per_warp;
  for (int64_t token = first; token < first + p.tokens_per_warp && token < p.tokens; ++token) {
    Entry entry;
    if (EntryOf(p, static_cast<int>(token), &entry)) MakeEntry<T>(p, entry, head);
  }
}

int TokensPerWarp(int tokens, int entry_tokens) {
  constexpr int kFewTokens = 512;
  if (tokens <= kFewTokens) return 1;
  return entry_tokens == 1 ? 4 : 16;
}

int LanesOf(int64_t head_dim) {
  int lanes = 1;
  while (lanes * kVector < head_dim) lanes *= 2;
  return lanes;
}

}  // namespace

Status AppendMetadata(const AppendMetadataArgs& args, cudaStream_t stream) {
  const KvPool& keys = args.keys;
  if (keys.head_dim % 16 != 0 || keys.head_dim > kHeadDimMax) {
    return InvalidArgument(
        "AppendMetadata: keys: need a head_dim that is a multiple of 16, at most " +
        std::to_string(kHeadDimMax));
  }
  if (args.slots.dim(0) == 0) return OkStatus();
  const MetadataPool& metadata = args.metadata;
  Params params{.slots = args.slots.as<const int32_t>(),
                .previous_pages =
                    args.previous_pages.empty() ? nullptr : args.previous_pages.as<const int32_t>(),
                .keys = static_cast<const char*>(keys.data),
                .metadata = static_cast<char*>(metadata.data),
                .channels = metadata.channels,
                .layout = MetadataLayout(metadata.spec, keys.head_dim, keys.page_tokens),
                .kind = metadata.spec.kind,
                .window_tokens = metadata.spec.window_tokens,
                .tokens = static_cast<int>(args.slots.dim(0)),
                .pages = static_cast<int>(keys.pages),
                .kv_heads = static_cast<int>(keys.kv_heads),
                .head_dim = static_cast<int>(keys.head_dim),
                .page_tokens = static_cast<int>(keys.page_tokens),
                .lanes = LanesOf(keys.head_dim),
                .slab_bytes = keys.SlabBytes(),
                .metadata_slab_bytes = metadata.SlabBytes()};
  params.tokens_per_warp = TokensPerWarp(params.tokens, params.layout.entry_tokens);
  const int64_t warps = CeilDiv(params.tokens, params.tokens_per_warp) * params.kv_heads;
  return WithType(keys.dtype, [&](auto type) {
    return Launch(AppendMetadataKernel<decltype(type)>,
                  dim3(static_cast<unsigned>(CeilDiv(warps, kThreads / 32))), dim3(kThreads), 0,
                  stream, params);
  });
}

}  // namespace lacuna::kernels::cuda
