// AppendMetadata: the entries that hold new keys are made again from the keys of their pages, which
// were just appended and mostly still lie in the L2 cache. The layout is metadata_layout.h's.
//
// One warp makes one entry of one kv head: the warp of the entry's last token in this call, so no
// two write the same bytes. A lane holds eight values of each vector; keys are spread over groups
// of lanes, each key a row of 16-byte chunks. Entries of one token are made by groups of lanes,
// consecutive tokens side by side. Integers are computed in double where a rounding could break a
// bound.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
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
  int page_tokens = 0;  // 1 << page_shift
  int page_shift = 0, entry_shift = 0;
  int lanes = 1;  // of one key, or of its labels; a power of two
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

// The first slot that is not negative among `slot`, of token + 1 + lane, and those behind; -1 for
// none. By a whole warp, the same in all lanes.
__device__ int NextSlot(const Params& p, int token, int slot) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int first = token + 1; first < p.tokens; first += 32) {
    if (first != token + 1) slot = first + lane < p.tokens ? p.slots[first + lane] : -1;
    const unsigned valid = __ballot_sync(~0u, slot >= 0);
    if (valid != 0) return __shfl_sync(~0u, slot, __ffs(static_cast<int>(valid)) - 1);
  }
  return -1;
}

// Whether `token` is the last of an entry in this call. The same in all lanes.
__device__ bool EntryOf(const Params& p, int token, Entry* entry) {
  const int behind = token + 1 + static_cast<int>(threadIdx.x) % 32;
  const int slot = p.slots[token];
  const int slot_behind = behind < p.tokens ? p.slots[behind] : -1;
  const int previous = p.previous_pages == nullptr ? -1 : p.previous_pages[token];
  if (slot < 0 || slot >> p.page_shift >= p.pages) return false;
  const int next = NextSlot(p, token, slot_behind);
  const int entry_shift = p.entry_shift;
  if (next >= 0 && next >> entry_shift == slot >> entry_shift) return false;
  entry->page = slot >> p.page_shift;
  const int offset = slot & (p.page_tokens - 1);
  entry->index = offset >> entry_shift;
  const bool full = next >= 0 && next >> p.page_shift == entry->page;
  entry->end = full ? (entry->index + 1) << entry_shift : offset + 1;
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

// Folds all keys of `rows`: over this lane's first, then over the groups of lanes. kMean: the sum
// in vector 0; else the least and the largest.
template <typename T, bool kMean>
__device__ void FoldKeys(const Params& p, const KeyRows& rows, Values* values) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int channel = lane % p.lanes * kVector, step = 32 / p.lanes, mine = lane / p.lanes;
  const bool present = channel < p.head_dim;
  float(&low)[kVector] = values->of[0];
  float(&high)[kVector] = values->of[1];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    low[i] = kMean ? 0.0f : INFINITY;
    high[i] = -INFINITY;
  }
  const auto fold = [&](int i, float other_low, float other_high) {
    low[i] = kMean ? low[i] + other_low : fminf(low[i], other_low);
    if constexpr (!kMean) high[i] = fmaxf(high[i], other_high);
  };
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
#pragma unroll
      for (int c = 0; c < kVector; ++c) fold(c, key[c], key[c]);
    }
  }
  for (int distance = 16; distance >= p.lanes; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float other_low = __shfl_xor_sync(~0u, low[i], distance);
      const float other_high = kMean ? 0.0f : __shfl_xor_sync(~0u, high[i], distance);
      fold(i, other_low, other_high);
    }
  }
}

// The lane's values of one key, or of its labels, whose channels are `channels`.
template <typename T>
__device__ void CopyKey(const Params& p, const KeyRows& rows, const int (&channels)[kVector],
                        int first, int count, Values* values) {
  if (count <= 0) return;
  if (p.kind != MetadataKind::kLabels) {
    Unpack(*reinterpret_cast<const Pack<T>*>(KeyAt<T>(p, rows, 0, first)), values->of[0]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    values->of[0][i] = i < count ? ToF32(*KeyAt<T>(p, rows, 0, channels[i])) : 0.0f;
  }
}

// scale and zero such that [low, high] is covered; never a scale of 0.
struct Affine final {
  uint32_t scale_bits, zero_bits;
  double scale, zero, inverse;

  __device__ void Cover(float low, float high, int levels) {
    zero_bits = RoundBf16(low, Round::kDown);
    zero = OfBf16(zero_bits);
    const double span = static_cast<double>(high) - zero;
    const float least = 0x1p-100f;
    const float narrow = static_cast<float>(span) * (1.0f / static_cast<float>(levels));
    scale_bits = RoundBf16(narrow < least ? least : narrow, Round::kUp);
    // The roundings above may have lost what decides.
    if (static_cast<double>(OfBf16(scale_bits)) * levels < span) ++scale_bits;
    scale_bits &= 0xffffu;
    scale = OfBf16(scale_bits);
    const double near = 1.0f / OfBf16(scale_bits);
    inverse = near * (2.0 - scale * near);
  }
  __device__ double ValueOf(int code) const { return zero + scale * code; }
  // NaN gives code 0. A quotient is a rounding away from the true one at most, so one look at the
  // neighbour on each side makes a bound hold.
  template <Round kRound>
  __device__ uint32_t Code(double value, int levels) const {
    const double most = levels;
    double quotient = (value - zero) * inverse + (kRound == Round::kNearest ? 0.5 : 0.0);
    quotient = quotient > 0.0 ? quotient : 0.0;
    quotient = quotient < most ? quotient : most;
    int code = static_cast<int>(quotient);
    if constexpr (kRound == Round::kDown) code -= ValueOf(code) > value ? 1 : 0;
    if constexpr (kRound == Round::kUp) {
      code += ValueOf(code) < value ? 1 : 0;
      code += ValueOf(code) < value ? 1 : 0;
      code = code < levels ? code : levels;
    }
    return static_cast<uint32_t>(code > 0 ? code : 0);
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

template <Round kRound>
__device__ void StoreWide(char* to, const float (&values)[kVector], int count) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector; ++i) words[i / 2] |= RoundBf16(values[i], kRound) << i % 2 * 16;
  if (count > 0) StoreBytes(to, words, 2 * count);
}
template <Round kRound>
__device__ void StoreCodes(const Affine& affine, const MetadataLayout& layout, char* to,
                           const float (&values)[kVector], int count) {
  uint64_t codes = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const uint64_t code = affine.Code<kRound>(values[i], layout.levels());
    if (i < count) codes |= code << i * layout.bits;
  }
  const uint32_t words[4] = {static_cast<uint32_t>(codes), static_cast<uint32_t>(codes >> 32)};
  if (count > 0) StoreBytes(to, words, (count * layout.bits + 7) / 8);
}

// `values`: this lane's, [first, first + count) of each vector; the p.lanes lanes around it have
// the others.
template <bool kMinMax>
__device__ void StoreEntry(const Params& p, char* slab, int entry, const Values& values, int first,
                           int count) {
  constexpr int kVectors = kMinMax ? 2 : 1;
  constexpr Round kFirst = kMinMax ? Round::kDown : Round::kNearest;
  const MetadataLayout& layout = p.layout;
  char* to = slab + layout.VectorAt(entry, 0) + first * layout.bits / 8;
  if (layout.bits == 16) {
    StoreWide<kFirst>(to, values.of[0], count);
    if constexpr (kMinMax) StoreWide<Round::kUp>(to + layout.row_bytes, values.of[1], count);
    return;
  }
  float low[kVectors], high[kVectors];
#pragma unroll
  for (int vector = 0; vector < kVectors; ++vector) {
    low[vector] = INFINITY;
    high[vector] = -INFINITY;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i >= count) continue;
      low[vector] = fminf(low[vector], values.of[vector][i]);
      high[vector] = fmaxf(high[vector], values.of[vector][i]);
    }
  }
  for (int step = p.lanes / 2; step > 0; step /= 2) {
#pragma unroll
    for (int vector = 0; vector < kVectors; ++vector) {
      low[vector] = fminf(low[vector], __shfl_xor_sync(~0u, low[vector], step));
      high[vector] = fmaxf(high[vector], __shfl_xor_sync(~0u, high[vector], step));
    }
  }
  Affine affine[kVectors];
#pragma unroll
  for (int vector = 0; vector < kVectors; ++vector) {
    affine[vector].Cover(low[vector], high[vector], layout.levels());
    if (first == 0 && count > 0) {
      *reinterpret_cast<uint32_t*>(slab + layout.ScaleAt(entry, vector)) =
          affine[vector].scale_bits | affine[vector].zero_bits << 16;
    }
  }
  StoreCodes<kFirst>(affine[0], layout, to, values.of[0], count);
  if constexpr (kMinMax) {
    StoreCodes<Round::kUp>(affine[1], layout, to + layout.row_bytes, values.of[1], count);
  }
}

__device__ char* MetadataSlab(const Params& p, int page, int head) {
  return p.metadata + (static_cast<int64_t>(page) * p.kv_heads + head) * p.metadata_slab_bytes;
}

// Means and bounds. Grid: (warps over tokens / tokens_per_warp and kv heads; heads of a token lie
// together).
template <typename T, bool kMean>
__global__ void __launch_bounds__(kThreads) AppendEntriesKernel(const __grid_constant__ Params p) {
  LetNextStart();
  WaitForPrevious();
  const int warp = static_cast<int>(blockIdx.x * (kThreads / 32) + threadIdx.x / 32);
  const int head = warp % p.kv_heads;
  const int begin = warp / p.kv_heads * p.tokens_per_warp;
  const int end = min(begin + p.tokens_per_warp, p.tokens);
  const int first = static_cast<int>(threadIdx.x) % 32 * kVector;
  const int count = min(max(p.layout.width - first, 0), kVector);
  for (int token = begin; token < end; ++token) {
    Entry entry;
    if (!EntryOf(p, token, &entry)) continue;
    const KeyRows rows = RowsOf(p, entry, head);
    Values values;
    FoldKeys<T, kMean>(p, rows, &values);
    if constexpr (kMean) {
#pragma unroll
      for (float& value : values.of[0]) value /= static_cast<float>(rows.count);
    }
    StoreEntry<!kMean>(p, MetadataSlab(p, entry.page, head), entry.index, values, first, count);
  }
}

// Entries of one token: keys and labels. Grid: (warps over groups of tokens and kv heads).
template <typename T>
__global__ void __launch_bounds__(kThreads) AppendTokensKernel(const __grid_constant__ Params p) {
  LetNextStart();
  WaitForPrevious();
  const int warp = static_cast<int>(blockIdx.x * (kThreads / 32) + threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = warp % p.kv_heads;
  const int token = warp / p.kv_heads * p.tokens_per_warp + lane / p.lanes;
  const int first = lane % p.lanes * kVector;
  int count = min(max(p.layout.width - first, 0), kVector);
  const int slot = token < p.tokens ? p.slots[token] : -1;
  int channels[kVector] = {};
  if (p.kind == MetadataKind::kLabels) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) channels[i] = p.channels[head * p.layout.width + first + i];
    }
  }
  const bool valid = slot >= 0 && slot >> p.page_shift < p.pages;
  if (!valid) count = 0;
  Entry entry;
  entry.page = valid ? slot >> p.page_shift : 0;
  entry.index = slot & (p.page_tokens - 1);
  entry.end = entry.index + 1;
  Values values = {};
  CopyKey<T>(p, RowsOf(p, entry, head), channels, first, count, &values);
  StoreEntry<false>(p, MetadataSlab(p, entry.page, head), entry.index, values, first, count);
}

int ShiftOf(int power_of_two) { return std::countr_zero(static_cast<unsigned>(power_of_two)); }
int TokensPerWarp(const Params& p) {
  constexpr int kFewTokens = 512;
  if (p.tokens <= kFewTokens) return 1;
  return p.layout.entry_tokens == 1 ? 4 : 16;
}
int LanesOf(int64_t width) {
  int lanes = 1;
  while (lanes * kVector < width) lanes *= 2;
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
  if (!std::has_single_bit(static_cast<uint64_t>(keys.page_tokens))) {
    return InvalidArgument("AppendMetadata: keys: need page_tokens that are a power of two");
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
                .slab_bytes = keys.SlabBytes(),
                .metadata_slab_bytes = metadata.SlabBytes()};
  params.page_shift = ShiftOf(params.page_tokens);
  params.entry_shift = ShiftOf(params.layout.entry_tokens);
  const bool single = params.kind == MetadataKind::kLabels || params.kind == MetadataKind::kLowBit;
  params.lanes = LanesOf(single ? params.layout.width : keys.head_dim);
  params.tokens_per_warp = single ? 32 / params.lanes : TokensPerWarp(params);
  const int64_t warps = CeilDiv(params.tokens, params.tokens_per_warp) * params.kv_heads;
  const dim3 blocks(static_cast<unsigned>(CeilDiv(warps, kThreads / 32)));
  return WithType(keys.dtype, [&](auto type) {
    using T = decltype(type);
    const auto kernel = single                               ? AppendTokensKernel<T>
                        : params.kind == MetadataKind::kMean ? AppendEntriesKernel<T, true>
                                                             : AppendEntriesKernel<T, false>;
    return Launch(kernel, blocks, dim3(kThreads), 0, stream, params);
  });
}

}  // namespace lacuna::kernels::cuda
