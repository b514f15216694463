// The attention kernel, written once over a small set of vector operations. Included by one
// translation unit per instruction set, inside its anonymous namespace, after these names:
//   Vec, kLanes, kMicroRows, kMicroCols, Load, Store, Set1, Add, Sub, Mul, Div, Fma (a * b + c),
//   Max (the second operand when one is NaN), Min, AddToExponent (bits of a + (bits of b << 23)),
//   KeepOrNegInf (lanes without their bit become -inf), ReduceMax, AnyGreater, First (lane 0),
//   WidenEven and WidenOdd (elements 2i and 2i + 1 of a run of bf16).
// An element type E names Kv (stored), A (left operand: query and probability), kPack (elements per
// step), AVec, KvVec and their LoadA, LoadKv, Dot, FromKv, StoreProbs, StoreOut.

constexpr float kLog2E = 1.44269504088896341f;

inline float FloatOf(uint16_t bf16) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bf16) << 16);
}

inline uint16_t Bf16Of(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Into L2: a block has more lines than L1 has buffers for fills, and would hold up the loads.
inline void Prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

struct F32 final {
  using Kv = float;
  using A = float;
  using AVec = Vec;
  using KvVec = Vec;
  static constexpr int kPack = 1;
  static AVec LoadA(const A* a) { return Set1(*a); }
  static KvVec LoadKv(const Kv* kv) { return Load(kv); }
  static Vec Dot(Vec sum, AVec a, KvVec kv) { return Fma(a, kv, sum); }
  static A FromKv(Kv kv) { return kv; }
  static void StoreProbs(A* probs, const Vec* p) {
    for (int i = 0; i < kBlockKeys / kLanes; ++i) Store(probs + i * kLanes, p[i]);
  }
  static void StoreOut(Kv* out, Vec x) { Store(out, x); }
};

// bf16 storage, f32 arithmetic: for machines without a bf16 dot product.
struct Bf16Widened final {
  struct Pair final {
    Vec even, odd;
  };
  using Kv = uint16_t;
  using A = float;
  using AVec = Pair;
  using KvVec = Pair;
  static constexpr int kPack = 2;
  static AVec LoadA(const A* a) { return {Set1(a[0]), Set1(a[1])}; }
  static KvVec LoadKv(const Kv* kv) { return {WidenEven(kv), WidenOdd(kv)}; }
  static Vec Dot(Vec sum, AVec a, KvVec kv) {
    return Fma(a.odd, kv.odd, Fma(a.even, kv.even, sum));
  }
  static A FromKv(Kv kv) { return FloatOf(kv); }
  static void StoreProbs(A* probs, const Vec* p) { F32::StoreProbs(probs, p); }
  static void StoreOut(Kv* out, Vec x) {
    float lanes[kLanes];
    Store(lanes, x);
    for (int i = 0; i < kLanes; ++i) out[i] = Bf16Of(lanes[i]);
  }
};

// 2^x for x <= 126; exactly 1 at 0, exactly 0 below -127, relative error under 2e-7 down to -126.
// Adding 1.5 * 2^23 rounds x to the integer n and leaves it in the low bits; 2^(x - n) is a minimax
// polynomial on [-1/2, 1/2] with the constant term held at 1, and n goes onto its exponent.
inline Vec Exp2(Vec x) {
  x = Max(Set1(-127.0f), x);
  const Vec magic = Set1(12582912.0f);
  const Vec biased = Add(x, magic);
  const Vec f = Sub(x, Sub(biased, magic));
  Vec p = Fma(f, Set1(0.00132647286f), Set1(0.0096715156f));
  p = Fma(p, f, Set1(0.0555073377f));
  p = Fma(p, f, Set1(0.24022242f));
  p = Fma(p, f, Set1(0.693146978f));
  return AddToExponent(Fma(p, f, Set1(1.0f)), biased);
}

// cap * tanh(s / cap), through tanh(y) = 1 - 2 / (1 + exp(2 y))
inline Vec Softcap(Vec s, float cap) {
  const Vec e = Exp2(Min(Set1(126.0f), Mul(s, Set1(2.0f * kLog2E / cap))));
  const Vec one = Set1(1.0f);
  return Mul(Set1(cap), Sub(one, Div(Set1(2.0f), Add(one, e))));
}

inline uint64_t LowBits(int64_t count) {
  if (count <= 0) return 0;
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Bit j: the query at `position` sees key j of the block.
inline uint64_t VisibleKeys(const AttentionTile& tile, const KvBlock& block, int32_t position) {
  if (block.gathered) return block.keys;
  const int64_t own = position - block.first_key;
  uint64_t keys = LowBits(own + 1) & block.keys;
  if (tile.window_tokens > 0) {
    const uint64_t in_window = ~LowBits(own - tile.window_tokens + 1);
    keys &= in_window | LowBits(tile.sink_tokens - block.first_key);
  }
  return keys;
}

inline uint32_t GroupBits(uint64_t keys, int group) {
  return static_cast<uint32_t>(keys >> (group * kGroupKeys)) & 0xffffu;
}

// The groups of a block that hold some of `keys`, ascending.
struct Groups final {
  const void* k[kBlockGroups];
  const void* v[kBlockGroups];
  int group[kBlockGroups];
  int count;
};

inline Groups GroupsOf(const KvBlock& block, uint64_t keys) {
  Groups groups;
  groups.count = 0;
  for (int g = 0; g < kBlockGroups; ++g) {
    if (GroupBits(keys, g) == 0) continue;
    groups.k[groups.count] = block.k[g];
    groups.v[groups.count] = block.v[g];
    groups.group[groups.count++] = g;
  }
  return groups;
}

// No group lacks all of its keys.
inline bool WholeBlock(const KvBlock& block) {
  for (int g = 0; g < kBlockGroups; ++g) {
    if (GroupBits(block.keys, g) == 0) return false;
  }
  return true;
}

// Every group is listed whole or not at all.
inline bool WholeGroups(uint64_t keys) {
  return (keys & 0x0001000100010001u) * 0xffffu == keys;
}

// A probability of 0 does not keep a NaN or infinity of V out, so the values of runs of kRunKeys
// that are listed in part are copied, with zeros for the keys that are not, which are not read.
template <class E, int kRunKeys>
__attribute__((noinline)) void CleanValues(const AttentionTile& tile, KvBlock* block) {
  using Word = uint32_t __attribute__((may_alias));
  constexpr int kRunGroups = kRunKeys / kGroupKeys;
  constexpr uint64_t kRun = (uint64_t{1} << kRunKeys) - 1;
  constexpr uint32_t kElement = E::kPack == 1 ? 0xffffffffu : 0xffffu;
  for (int first = 0; first < kBlockGroups; first += kRunGroups) {
    const uint64_t run = (block->keys >> (first * kGroupKeys)) & kRun;
    if (run == 0 || run == kRun) continue;
    for (int g = first; g < first + kRunGroups; ++g) {
      const uint32_t bits = GroupBits(block->keys, g);
      auto* to = static_cast<Word*>(tile.values) +
                 int64_t{g} * (kGroupKeys / E::kPack) * tile.head_dim;
      const auto* from = static_cast<const Word*>(block->v[g]);
      block->v[g] = to;
      for (int key = 0; key < kGroupKeys; key += E::kPack, to += tile.head_dim) {
        uint32_t keep = (bits >> key) & 1u ? kElement : 0;
        if (E::kPack == 2 && ((bits >> (key + 1)) & 1u) != 0) keep |= ~kElement;
        if (keep == 0) {
          for (int d = 0; d < tile.head_dim; ++d) to[d] = 0;
        } else {
          const Word* row = from + int64_t{key / E::kPack} * tile.head_dim;
          for (int d = 0; d < tile.head_dim; ++d) to[d] = row[d] & keep;
        }
      }
    }
  }
}

// A group's lines, in one go: for blocks that read a part of their keys.
template <class E>
void PrefetchKeys(const AttentionTile& tile, const KvBlock& block, int group) {
  const auto* k = static_cast<const typename E::Kv*>(block.k[group]);
  for (int i = 0; i < tile.head_dim; i += E::kPack, k += tile.k_stride) Prefetch(k);
}

template <class E>
void PrefetchValues(const AttentionTile& tile, const KvBlock& block, int group) {
  constexpr uint32_t kRow = (1u << E::kPack) - 1;
  const auto* v = static_cast<const typename E::Kv*>(block.v[group]);
  const int64_t elements = int64_t{E::kPack} * tile.head_dim;  // of a row of that many keys
  for (uint32_t bits = GroupBits(block.keys, group); bits != 0; bits >>= E::kPack, v += elements) {
    if ((bits & kRow) == 0) continue;
    for (int64_t i = 0; i < elements; i += 64 / sizeof(*v)) Prefetch(v + i);
  }
}

// What is rare happens in place before the softmax, so that its loop keeps to registers.
__attribute__((noinline)) void TransformScores(const AttentionTile& tile, float* scores,
                                               uint64_t keys) {
  for (int i = 0; i < kBlockKeys; i += kLanes) {
    Vec s = Load(scores + i);
    if (tile.transform) s = Mul(s, Set1(tile.scale));
    if (tile.softcap > 0.0f) s = Softcap(s, tile.softcap);
    Store(scores + i, KeepOrNegInf(s, static_cast<uint32_t>(keys >> i)));
  }
}

// Online softmax (Milakov and Gimelshein 2018) of some rows of scores: writes their p, moves max
// and sum, and gives the factor that each row's accumulators must take: exactly 1 when no key of
// this block raises the max, so also when none is visible.
template <class E>
inline void SoftmaxRows(const AttentionTile& tile, int row, int rows, const uint64_t* keys,
                        float* factor) {
  constexpr int kVecs = kBlockKeys / kLanes;
  auto* probs = static_cast<typename E::A*>(tile.probs);
  float* scores = tile.scores;
  float* max = tile.max + row;
  float* sums = tile.sum + row * kSumLanes;
  const Vec scale = Set1(tile.scale_log2);
#pragma GCC unroll 1
  for (int r = 0; r < rows; ++r) {
    if (keys[r] != ~uint64_t{0} || tile.transform) TransformScores(tile, scores, keys[r]);
    Vec s[kVecs];
    for (int i = 0; i < kVecs; ++i) s[i] = Load(scores + i * kLanes);
    Vec top = s[0];
    for (int i = 1; i < kVecs; ++i) top = Max(top, s[i]);
    Vec kept = Load(sums);
    factor[r] = 1.0f;
    if (AnyGreater(top, Set1(max[r]))) {
      const float old_max = max[r];
      max[r] = ReduceMax(top);
      const Vec rescale = Exp2(Set1((old_max - max[r]) * tile.scale_log2));
      kept = Mul(kept, rescale);
      factor[r] = First(rescale);
    }
    const Vec shift = Set1(-max[r] * tile.scale_log2);
    for (int i = 0; i < kVecs; ++i) s[i] = Exp2(Fma(s[i], scale, shift));
    E::StoreProbs(probs, s);
    for (int width = kVecs; width > 1; width /= 2) {
      for (int i = 0; i < width / 2; ++i) s[i] = Add(s[i], s[i + width / 2]);
    }
    Store(sums, Add(kept, s[0]));
    scores += kBlockKeys;
    probs += kBlockKeys;
    sums += kSumLanes;
  }
}

// scores[r, j] = q[r] . k[j] for R rows and the keys of G groups from `groups` at `first`.
template <class E, int R, int G, bool kPrefetch>
inline void ScoreGroups(const AttentionTile& tile, const Groups& groups, const KvBlock* next,
                        const typename E::A* q, int first) {
  using Kv = typename E::Kv;
  constexpr int kGroupVecs = kGroupKeys / kLanes;
  constexpr int kCols = G * kGroupVecs;
  const int steps = tile.head_dim / E::kPack;
  const Kv* k[kCols];
  const Kv* ahead[G];
  for (int c = 0; c < kCols; ++c) {
    k[c] = static_cast<const Kv*>(groups.k[first + c / kGroupVecs]) +
           c % kGroupVecs * kLanes * E::kPack;
  }
  for (int g = 0; kPrefetch && g < G; ++g) ahead[g] = static_cast<const Kv*>(next->k[first + g]);
  Vec sum[R][kCols];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < kCols; ++c) sum[r][c] = Set1(0.0f);
  }
  for (int64_t step = 0, at = 0; step < steps; ++step, at += tile.k_stride) {
    typename E::KvVec kv[kCols];
    for (int c = 0; c < kCols; ++c) {
      kv[c] = E::LoadKv(k[c] + at);
      if (kPrefetch && c % kGroupVecs == 0) Prefetch(ahead[c / kGroupVecs] + at);
    }
    for (int r = 0; r < R; ++r, q += E::kPack) {
      const auto left = E::LoadA(q);
      for (int c = 0; c < kCols; ++c) sum[r][c] = E::Dot(sum[r][c], left, kv[c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < kCols; ++c) {
      const int key = groups.group[first + c / kGroupVecs] * kGroupKeys + c % kGroupVecs * kLanes;
      Store(tile.scores + r * kBlockKeys + key, sum[r][c]);
    }
  }
}

// G groups at a time, then the rest in smaller lots. With kPrefetch both blocks are whole.
template <class E, int R, int G, bool kPrefetch>
inline void ScoreRows(const AttentionTile& tile, const Groups& groups, const KvBlock* next,
                      const typename E::A* q, int first) {
  for (; first + G <= groups.count; first += G) {
    ScoreGroups<E, R, G, kPrefetch>(tile, groups, next, q, first);
  }
  if constexpr (G > 1 && !kPrefetch) {
    if (first < groups.count) ScoreRows<E, R, G / 2, false>(tile, groups, next, q, first);
  }
}

// out[r, col : col + C vectors] = factor[r] * out + probs[r] . v, over the groups of the block.
template <class E, int R, int C, bool kPrefetch>
inline void AccumulateColumns(const AttentionTile& tile, const Groups& visible,
                              const KvBlock* next, float* out, const float* factor, int col) {
  using Kv = typename E::Kv;
  const int64_t v_stride = int64_t{tile.head_dim} * E::kPack;
  const int64_t offset = int64_t{col} * E::kPack;
  Vec sum[R][C];
  for (int r = 0; r < R; ++r) {
    const Vec scale = Set1(factor[r]);
    for (int c = 0; c < C; ++c) {
      sum[r][c] = Mul(Load(out + int64_t{r} * tile.head_dim + col + c * kLanes), scale);
    }
  }
  for (int i = 0; i < visible.count; ++i) {
    const int g = visible.group[i];
    const Kv* v = static_cast<const Kv*>(visible.v[i]) + offset;
    const auto* ahead = kPrefetch ? static_cast<const Kv*>(next->v[g]) + offset : nullptr;
    const typename E::A* a = static_cast<const typename E::A*>(tile.probs) + g * kGroupKeys;
#pragma GCC unroll 2
    for (int step = 0; step < kGroupKeys / E::kPack; ++step, v += v_stride, a += E::kPack) {
      typename E::KvVec kv[C];
      for (int c = 0; c < C; ++c) {
        kv[c] = E::LoadKv(v + c * kLanes * E::kPack);
        if (kPrefetch && c * kLanes % kGroupKeys == 0) {
          Prefetch(ahead + step * v_stride + c * kLanes * E::kPack);
        }
      }
      for (int r = 0; r < R; ++r) {
        const auto left = E::LoadA(a + r * kBlockKeys);
        for (int c = 0; c < C; ++c) sum[r][c] = E::Dot(sum[r][c], left, kv[c]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      Store(out + int64_t{r} * tile.head_dim + col + c * kLanes, sum[r][c]);
    }
  }
}

template <class E, int R, int C, bool kPrefetch>
inline void AccumulateRows(const AttentionTile& tile, const Groups& visible,
                           const KvBlock* next, float* out, const float* factor, int col) {
  for (; col + C * kLanes <= tile.head_dim; col += C * kLanes) {
    AccumulateColumns<E, R, C, kPrefetch>(tile, visible, next, out, factor, col);
  }
  if constexpr (C > 1 && kLanes * C > kGroupKeys) {
    if (col < tile.head_dim) {
      AccumulateRows<E, R, C / 2, kPrefetch>(tile, visible, next, out, factor, col);
    }
  }
}

// kPrefetch: the lines of `next` between the loads of this block, where both are read whole.
template <class E, int R, bool kPrefetch>
void MicroTile(const AttentionTile& tile, const Groups& visible, const KvBlock* next, int row,
               const uint64_t* keys) {
  constexpr int kGroups = kMicroCols * kLanes / kGroupKeys;
  ScoreRows<E, R, kGroups, kPrefetch>(
      tile, visible, next, static_cast<typename E::A*>(tile.q) + int64_t{row} * tile.head_dim, 0);
  float factor[R];
  SoftmaxRows<E>(tile, row, R, keys, factor);
  AccumulateRows<E, R, kMicroCols, kPrefetch>(tile, visible, next,
                                              tile.out + int64_t{row} * tile.head_dim, factor, 0);
}

template <class E, int R>
void RunMicroTile(int rows, const AttentionTile& tile, const Groups& visible, const KvBlock* next,
                  int row, const uint64_t* keys) {
  if (rows == R) {
    if (next != nullptr) {
      MicroTile<E, R, true>(tile, visible, next, row, keys);
    } else {
      MicroTile<E, R, false>(tile, visible, next, row, keys);
    }
  } else if constexpr (R > 1) {
    RunMicroTile<E, R - 1>(rows, tile, visible, next, row, keys);
  }
}

template <class E>
void FoldBlock(const AttentionTile& tile, const KvBlock& listed, const KvBlock* next) {
  KvBlock block = listed;
  if (!WholeGroups(block.keys)) CleanValues<E, kGroupKeys>(tile, &block);
  for (int row = 0; row < tile.rows; row += kMicroRows) {
    const int rows = tile.rows - row < kMicroRows ? tile.rows - row : kMicroRows;
    uint64_t keys[kMicroRows];
    uint64_t any = 0;
    for (int r = 0; r < rows; ++r) {
      keys[r] = VisibleKeys(tile, block, tile.positions[row + r]);
      any |= keys[r];
    }
    if (any == 0) continue;
    const Groups visible = GroupsOf(block, any);
    if (next != nullptr && (visible.count < kBlockGroups || !WholeBlock(*next))) {
      for (int g = 0; g < kBlockGroups; ++g) {
        if (GroupBits(next->keys, g) == 0) continue;
        PrefetchKeys<E>(tile, *next, g);
        PrefetchValues<E>(tile, *next, g);
      }
      next = nullptr;
    }
    RunMicroTile<E, kMicroRows>(rows, tile, visible, next, row, keys);
    next = nullptr;
  }
}

// Queries lie micro tile by micro tile, [head_dim / kPack][rows of the micro tile][kPack].
template <class E>
void PackRow(const AttentionTile& tile, int row, const void* q) {
  const int first = row / kMicroRows * kMicroRows;
  const int rows = tile.rows - first < kMicroRows ? tile.rows - first : kMicroRows;
  const auto* from = static_cast<const typename E::Kv*>(q);
  auto* to = static_cast<typename E::A*>(tile.q) + int64_t{first} * tile.head_dim +
             (row - first) * E::kPack;
  for (int i = 0; i < tile.head_dim; i += E::kPack, to += rows * E::kPack) {
    for (int j = 0; j < E::kPack; ++j) to[j] = E::FromKv(from[i + j]);
  }
}

template <class E>
void StoreRow(const AttentionTile& tile, int row, float factor, void* out) {
  const float* from = tile.out + int64_t{row} * tile.head_dim;
  auto* to = static_cast<typename E::Kv*>(out);
  const Vec scale = Set1(factor);
  for (int i = 0; i < tile.head_dim; i += kLanes) {
    E::StoreOut(to + i, Mul(Load(from + i), scale));
  }
}
