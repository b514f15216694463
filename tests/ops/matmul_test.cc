#include <tuple>

#include "tests/ops/op_test.h"

namespace lacuna::kernels {
namespace {

class MatmulTest : public OpTest {
 protected:
  struct Shape final {
    int64_t m, n, k;
  };
  struct Variant final {
    DType out = DType::kF32;
    DType weight = DType::kBF16;
    bool bias = false;
    bool accumulate = false;
    float alpha = 1.0f;
    int64_t padding = 0;  // elements between rows of x and of out
  };

  void Run(const Shape& shape, const Variant& variant) {
    const auto [m, n, k] = shape;
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k));
    TestTensor x(place(), act(), m, k, k + variant.padding);
    TestTensor weight(place(), variant.weight, n, k, k + 3);
    TestTensor bias(place(), DType::kF32, n, 1);
    TestTensor out(place(), variant.out, m, n, n + variant.padding);
    x.Fill(random());
    weight.Fill(random());
    bias.Fill(random());
    std::vector<double> start(static_cast<size_t>(m * n), 0.0);
    if (variant.accumulate) {
      out.Fill(random());
      for (int64_t i = 0; i < m * n; ++i) start[static_cast<size_t>(i)] = out.at(i / n, i % n);
    }
    auto prepared = PrepareMatrix(backend(), weight.host_view());
    ASSERT_TRUE(prepared.ok()) << prepared.status().ToString();
    MatmulArgs args{.x = x.view(), .weight = prepared->get(), .bias = {}, .out = out.view()};
    if (variant.bias) args.bias = bias.vector();
    args.alpha = variant.alpha;
    args.accumulate = variant.accumulate;
    ASSERT_EQ(Matmul(backend(), args, stream()), OkStatus());
    out.ExpectGuards();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        ExpectCell(x, weight, variant, bias, out, i, j, start[static_cast<size_t>(i * n + j)]);
      }
    }
  }

  void ExpectCell(const TestTensor& x, const TestTensor& weight, const Variant& variant,
                  const TestTensor& bias, const TestTensor& out, int64_t i, int64_t j,
                  double start) {
    double sum = variant.bias ? bias.at(j, 0) : 0.0;
    double magnitude = std::abs(sum);
    for (int64_t k = 0; k < x.dim(); ++k) {
      const float w = Rounded(weight.at(j, k), act());
      sum += static_cast<double>(x.at(i, k)) * w;
      magnitude += std::abs(static_cast<double>(x.at(i, k)) * w);
    }
    // f32 accumulation of k terms: an error of at most about k / 2 ulp of the sum of magnitudes.
    const double absolute = std::abs(variant.alpha) * magnitude * 6e-8 *
                            (4.0 + std::sqrt(static_cast<double>(x.dim())));
    ExpectNear(out.at(i, j), start + variant.alpha * sum, variant.out, 1e-6, absolute,
               "cell " + std::to_string(i) + ", " + std::to_string(j));
  }
};

TEST_P(MatmulTest, MatchesDoubleOnOddShapes) {
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{1, 32, 32}, Shape{2, 31, 33}, Shape{3, 33, 31}, Shape{5, 64, 2},
        Shape{12, 65, 100}, Shape{13, 100, 65}, Shape{16, 16, 16}, Shape{17, 1, 257},
        Shape{31, 40, 64}, Shape{33, 96, 96}, Shape{47, 7, 1}, Shape{64, 64, 64}}) {
    Run(shape, {});
    Run(shape, {.out = act(), .weight = DType::kF16, .bias = true, .alpha = 0.5f, .padding = 5});
    Run(shape,
        {.weight = DType::kF32, .bias = true, .accumulate = true, .alpha = -2.0f, .padding = 1});
  }
}

TEST_P(MatmulTest, MatchesDoubleOnLargeShapes) {
  Run({1, 300, 1024}, {.out = act()});
  Run({300, 70, 520}, {.padding = 7});
  Run({64, 33, 6000}, {.accumulate = true});
}

// Many workers at once, again and again: what they share must not be written.
TEST_P(MatmulTest, WorkersDoNotMeet) {
  if (GetParam().emulated() || GetParam().cuda()) GTEST_SKIP() << "a device has workers of its own";
  const auto many = MakeTestBackend(GetParam(), 4).value();
  constexpr int64_t kRows = 341, kN = 1030, kK = 384;
  TestTensor x(place(), act(), kRows, kK);
  TestTensor weight(place(), DType::kF32, kN, kK);
  TestTensor one(place(), DType::kF32, kRows, kN), four(place(), DType::kF32, kRows, kN);
  x.Fill(random());
  weight.Fill(random());
  const auto run = [&](Backend& backend, TestTensor& out) {
    auto prepared = PrepareMatrix(backend, weight.host_view());
    ASSERT_TRUE(prepared.ok());
    const MatmulArgs args{.x = x.view(), .weight = prepared->get(), .bias = {}, .out = out.view()};
    for (int round = 0; round < 3; ++round) {
      ASSERT_EQ(Matmul(backend, args, stream()), OkStatus());
    }
  };
  const auto single = MakeTestBackend(GetParam(), 1).value();
  run(*single, one);
  run(*many, four);
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kN; ++j)
      ASSERT_NEAR(four.at(i, j), one.at(i, j), 1e-3) << i << ", " << j;
  }
}

TEST_P(MatmulTest, NoRowsIsNothingToDo) {
  TestTensor weight(place(), DType::kF32, 3, 5);
  weight.Fill(random());
  auto prepared = PrepareMatrix(backend(), weight.host_view());
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ((*prepared)->rows(), 3);
  EXPECT_EQ((*prepared)->columns(), 5);
  EXPECT_GT((*prepared)->bytes(), 0);
  const MatmulArgs args{.x = {nullptr, act(), {0, 5}},
                        .weight = prepared->get(),
                        .bias = {},
                        .out = {nullptr, DType::kF32, {0, 3}}};
  EXPECT_EQ(Matmul(backend(), args, stream()), OkStatus());
}

TEST_P(MatmulTest, NanStaysInItsRow) {
  TestTensor x(place(), act(), 20, 70);
  TestTensor weight(place(), DType::kF32, 40, 70);
  TestTensor out(place(), DType::kF32, 20, 40);
  x.Fill(random());
  weight.Fill(random());
  x.set(7, 3, std::numeric_limits<float>::quiet_NaN());
  x.set(11, 69, std::numeric_limits<float>::infinity());
  auto prepared = PrepareMatrix(backend(), weight.host_view());
  ASSERT_TRUE(prepared.ok());
  const MatmulArgs args{.x = x.view(), .weight = prepared->get(), .bias = {}, .out = out.view()};
  ASSERT_EQ(Matmul(backend(), args, stream()), OkStatus());
  for (int64_t i = 0; i < 20; ++i) {
    for (int64_t j = 0; j < 40; ++j) {
      EXPECT_EQ(std::isfinite(out.at(i, j)), i != 7 && i != 11) << i << ", " << j;
    }
  }
}

// Deterministic: the bits of a row do not depend on how many rows share the call, nor on the
// number of threads.
TEST_P(MatmulTest, RowBitsDoNotDependOnTheBatch) {
  constexpr int64_t kRows = 256;
  constexpr int64_t kN = 75;
  constexpr int64_t kK = 259;
  TestTensor x(place(), act(), kRows, kK);
  TestTensor weight(place(), DType::kF32, kN, kK);
  x.Fill(random());
  weight.Fill(random());
  TestTensor whole(place(), DType::kF32, kRows, kN);
  for (const int threads : {1, 3}) {
    const auto deterministic = MakeTestBackend(GetParam(), threads, true).value();
    auto prepared = PrepareMatrix(*deterministic, weight.host_view());
    ASSERT_TRUE(prepared.ok());
    MatmulArgs args{.x = x.view(), .weight = prepared->get(), .bias = {}, .out = whole.view()};
    ASSERT_EQ(Matmul(*deterministic, args, stream()), OkStatus());
    ASSERT_EQ(deterministic->device().Synchronize(stream()), OkStatus());  // not the tensors' one
    for (int64_t rows = 1; rows <= 70; ++rows) {
      const int64_t first = (rows * 37) % (kRows - rows);
      TestTensor part(place(), DType::kF32, rows, kN);
      args.x = x.view().Slice(first, rows);
      args.out = part.view();
      ASSERT_EQ(Matmul(*deterministic, args, stream()), OkStatus());
      ASSERT_EQ(deterministic->device().Synchronize(stream()), OkStatus());
      for (int64_t i = 0; i < rows; ++i) {
        ASSERT_EQ(part.RowBytes(i), whole.RowBytes(first + i)) << rows << " rows, row " << i;
      }
    }
  }
}

TEST_P(MatmulTest, RefusesAWeightOfAnotherPrecision) {
  const BackendCase other{GetParam().isa, act() == DType::kF32 ? DType::kBF16 : DType::kF32};
  const auto other_backend = MakeTestBackend(other).value();
  TestTensor weight(place(), DType::kF32, 4, 4);
  weight.Fill(random());
  auto prepared = PrepareMatrix(*other_backend, weight.host_view());
  ASSERT_TRUE(prepared.ok());
  TestTensor x(place(), act(), 1, 4);
  TestTensor out(place(), DType::kF32, 1, 4);
  const MatmulArgs args{.x = x.view(), .weight = prepared->get(), .bias = {}, .out = out.view()};
  EXPECT_EQ(Matmul(backend(), args, stream()).code(), StatusCode::kInvalidArgument);
}

LACUNA_INSTANTIATE_OP_TEST(MatmulTest);
LACUNA_INSTANTIATE_EMULATED_OP_TEST(MatmulTest);

}  // namespace
}  // namespace lacuna::kernels
