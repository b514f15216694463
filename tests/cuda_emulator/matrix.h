// ldmatrix, movmatrix and mma.sync of a warp, in the register layouts of the PTX ISA.
#pragma once

#include <cstdint>

namespace cuda_emulator {

// `count` (1, 2 or 4) 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
void LoadMatrix(uint32_t* out, int count, bool transposed, uint32_t address);
uint32_t TransposeMatrix(uint32_t value);
// d += a * b in f32: a 16 x 16 by rows, b 16 x 8 by columns; of bf16, else of f16.
void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bf16);

}  // namespace cuda_emulator
