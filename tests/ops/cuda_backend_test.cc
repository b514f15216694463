// Options, device, memory and graphs of the CUDA backend, on a GPU and emulated; without a GPU,
// what is said about it.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/make_backend.h"
#include "tests/cuda_emulator/emulated_backend.h"
#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(MakeBackend, SaysWhatCudaLacks) {
  const auto backend = MakeBackend(DeviceKind::kCuda, {});
  if (backend.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(backend.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(backend.status().message(), StartsWith("device cuda: "));
  EXPECT_EQ(backend.status().message().find('\n'), std::string::npos);
}

class CudaBackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(Case());
    if (!SkipsOrFails(backend)) backend_ = std::move(backend).value();
  }
  BackendCase Case() const { return {GetParam(), DType::kBF16, true}; }
  Status StatusOf(const BackendOptions& options) const {
    return Case().emulated() ? MakeEmulatedBackend(options).status()
                             : MakeBackend(DeviceKind::kCuda, options).status();
  }
  Backend& backend() { return *backend_; }
  Device& device() { return backend_->device(); }
  TestPlace place() { return {backend_.get(), true}; }
  std::vector<uint8_t> Bytes(const Buffer& buffer) {
    std::vector<uint8_t> bytes(static_cast<size_t>(buffer.bytes()));
    EXPECT_EQ(device().Copy(bytes.data(), buffer.data(), buffer.bytes(), stream_), OkStatus());
    EXPECT_EQ(device().Synchronize(stream_), OkStatus());
    return bytes;
  }

  Stream stream_;

 private:
  std::shared_ptr<Backend> backend_;
};

TEST_P(CudaBackendTest, NameTellsDeviceAndPrecision) {
  EXPECT_THAT(std::string(backend().name()), StartsWith("cuda-sm"));
  EXPECT_THAT(std::string(backend().name()), HasSubstr("bf16"));
  EXPECT_EQ(device().kind(), DeviceKind::kCuda);
}

TEST_P(CudaBackendTest, RefusesBadOptions) {
  BackendOptions options;
  options.device_ordinal = 4096;
  EXPECT_EQ(StatusOf(options).code(), StatusCode::kInvalidArgument);
  options = {};
  options.precision = DType::kI32;
  EXPECT_EQ(StatusOf(options).code(), StatusCode::kInvalidArgument);
}

TEST_P(CudaBackendTest, MemoryIsAlignedAndZero) {
  for (const int64_t bytes : {1, 63, 4096, 65537}) {
    for (int round = 0; round < 2; ++round) {  // the second may get what the first dirtied
      auto buffer = device().Allocate(bytes);
      ASSERT_TRUE(buffer.ok());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
      EXPECT_TRUE(std::ranges::all_of(Bytes(*buffer), [](uint8_t byte) { return byte == 0; }));
      const std::vector<uint8_t> ones(static_cast<size_t>(bytes), 1);
      ASSERT_EQ(device().Copy(buffer->data(), ones.data(), bytes, stream_), OkStatus());
      EXPECT_EQ(Bytes(*buffer), ones);
    }
  }
  auto host = device().AllocateHost(4097);
  ASSERT_TRUE(host.ok());
  EXPECT_TRUE(std::all_of(host->data(), host->data() + 4097,
                          [](std::byte byte) { return byte == std::byte{0}; }));
  EXPECT_EQ(device().Allocate(0)->bytes(), 0);
}

TEST_P(CudaBackendTest, ShortMemoryIsAStatusThatNamesTheSizes) {
  const int64_t before = device().FreeBytes();
  EXPECT_GT(before, 0);
  const auto buffer = device().Allocate(int64_t{1} << 46);
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(buffer.status().code(), StatusCode::kExhausted);
  EXPECT_THAT(buffer.status().message(), HasSubstr("asked for 67108864 MiB"));
  EXPECT_THAT(buffer.status().message(), HasSubstr(" MiB free"));
  EXPECT_TRUE(device().Allocate(1 << 20).ok()) << "the error sticks";
  EXPECT_EQ(device().Allocate(-1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(device().Copy(nullptr, nullptr, -1, stream_).code(), StatusCode::kInvalidArgument);
}

// A recorded graph reads its inputs anew at each launch, and gives the bits of the eager calls.
TEST_P(CudaBackendTest, GraphEqualsEager) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kDim = 512;
  std::mt19937 random(3);
  TestTensor x(place(), DType::kF32, kRows, kDim);
  TestTensor weight(place(), DType::kF32, kDim, 1);
  TestTensor out(place(), DType::kBF16, kRows, kDim);
  TestTensor product(place(), DType::kBF16, kRows, kDim / 2);
  x.Fill(random);
  weight.Fill(random);
  const auto record = [&] {
    LACUNA_RETURN_IF_ERROR(
        RmsNorm(backend(), {.x = x.view(), .weight = weight.vector(), .out = out.view()}, stream_));
    return GatedActivation(backend(), {.gate_up = out.view(), .out = product.view()}, stream_);
  };
  ASSERT_EQ(record(), OkStatus());  // also sends the inputs, which a capture could not
  ASSERT_EQ(device().Synchronize(stream_), OkStatus());
  ASSERT_EQ(device().BeginCapture(stream_), OkStatus());
  ASSERT_EQ(record(), OkStatus());
  auto graph = device().EndCapture(stream_);
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();
  for (int round = 0; round < 3; ++round) {
    x.Fill(random);
    ASSERT_EQ(record(), OkStatus());
    std::vector<std::vector<uint8_t>> eager;
    for (int64_t row = 0; row < kRows; ++row) eager.push_back(product.RowBytes(row));
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t i = 0; i < kDim / 2; ++i) product.set(row, i, -7.0f);
    }
    product.view();  // sends the -7
    ASSERT_EQ((*graph)->Launch(stream_), OkStatus());
    for (int64_t row = 0; row < kRows; ++row) {
      EXPECT_EQ(product.RowBytes(row), eager[static_cast<size_t>(row)]) << "row " << row;
    }
  }
}

// Ops share scratch memory: what one leaves there must not be seen by the next.
TEST_P(CudaBackendTest, OpsLeaveEachOthersScratchAlone) {
  AttentionSpec spec;
  spec.which = Case();
  AttentionWorld world(MakeTestBackend(spec.which).value(), spec, {5000, 40, 900}, 3);
  TestTensor q = world.MakeTensor(spec.dtype(), 3, spec.q_heads * spec.head_dim);
  world.FillRandom(&q, 4.0f);
  ListBuilder lists;
  std::vector<int32_t> positions;
  for (int row = 0; row < 3; ++row) {
    world.AddAllPages(&lists, row);
    lists.Close();
    positions.push_back(world.tokens(row) - 1);
  }
  DeviceLists device_lists(backend(), lists);
  TestArray<int32_t> device_positions(backend(), positions);
  const auto decode = [&] {
    TestTensor out = world.MakeTensor(spec.dtype(), 3, spec.q_heads * spec.head_dim);
    AttendDecodeArgs args{};
    args.q = q.view3(spec.q_heads);
    args.pool = world.pool();
    args.positions = TensorView(device_positions.device(), DType::kI32, {3});
    args.lists = device_lists.view();
    args.params = world.params();
    args.out = out.view3(spec.q_heads);
    EXPECT_EQ(AttendDecode(backend(), args, stream_), OkStatus());
    EXPECT_EQ(device().Synchronize(stream_), OkStatus());
    return out;
  };
  const int64_t launches = EmulatedLaunches();
  const TestTensor before = decode();
  if (Case().emulated()) {
    EXPECT_EQ(EmulatedLaunches(), launches + 1) << "all rows of a step share a launch";
  }
  const int64_t sampled = Case().emulated() ? 4 : 64;
  const int64_t vocab = Case().emulated() ? 1 << 13 : 1 << 17;
  std::mt19937 random(3);
  TestTensor logits(place(), DType::kF32, sampled, vocab);
  logits.Fill(random);
  SampleRow row;
  row.temperature = 1.0f;
  row.top_p = 0.9f;
  TestArray<SampleRow> rows(backend(), std::vector<SampleRow>(static_cast<size_t>(sampled), row));
  TestMemory results(backend(), static_cast<size_t>(sampled) * sizeof(SampleResult), 0);
  TestArray<int32_t> tokens(backend(), std::vector<int32_t>(static_cast<size_t>(sampled)));
  for (int round = 0; round < 2; ++round) {
    ASSERT_EQ(Sample(backend(),
                     {.logits = logits.view(),
                      .rows = rows.device(),
                      .results = reinterpret_cast<SampleResult*>(results.device()),
                      .tokens = tokens.device()},
                     stream_),
              OkStatus());
    const TestTensor after = decode();
    for (int64_t i = 0; i < 3 * q.dim(); ++i) {
      ASSERT_NEAR(after.at(i / q.dim(), i % q.dim()), before.at(i / q.dim(), i % q.dim()), 8e-3);
    }
  }
}

TEST_P(CudaBackendTest, RandomMatricesDependOnTheirSeedAlone) {
  constexpr int64_t kDim = 64;
  std::mt19937 random(3);
  TestTensor x(place(), DType::kBF16, kDim, kDim);
  for (int64_t i = 0; i < kDim; ++i) {
    for (int64_t j = 0; j < kDim; ++j) x.set(i, j, i == j ? 1.0f : 0.0f);
  }
  std::vector<std::vector<float>> seen;
  for (const uint64_t seed : {7u, 7u, 8u}) {
    auto matrix = backend().PrepareRandomMatrix(kDim, kDim, seed, 0.5f);
    ASSERT_TRUE(matrix.ok()) << matrix.status().ToString();
    TestTensor out(place(), DType::kF32, kDim, kDim);
    ASSERT_EQ(
        Matmul(backend(), {.x = x.view(), .weight = matrix->get(), .bias = {}, .out = out.view()},
               stream_),
        OkStatus());
    auto& values = seen.emplace_back();
    double sum = 0.0;
    for (int64_t i = 0; i < kDim * kDim; ++i) {
      values.push_back(out.at(i / kDim, i % kDim));
      sum += std::abs(values.back());
      ASSERT_LE(std::abs(values.back()), 0.5f);
    }
    EXPECT_NEAR(sum / (kDim * kDim), 0.25, 0.02);  // uniform
  }
  EXPECT_EQ(seen[0], seen[1]);
  EXPECT_NE(seen[0], seen[2]);
}

INSTANTIATE_TEST_SUITE_P(Devices, CudaBackendTest, testing::Values("cuda", "emulated"),
                         [](const auto& which) { return which.param; });

}  // namespace
}  // namespace lacuna::kernels
