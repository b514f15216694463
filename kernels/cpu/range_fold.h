// The seam between SelectRanges and its inner loops over logits, one translation unit per
// instruction set. Plain data and function pointers only (attention_tile.h says why). Any thread.
//
// A tile of logits is [keys][kFoldColumns]: keys down, queries across, in units of log2. Query i
// sees the key rows r <= visible + i.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace lacuna::kernels::cpu {

inline constexpr int kFoldColumns = 32;
inline constexpr int kFoldRows = 128;
// Below every logit; finite, so that a difference of two is 0 and not NaN.
inline constexpr float kNoLogit = -1e30f;

struct FoldTile final {
  const float* logits;
  int32_t rows;     // <= kFoldRows
  int32_t visible;  // below -31 no query sees any key
};

struct RangeFolds final {
  // max[i] over the visible rows, kNoLogit without any; sums[b][i] = sum of 2^(logit - max[i]) over
  // rows [b * sum_rows, (b + 1) * sum_rows).
  void (*sum)(const FoldTile& tile, int32_t sum_rows, float* max, float* sums);
  // p = 2^(logit - lse[i]); rows[r] += sum over i of p; diagonals[i - r] += p, also where p is 0.
  void (*spread)(const FoldTile& tile, const float* lse, float* rows, float* diagonals);
};

const RangeFolds& RangeFoldsOf(Isa isa);

}  // namespace lacuna::kernels::cpu
