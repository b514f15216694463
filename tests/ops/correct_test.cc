// CorrectPrefill and CompareAttention against double precision, on every backend.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/ops/op_test.h"

namespace lacuna::kernels {
namespace {

class Correct : public OpTest {};

constexpr int kHeads = 3;

struct CorrectCase final {
  std::vector<PrefillChunk> chunks;
  int stride;
  int dim;
};

// Chunks that start on, before and inside a stride, hold no such row, or only one.
std::vector<CorrectCase> Cases() {
  return {{{{0, 130, 0}}, 64, 64},
          {{{2, 71, 60}, {75, 10, 5}, {86, 1, 128}, {90, 70, 64}}, 64, 16},
          {{{0, 9, 63}, {12, 40, 3}}, 7, 112},
          {{{0, 5, 11}, {6, 3, 0}}, 1, 32},
          {{{1, 300, 190}}, 4096, 128},
          {{{1, 20, 1}}, 64, 32}};
}

TEST_P(Correct, PrefillDeltaAndOverwrite) {
  for (const CorrectCase& test : Cases()) {
    for (const auto kind : {PrefillCorrectKind::kDelta, PrefillCorrectKind::kOverwrite}) {
      const int64_t columns = kHeads * test.dim;
      const int64_t rows = test.chunks.back().first_row + test.chunks.back().rows + 2;
      int64_t dense_rows = 0;
      for (const PrefillChunk& chunk : test.chunks) {
        for (int i = 0; i < chunk.rows; ++i) {
          dense_rows += (chunk.first_position + i) % test.stride == 0;
        }
      }
      TestTensor out(place(), act(), rows, columns, columns + 16);
      TestTensor dense(place(), act(), dense_rows, columns, columns + 32);
      out.Fill(random());
      dense.Fill(random());
      const TestTensor before = out;
      const CorrectPrefillArgs args{.kind = kind,
                                    .chunks = test.chunks,
                                    .stride_rows = test.stride,
                                    .dense = dense.view3(kHeads),
                                    .out = out.view3(kHeads)};
      ASSERT_EQ(CorrectPrefill(backend(), args, stream()), OkStatus());
      std::vector<bool> touched(static_cast<size_t>(rows), false);
      int64_t next = 0;
      for (const PrefillChunk& chunk : test.chunks) {
        int64_t anchor = -1;
        for (int i = 0; i < chunk.rows; ++i) {
          const int64_t row = chunk.first_row + i;
          const bool exact = (chunk.first_position + i) % test.stride == 0;
          if (exact) anchor = row, ++next;
          if (anchor < 0 || (kind == PrefillCorrectKind::kOverwrite && !exact)) continue;
          touched[static_cast<size_t>(row)] = true;
          for (int64_t c = 0; c < columns; ++c) {
            const double to = double{dense.at(next - 1, c)};
            const double want =
                exact ? to : double{before.at(row, c)} + (to - double{before.at(anchor, c)});
            if (exact) {
              ASSERT_EQ(out.at(row, c), to) << "row " << row;
            } else {
              ExpectNear(out.at(row, c), want, act(), 1e-6, 1e-6, "row " + std::to_string(row));
            }
          }
        }
      }
      ASSERT_EQ(next, dense_rows);
      for (int64_t row = 0; row < rows; ++row) {
        if (!touched[static_cast<size_t>(row)]) {
          ASSERT_EQ(out.RowBytes(row), before.RowBytes(row)) << "row " << row;
        }
      }
      out.ExpectGuards();
    }
  }
}

TEST_P(Correct, CompareAddsMassAndError) {
  constexpr int kRows = 5, kDim = 48, kStride = 3;
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  TestTensor sparse(place(), act(), kRows, kHeads * kDim), dense = sparse;
  TestTensor sparse_lse(place(), DType::kF32, kRows, kHeads), dense_lse = sparse_lse;
  for (TestTensor* tensor : {&sparse, &dense, &sparse_lse, &dense_lse}) tensor->Fill(random());
  for (int i = 0; i < kHeads * kDim; ++i) {  // row 3: nothing there, nor taken; row 4: only taken
    for (int row : {3, 4}) dense.set(row, i, 0.0f);
    sparse.set(3, i, 0.0f);
  }
  dense_lse.set(3, 1, kNone);
  sparse_lse.set(3, 1, kNone);
  sparse_lse.set(2, 0, kNone);
  std::vector<AttentionAudit> audits(kRows * kStride);
  for (size_t i = 0; i < audits.size(); ++i) audits[i] = {0.5f, 0.25f, static_cast<int32_t>(i)};
  TestArray<AttentionAudit> device_audits(backend(), audits);
  const CompareAttentionArgs args{.sparse = sparse.view3(kHeads),
                                  .dense = dense.view3(kHeads),
                                  .sparse_lse = sparse_lse.view(),
                                  .dense_lse = dense_lse.view(),
                                  .audits = device_audits.device(),
                                  .stride = kStride};
  ASSERT_EQ(CompareAttention(backend(), args, stream()), OkStatus());
  const std::vector<AttentionAudit> got = device_audits.Read();
  for (int row = 0; row < kRows; ++row) {
    double mass = 0.0, difference = 0.0, norm = 0.0;
    for (int head = 0; head < kHeads; ++head) {
      const float from = dense_lse.at(row, head);
      mass += from == kNone ? 1.0 : std::exp(double{sparse_lse.at(row, head)} - from);
    }
    for (int i = 0; i < kHeads * kDim; ++i) {
      difference += std::pow(double{sparse.at(row, i)} - dense.at(row, i), 2);
      norm += std::pow(double{dense.at(row, i)}, 2);
    }
    const double error = difference == 0.0 ? 0.0 : norm == 0.0 ? 1.0 : std::sqrt(difference / norm);
    const auto at = static_cast<size_t>(row * kStride);
    EXPECT_NEAR(got[at].captured_mass, 0.5 + mass / kHeads, 1e-5 * (1.0 + mass));
    EXPECT_NEAR(got[at].output_error, 0.25 + error, 1e-5 * (1.0 + error));
    EXPECT_EQ(got[at].layers, row * kStride + 1);
    for (size_t other = at + 1; other < at + kStride; ++other) {
      EXPECT_EQ(got[other].captured_mass, 0.5f);
      EXPECT_EQ(got[other].layers, static_cast<int32_t>(other));
    }
  }
}

LACUNA_INSTANTIATE_OP_TEST(Correct);
LACUNA_INSTANTIATE_EMULATED_OP_TEST(Correct);

}  // namespace
}  // namespace lacuna::kernels
