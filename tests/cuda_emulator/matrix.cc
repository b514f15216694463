#include "tests/cuda_emulator/matrix.h"

#include <cuda_fp16.h>

#include <bit>
#include <cstring>

#include "tests/cuda_emulator/block.h"

namespace cuda_emulator {
namespace {

constexpr uint32_t kAllLanes = ~0u;

void NeedAllLanes(uint32_t present, const char* what) {
  if (present != kAllLanes) Fail("%s: lanes 0x%x of the warp are there", what, present);
}

struct LoadOperand final {
  const std::byte* row;  // null in lanes that name none
  int count;
  bool transposed;
  uint32_t out[4];
};

void CombineLoad(void* const* lanes, uint32_t present) {
  NeedAllLanes(present, "ldmatrix");
  const auto lane = [&](int i) { return static_cast<LoadOperand*>(lanes[i]); };
  for (int matrix = 0; matrix < lane(0)->count; ++matrix) {
    uint16_t cells[8][8];
    for (int row = 0; row < 8; ++row) std::memcpy(cells[row], lane(matrix * 8 + row)->row, 16);
    for (int i = 0; i < kLanes; ++i) {
      const int row = i / 4;
      const int column = i % 4 * 2;
      const bool transposed = lane(i)->transposed;
      const uint32_t low = transposed ? cells[column][row] : cells[row][column];
      const uint32_t high = transposed ? cells[column + 1][row] : cells[row][column + 1];
      lane(i)->out[matrix] = high << 16 | low;
    }
  }
}

void CombineTranspose(void* const* lanes, uint32_t present) {
  NeedAllLanes(present, "movmatrix");
  uint16_t cells[8][8];
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t value = *static_cast<const uint32_t*>(lanes[i]);
    cells[i / 4][i % 4 * 2] = static_cast<uint16_t>(value);
    cells[i / 4][i % 4 * 2 + 1] = static_cast<uint16_t>(value >> 16);
  }
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t low = cells[i % 4 * 2][i / 4];
    const uint32_t high = cells[i % 4 * 2 + 1][i / 4];
    *static_cast<uint32_t*>(lanes[i]) = high << 16 | low;
  }
}

struct MmaOperand final {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

template <bool kBf16>
float ToFloat(uint16_t bits) {
  if constexpr (kBf16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

// Register r of a holds rows g + 8 * (r % 2), columns 2 * t + 8 * (r / 2); of b rows 2 * t + 8 * r,
// column g; of d rows g + 8 * (r / 2), column 2 * t + r % 2; g = lane / 4, t = lane % 4.
template <bool kBf16>
void CombineMma(void* const* lanes, uint32_t present) {
  NeedAllLanes(present, "mma.sync");
  float a[16][16];
  float b[8][16];  // by columns
  for (int i = 0; i < kLanes; ++i) {
    const auto& lane = *static_cast<const MmaOperand*>(lanes[i]);
    const int g = i / 4;
    const int t = i % 4;
    for (int r = 0; r < 4; ++r) {
      for (int half = 0; half < 2; ++half) {
        a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + half] =
            ToFloat<kBf16>(static_cast<uint16_t>(lane.a[r] >> (16 * half)));
      }
    }
    for (int r = 0; r < 2; ++r) {
      for (int half = 0; half < 2; ++half) {
        b[g][2 * t + 8 * r + half] =
            ToFloat<kBf16>(static_cast<uint16_t>(lane.b[r] >> (16 * half)));
      }
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    const auto& lane = *static_cast<const MmaOperand*>(lanes[i]);
    for (int r = 0; r < 4; ++r) {
      const float* row = a[i / 4 + 8 * (r / 2)];
      const float* column = b[i % 4 * 2 + r % 2];
      float sum = lane.d[r];
      for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
      lane.d[r] = sum;
    }
  }
}

}  // namespace

void LoadMatrix(uint32_t* out, int count, bool transposed, uint32_t address) {
  LoadOperand operand{nullptr, count, transposed, {}};
  if (Lane() < count * 8) operand.row = SharedAt(address, 16, 16);
  WarpExchange(kAllLanes, "ldmatrix", &operand, CombineLoad);
  std::memcpy(out, operand.out, static_cast<size_t>(count) * sizeof(uint32_t));
}

uint32_t TransposeMatrix(uint32_t value) {
  WarpExchange(kAllLanes, "movmatrix", &value, CombineTranspose);
  return value;
}

void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bf16) {
  MmaOperand operand{d, a, {b0, b1}};
  WarpExchange(kAllLanes, "mma.sync", &operand, bf16 ? CombineMma<true> : CombineMma<false>);
}

}  // namespace cuda_emulator
