#include "tests/ops/op_test.h"

namespace lacuna::kernels {
namespace {

class RowOpsTest : public OpTest {
 protected:
  void RunNorm(DType x_dtype, DType out_dtype, int64_t rows, int64_t heads, int64_t dim,
               bool accumulate, bool in_place) {
    TestTensor x(place(), x_dtype, rows, heads * dim, heads * dim + 5);
    TestTensor other(place(), out_dtype, rows, heads * dim, heads * dim + 2);
    TestTensor weight(place(), DType::kF32, dim, 1);
    x.Fill(random(), 3.0f);
    weight.Fill(random());
    if (accumulate) other.Fill(random());
    const TestTensor x_before = x;
    TestTensor& out = in_place ? x : other;
    const TestTensor out_before = out;
    const RmsNormArgs args{.x = heads == 1 ? x.view() : x.view3(heads),
                           .weight = weight.vector(),
                           .out = heads == 1 ? out.view() : out.view3(heads),
                           .eps = 1e-5f,
                           .accumulate = accumulate};
    ASSERT_EQ(RmsNorm(backend(), args, stream()), OkStatus());
    out.ExpectGuards();
    for (int64_t i = 0; i < rows * heads; ++i) {
      const int64_t row = i / heads;
      const int64_t from = i % heads * dim;
      double sum = 0.0;
      for (int64_t d = 0; d < dim; ++d) sum += std::pow(x_before.at(row, from + d), 2);
      const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + 1e-5);
      for (int64_t d = 0; d < dim; ++d) {
        double want = x_before.at(row, from + d) * inverse * weight.at(d, 0);
        const double slack = std::abs(want) * 1e-5;
        if (accumulate) want += out_before.at(row, from + d);
        ExpectNear(out.at(row, from + d), want, out_dtype, 1e-6, slack + 1e-7, "norm");
      }
    }
  }
};

TEST_P(RowOpsTest, RmsNorm) {
  for (const int64_t dim : {1, 2, 15, 16, 17, 64, 65, 1024, 2049}) {
    for (const DType x : {DType::kF32, act()}) {
      for (const DType out : {DType::kF32, act()}) {
        RunNorm(x, out, 3, 1, dim, false, false);
        RunNorm(x, out, 2, 3, dim, false, false);
      }
      RunNorm(x, x, 3, 1, dim, false, true);
      RunNorm(x, DType::kF32, 3, 1, dim, true, false);
    }
  }
  RunNorm(DType::kF32, act(), 300, 1, 257, false, false);  // over the pool
}

TEST_P(RowOpsTest, RmsNormOfZeros) {
  TestTensor x(place(), DType::kF32, 1, 8);
  TestTensor weight(place(), DType::kF32, 8, 1);
  TestTensor out(place(), DType::kF32, 1, 8);
  for (int64_t i = 0; i < 8; ++i) x.set(0, i, 0.0f);
  weight.Fill(random());
  const RmsNormArgs args{.x = x.view(), .weight = weight.vector(), .out = out.view()};
  ASSERT_EQ(RmsNorm(backend(), args, stream()), OkStatus());
  for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(out.at(0, i), 0.0f);
}

TEST_P(RowOpsTest, Embed) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int64_t dim : {1, 17, 64, 1000}) {
      for (const int64_t tokens : {1, 5, 130}) {
        TestTensor table(place(), dtype, 50, dim, dim + 1);
        TestTensor ids(place(), DType::kI32, tokens, 1);
        TestTensor out(place(), DType::kF32, tokens, dim, dim + 4);
        table.Fill(random());
        table.set(3, 0, dtype == DType::kF16 ? 6e-8f : 1e-39f);  // subnormal
        for (int64_t t = 0; t < tokens; ++t) ids.set(t, 0, static_cast<float>(t * 3 % 50));
        const EmbedArgs args{
            .ids = ids.vector(), .table = table.view(), .out = out.view(), .scale = 3.0f};
        ASSERT_EQ(Embed(backend(), args, stream()), OkStatus());
        out.ExpectGuards();
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t d = 0; d < dim; ++d) {
            ASSERT_EQ(out.at(t, d), 3.0f * table.at(t * 3 % 50, d)) << t << ", " << d;
          }
        }
      }
    }
  }
}

TEST_P(RowOpsTest, EmbedWidensEveryHalf) {
  TestTensor table(place(), DType::kF16, 1, 65536);
  for (int64_t i = 0; i < 65536; ++i) {
    const F16 half{static_cast<uint16_t>(i)};
    std::memcpy(table.host_view().as<F16>() + i, &half, sizeof(half));
  }
  TestTensor ids(place(), DType::kI32, 1, 1);
  ids.set(0, 0, 0.0f);
  TestTensor out(place(), DType::kF32, 1, 65536);
  const EmbedArgs args{.ids = ids.vector(), .table = table.view(), .out = out.view()};
  ASSERT_EQ(Embed(backend(), args, stream()), OkStatus());
  for (int64_t i = 0; i < 65536; ++i) {
    const float want = ToFloat(F16{static_cast<uint16_t>(i)});
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(out.at(0, i))) << i;
    } else {
      ASSERT_EQ(out.at(0, i), want) << i;
    }
  }
}

// A backend that reads indices on the host refuses; one that reads them on the device makes NaN.
TEST_P(RowOpsTest, IndicesOutOfRange) {
  const bool on_host = place().on_host();
  const StatusCode code = on_host ? StatusCode::kInvalidArgument : StatusCode::kOk;
  TestTensor table(place(), DType::kF32, 4, 8);
  table.Fill(random());
  for (const float bad : {-1.0f, 4.0f}) {
    TestTensor ids(place(), DType::kI32, 2, 1);
    ids.set(0, 0, 1.0f);
    ids.set(1, 0, bad);
    TestTensor embedded(place(), DType::kF32, 2, 8);
    TestTensor gathered(place(), DType::kF32, 2, 8);
    const EmbedArgs embed{.ids = ids.vector(), .table = table.view(), .out = embedded.view()};
    EXPECT_EQ(Embed(backend(), embed, stream()).code(), code);
    const GatherRowsArgs gather{.x = table.view(), .rows = ids.vector(), .out = gathered.view()};
    EXPECT_EQ(GatherRows(backend(), gather, stream()).code(), code);
    for (TestTensor* out : {&embedded, &gathered}) {
      out->ExpectGuards();
      if (on_host) continue;
      for (int64_t i = 0; i < 8; ++i) {
        EXPECT_FALSE(std::isnan(out->at(0, i)));
        EXPECT_TRUE(std::isnan(out->at(1, i)));
      }
    }
  }
}

double Gelu(double g) {
  return 0.5 * g * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (g + 0.044715 * g * g * g)));
}

TEST_P(RowOpsTest, GatedActivation) {
  for (const auto activation : {Activation::kSilu, Activation::kGeluTanh}) {
    for (const int64_t ffn : {1, 7, 16, 33, 2816}) {
      for (const int64_t tokens : {1, 4, 70}) {
        TestTensor gate_up(place(), act(), tokens, 2 * ffn, 2 * ffn + 3);
        TestTensor out(place(), act(), tokens, ffn, ffn + 1);
        gate_up.Fill(random(), 6.0f);
        gate_up.set(0, 0, -120.0f);
        gate_up.set(tokens - 1, ffn - 1, 120.0f);
        const GatedActivationArgs args{
            .gate_up = gate_up.view(), .out = out.view(), .activation = activation};
        ASSERT_EQ(GatedActivation(backend(), args, stream()), OkStatus());
        out.ExpectGuards();
        for (int64_t i = 0; i < tokens * ffn; ++i) {
          const double g = gate_up.at(i / ffn, i % ffn);
          const double activated =
              activation == Activation::kSilu ? g / (1.0 + std::exp(-g)) : Gelu(g);
          const double want = activated * gate_up.at(i / ffn, ffn + i % ffn);
          ExpectNear(out.at(i / ffn, i % ffn), want, act(), 1e-5, 1e-9, "gated");
        }
      }
    }
  }
}

TEST_P(RowOpsTest, Softcap) {
  for (const int64_t dim : {1, 19, 4096}) {
    TestTensor x(place(), DType::kF32, 9, dim, dim + 2);
    x.Fill(random(), 30.0f);
    x.set(0, 0, 1e-4f);
    x.set(1, 0, -1e30f);
    x.set(2, 0, std::numeric_limits<float>::infinity());
    const TestTensor before = x;
    ASSERT_EQ(Softcap(backend(), {.x = x.view(), .cap = 30.0f}, stream()), OkStatus());
    x.ExpectGuards();
    for (int64_t i = 0; i < 9 * dim; ++i) {
      const double want = 30.0 * std::tanh(before.at(i / dim, i % dim) / 30.0);
      ExpectNear(x.at(i / dim, i % dim), want, DType::kF32, 1e-6, 0.0, "softcap");
    }
  }
}

TEST_P(RowOpsTest, NanInNanOut) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  TestTensor x(place(), DType::kF32, 1, 33);
  x.Fill(random());
  x.set(0, 5, nan);
  ASSERT_EQ(Softcap(backend(), {.x = x.view(), .cap = 2.0f}, stream()), OkStatus());
  for (int64_t i = 0; i < 33; ++i) EXPECT_EQ(std::isnan(x.at(0, i)), i == 5);
  TestTensor gate_up(place(), act(), 1, 66);
  gate_up.Fill(random());
  gate_up.set(0, 5, nan);
  TestTensor out(place(), act(), 1, 33);
  const GatedActivationArgs args{.gate_up = gate_up.view(), .out = out.view()};
  ASSERT_EQ(GatedActivation(backend(), args, stream()), OkStatus());
  for (int64_t i = 0; i < 33; ++i) EXPECT_EQ(std::isnan(out.at(0, i)), i == 5);
}

TEST_P(RowOpsTest, GatherRows) {
  for (const int64_t count : {0, 1, 7, 500}) {
    TestTensor x(place(), DType::kF32, 11, 130, 140);
    TestTensor rows(place(), DType::kI32, count, 1);
    TestTensor out(place(), DType::kF32, count, 130, 131);
    x.Fill(random());
    for (int64_t i = 0; i < count; ++i) rows.set(i, 0, static_cast<float>(i * 5 % 11));
    const GatherRowsArgs args{.x = x.view(), .rows = rows.vector(), .out = out.view()};
    ASSERT_EQ(GatherRows(backend(), args, stream()), OkStatus());
    out.ExpectGuards();
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(out.RowBytes(i), x.RowBytes(i * 5 % 11));
  }
}

LACUNA_INSTANTIATE_OP_TEST(RowOpsTest);
LACUNA_INSTANTIATE_EMULATED_OP_TEST(RowOpsTest);

}  // namespace
}  // namespace lacuna::kernels
