// The attention kernel, written once over a small set of vector operations. Included by one
// translation unit per instruction set, inside its anonymous namespace, after these names:
//   Vec, kLanes, kMicroRows, kMicroCols, Load, Store, Set1, Add, Sub, Mul, Div, Fma (a * b + c),
//   Max (the second operand when one is NaN), Min, ShiftToExponent (the lane's bits << 23),
//   KeepOrNegInf (lanes without their bit become -inf), ReduceMax, WidenEven and WidenOdd (elements
//   2i and 2i + 1 of a run of bf16).
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

// 2^x for x <= 126; exactly 1 at 0, exactly 0 below -126.5, relative error under 2e-7 between.
// Adding 1.5 * 2^23 + 127 rounds x to the integer n and leaves n + 127 in the low bits; 2^(x - n)
// is a minimax polynomial on [-1/2, 1/2] with the constant term held at 1.
inline Vec Exp2(Vec x) {
  x = Max(Set1(-127.0f), x);
  const Vec magic = Set1(12582912.0f + 127.0f);
  const Vec biased = Add(x, magic);
  const Vec f = Sub(x, Sub(biased, magic));
  Vec p = Fma(f, Set1(0.00132647286f), Set1(0.0096715156f));
  p = Fma(p, f, Set1(0.0555073377f));
  p = Fma(p, f, Set1(0.24022242f));
  p = Fma(p, f, Set1(0.693146978f));
  return Mul(Fma(p, f, Set1(1.0f)), ShiftToExponent(biased));
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
inline uint64_t VisibleKeys(const AttentionTile& tile, const KvBlock& block, uint64_t listed,
                            int32_t position) {
  const int64_t own = position - block.first_key;
  uint64_t keys = LowBits(own + 1) & listed;
  if (tile.window_tokens > 0) {
    const uint64_t in_window = ~LowBits(own - tile.window_tokens + 1);
    keys &= in_window | LowBits(tile.sink_tokens - block.first_key);
  }
  return keys;
}

inline uint64_t ListedKeys(uint32_t groups) {
  uint64_t keys = 0;
  for (int g = 0; g < kBlockGroups; ++g) {
    if ((groups >> g) & 1u) keys |= uint64_t{0xffff} << (kGroupKeys * g);
  }
  return keys;
}

// Online softmax (Milakov and Gimelshein 2018) of one row of scores: writes the row's p, moves its
// max and sum, and returns the factor that its accumulators must take. Exactly 1 when no key of
// this block is visible.
template <class E>
inline float SoftmaxRow(const AttentionTile& tile, int row, const float* scores,
                        typename E::A* probs, uint64_t keys) {
  constexpr int kVecs = kBlockKeys / kLanes;
  Vec s[kVecs];
  for (int i = 0; i < kVecs; ++i) s[i] = Load(scores + i * kLanes);
  if (tile.transform) {
    for (int i = 0; i < kVecs; ++i) {
      s[i] = Mul(s[i], Set1(tile.scale));
      if (tile.softcap > 0.0f) s[i] = Softcap(s[i], tile.softcap);
    }
  }
  if (keys != ~uint64_t{0}) {
    for (int i = 0; i < kVecs; ++i) {
      s[i] = KeepOrNegInf(s[i], static_cast<uint32_t>(keys >> (i * kLanes)));
    }
  }
  Vec top = s[0];
  for (int i = 1; i < kVecs; ++i) top = Max(top, s[i]);
  const float old_max = tile.max[row];
  const float block_max = ReduceMax(top);
  const float max = block_max > old_max ? block_max : old_max;
  const Vec scale = Set1(tile.scale_log2);
  const Vec shift = Set1(-max * tile.scale_log2);
  for (int i = 0; i < kVecs; ++i) s[i] = Exp2(Fma(s[i], scale, shift));
  E::StoreProbs(probs, s);
  Vec sum = s[0];
  for (int i = 1; i < kVecs; ++i) sum = Add(sum, s[i]);
  float* lanes = tile.sum + row * kSumLanes;
  if (max == old_max) {
    Store(lanes, Add(Load(lanes), sum));
    return 1.0f;
  }
  tile.max[row] = max;
  const Vec factor = Exp2(Set1((old_max - max) * tile.scale_log2));
  Store(lanes, Fma(Load(lanes), factor, sum));
  float first[kLanes];
  Store(first, factor);
  return first[0];
}

// scores[r, j] = q[r] . k[j] for R rows and the 64 keys of the block.
template <class E, int R, bool kPrefetch>
inline void ScoreRows(const AttentionTile& tile, const KvBlock& block, const KvBlock* next,
                      const typename E::A* q) {
  using Kv = typename E::Kv;
  constexpr int kPass = kLanes * kMicroCols;
  const int steps = tile.head_dim / E::kPack;
  for (int first = 0; first < kBlockKeys; first += kPass) {
    const Kv* k[kMicroCols];
    const char* ahead[kMicroCols];
    for (int c = 0; c < kMicroCols; ++c) {
      const int key = first + c * kLanes;
      k[c] = static_cast<const Kv*>(block.k[key / kGroupKeys]) + key % kGroupKeys * E::kPack;
      if (kPrefetch) ahead[c] = static_cast<const char*>(next->k[key / kGroupKeys]);
    }
    Vec sum[R][kMicroCols];
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < kMicroCols; ++c) sum[r][c] = Set1(0.0f);
    }
    const typename E::A* a = q;
    for (int64_t step = 0, at = 0; step < steps; ++step, at += tile.k_stride) {
      typename E::KvVec kv[kMicroCols];
      for (int c = 0; c < kMicroCols; ++c) {
        kv[c] = E::LoadKv(k[c] + at);
        if (kPrefetch && c * kLanes % kGroupKeys == 0) {
          __builtin_prefetch(ahead[c] + at * static_cast<int64_t>(sizeof(Kv)));
        }
      }
      for (int r = 0; r < R; ++r, a += E::kPack) {
        const auto left = E::LoadA(a);
        for (int c = 0; c < kMicroCols; ++c) sum[r][c] = E::Dot(sum[r][c], left, kv[c]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < kMicroCols; ++c) {
        Store(tile.scores + r * kBlockKeys + first + c * kLanes, sum[r][c]);
      }
    }
  }
}

// out[r, col : col + C vectors] = factor[r] * out + probs[r] . v, over the groups of the block.
template <class E, int R, int C, bool kPrefetch>
inline void AccumulateColumns(const AttentionTile& tile, const KvBlock& block, const KvBlock* next,
                              float* out, const float* factor, uint32_t groups, int col) {
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
  for (int g = 0; g < kBlockGroups; ++g) {
    const char* ahead = nullptr;
    if (kPrefetch && ((next->groups >> g) & 1u)) {
      ahead = static_cast<const char*>(next->v[g]) + offset * static_cast<int64_t>(sizeof(Kv));
    }
    if (!((groups >> g) & 1u)) continue;
    const Kv* v = static_cast<const Kv*>(block.v[g]) + offset;
    const typename E::A* a = static_cast<const typename E::A*>(tile.probs) + g * kGroupKeys;
    for (int step = 0; step < kGroupKeys / E::kPack; ++step, v += v_stride, a += E::kPack) {
      typename E::KvVec kv[C];
      for (int c = 0; c < C; ++c) {
        kv[c] = E::LoadKv(v + c * kLanes * E::kPack);
        if (kPrefetch && c * kLanes % kGroupKeys == 0 && ahead != nullptr) {
          __builtin_prefetch(ahead + (step * v_stride + c * kLanes * E::kPack) *
                                         static_cast<int64_t>(sizeof(Kv)));
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
inline void AccumulateRows(const AttentionTile& tile, const KvBlock& block, const KvBlock* next,
                           float* out, const float* factor, uint32_t groups, int col) {
  for (; col + C * kLanes <= tile.head_dim; col += C * kLanes) {
    AccumulateColumns<E, R, C, kPrefetch>(tile, block, next, out, factor, groups, col);
  }
  if constexpr (C > 1 && kLanes * C > kGroupKeys) {
    if (col < tile.head_dim) {
      AccumulateRows<E, R, C / 2, kPrefetch>(tile, block, next, out, factor, groups, col);
    }
  }
}

template <class E, int R, bool kPrefetch>
void MicroTile(const AttentionTile& tile, const KvBlock& block, const KvBlock* next, int row,
               const uint64_t* keys, uint64_t any) {
  auto* probs = static_cast<typename E::A*>(tile.probs);
  ScoreRows<E, R, kPrefetch>(tile, block, next,
                             static_cast<typename E::A*>(tile.q) + int64_t{row} * tile.head_dim);
  float factor[R];
  for (int r = 0; r < R; ++r) {
    factor[r] =
        SoftmaxRow<E>(tile, row + r, tile.scores + r * kBlockKeys, probs + r * kBlockKeys, keys[r]);
  }
  uint32_t groups = 0;
  for (int g = 0; g < kBlockGroups; ++g) {
    if ((any >> (g * kGroupKeys)) & 0xffffu) groups |= 1u << g;
  }
  AccumulateRows<E, R, kMicroCols, kPrefetch>(
      tile, block, next, tile.out + int64_t{row} * tile.head_dim, factor, groups, 0);
}

template <class E, int R>
void RunMicroTile(int rows, const AttentionTile& tile, const KvBlock& block, const KvBlock* next,
                  int row, const uint64_t* keys, uint64_t any) {
  if (rows == R) {
    if (next != nullptr) {
      MicroTile<E, R, true>(tile, block, next, row, keys, any);
    } else {
      MicroTile<E, R, false>(tile, block, next, row, keys, any);
    }
  } else if constexpr (R > 1) {
    RunMicroTile<E, R - 1>(rows, tile, block, next, row, keys, any);
  }
}

template <class E>
void FoldBlock(const AttentionTile& tile, const KvBlock& block, const KvBlock* next) {
  const uint64_t listed = ListedKeys(block.groups);
  for (int row = 0; row < tile.rows; row += kMicroRows) {
    const int rows = tile.rows - row < kMicroRows ? tile.rows - row : kMicroRows;
    uint64_t keys[kMicroRows];
    uint64_t any = 0;
    for (int r = 0; r < rows; ++r) {
      keys[r] = VisibleKeys(tile, block, listed, tile.positions[row + r]);
      any |= keys[r];
    }
    if (any == 0) continue;
    RunMicroTile<E, kMicroRows>(rows, tile, block, next, row, keys, any);
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
