// Matmul on AMX tiles: 32 rows x 32 columns held in four accumulator tiles while k runs.
//
// Also serves few rows: a tile instruction costs the same for 1 row as for 16, and streams weights
// faster than memory gives them. Rows beyond the last hold rubbish that no output reads.
#define LACUNA_ISA amx
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/matmul_epilogue.inl"

namespace lacuna::kernels::cpu::amx {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileK = 32;                          // bf16 values of one tile row
constexpr int64_t kPanelStride = kPanelColumns * 4;     // bytes of one pair of k in a panel
constexpr int64_t kPanelTileBytes = 16 * kPanelStride;  // a panel's share of kTileK values of k
constexpr int64_t kPrefetchBytes = 2 * kPanelTileBytes;
static_assert(kKPadding % kTileK == 0 && kPanelColumns == 32);

struct alignas(64) TileConfig final {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Constant data, and all 64 bytes named as input: g++ 12's _tile_loadconfig claims to read 8 bytes
// only, so that the stores that fill a local one are dropped.
constexpr TileConfig kConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

void LoadConfig() { asm volatile("ldtilecfg %0" ::"m"(kConfig)); }

struct TileRows final {
  const char* data;
  int64_t stride;  // bytes
};

// 16 rows of x that tiles may load whole: x itself, or a copy with k padded by zeros.
TileRows RowsOf(const PanelArgs& args, int64_t first, int64_t rows, char* scratch) {
  const char* x = static_cast<const char*>(args.x) + first * args.x_stride * 2;
  if (rows == kTileRows && args.k % kTileK == 0) return {x, args.x_stride * 2};
  const int64_t bytes = args.k * 2;
  const int64_t padded_bytes = (args.k + kTileK - 1) / kTileK * kTileK * 2;
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(scratch + r * padded_bytes, x + r * args.x_stride * 2, static_cast<size_t>(bytes));
    std::memset(scratch + r * padded_bytes + bytes, 0, static_cast<size_t>(padded_bytes - bytes));
  }
  return {scratch, padded_bytes};
}

inline void Prefetch(const char* from, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line);
}

// c[32][kPanelColumns] = 32 rows times the panel. Tiles 0-3 accumulate, 4-5 are x, 6-7 the panel.
void Multiply32(const TileRows& top, const TileRows& bottom, const char* panel, int64_t tiles_k,
                float* c) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const char* x0 = top.data;
  const char* x1 = bottom.data;
  for (int64_t i = 0; i < tiles_k; ++i) {
    _tile_loadd(6, panel, kPanelStride);
    _tile_loadd(4, x0, top.stride);
    _tile_loadd(5, x1, bottom.stride);
    _tile_loadd(7, panel + 64, kPanelStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
    panel += kPanelTileBytes;
    x0 += 64;
    x1 += 64;
  }
  _tile_stored(0, c, kPanelStride);
  _tile_stored(1, c + 16, kPanelStride);
  _tile_stored(2, c + kTileRows * kPanelColumns, kPanelStride);
  _tile_stored(3, c + kTileRows * kPanelColumns + 16, kPanelStride);
}

// c[16][kPanelColumns] = 16 rows times the panel, in the same order along k.
void Multiply16(const TileRows& x, const char* panel, int64_t tiles_k, float* c) {
  _tile_zero(0);
  _tile_zero(1);
  const char* x0 = x.data;
  for (int64_t i = 0; i < tiles_k; ++i) {
    Prefetch(panel + kPrefetchBytes, kPanelTileBytes);
    _tile_loadd(6, panel, kPanelStride);
    _tile_loadd(4, x0, x.stride);
    _tile_loadd(7, panel + 64, kPanelStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    panel += kPanelTileBytes;
    x0 += 64;
  }
  _tile_stored(0, c, kPanelStride);
  _tile_stored(1, c + 16, kPanelStride);
}

}  // namespace

void PanelBf16(const PanelArgs& args);

void PanelBf16(const PanelArgs& args) {
  alignas(64) float c[2 * kTileRows * kPanelColumns];
  const char* panel = static_cast<const char*>(args.panel);
  char* scratch = static_cast<char*>(args.scratch);
  const int64_t tiles_k = (args.k + kTileK - 1) / kTileK;
  char* second_scratch = scratch + kTileRows * tiles_k * 64;
  LoadConfig();
  for (int64_t first = 0; first < args.rows; first += 2 * kTileRows) {
    const int64_t left = args.rows - first;
    const int64_t rows = left < 2 * kTileRows ? left : 2 * kTileRows;
    const int64_t top_rows = rows < kTileRows ? rows : kTileRows;
    const TileRows top = RowsOf(args, first, top_rows, scratch);
    // The tile instructions are asm that names no memory: what they read must be stored by now.
    if (rows > kTileRows) {
      const TileRows bottom = RowsOf(args, first + kTileRows, rows - kTileRows, second_scratch);
      asm volatile("" ::: "memory");
      Multiply32(top, bottom, panel, tiles_k, c);
    } else {
      asm volatile("" ::: "memory");
      Multiply16(top, panel, tiles_k, c);
    }
    asm volatile("" ::: "memory");
    Finish(args, first, rows, c);
  }
  _tile_release();
}

}  // namespace lacuna::kernels::cpu::amx
