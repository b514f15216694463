// Options, device and memory of the CPU backend.
#include <limits>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_onednn.h"
#include "kernels/cpu/memory.h"
#include "kernels/make_backend.h"
#include "tests/ops/op_test.h"

namespace lacuna::kernels {
namespace {

TEST(CpuBackend, NameTellsTheInstructionSet) {
  for (const BackendCase& which : BackendCases()) {
    if (which.cuda()) continue;
    EXPECT_EQ(MakeTestBackend(which).value()->name(), "cpu-" + which.isa);
  }
  BackendOptions options;
  auto best = MakeBackend(DeviceKind::kCpu, options);
  ASSERT_TRUE(best.ok());
  EXPECT_EQ((*best)->name(), "cpu-" + std::string(cpu::IsaName(cpu::DetectIsa())));
  EXPECT_GE((*best)->threads(), 1);
  EXPECT_EQ((*best)->act_dtype(), DType::kBF16);
}

TEST(CpuBackend, RefusesBadOptions) {
  BackendOptions options;
  options.isa_max = "sse9";
  EXPECT_EQ(MakeBackend(DeviceKind::kCpu, options).status().code(), StatusCode::kInvalidArgument);
  options = {};
  options.threads = -1;
  EXPECT_EQ(MakeBackend(DeviceKind::kCpu, options).status().code(), StatusCode::kInvalidArgument);
  options.threads = 1 << 20;
  EXPECT_EQ(MakeBackend(DeviceKind::kCpu, options).status().code(), StatusCode::kInvalidArgument);
  options = {};
  options.precision = DType::kF16;
  EXPECT_EQ(MakeBackend(DeviceKind::kCpu, options).status().code(), StatusCode::kInvalidArgument);
}

// f32 goes through oneDNN, except where bits must not depend on the batch and where a test asks for
// an older instruction set; bf16 goes through our own kernels (docs/performance.md has both).
TEST(CpuBackend, ProductsOfF32AreOneDnns) {
  const std::string best(cpu::IsaName(cpu::DetectIsa()));
  std::vector<float> values(6, 1.0f);
  const TensorView weight(values.data(), DType::kF32, {2, 3});
  const auto library = [&](const BackendCase& which, bool deterministic) {
    const auto backend = MakeTestBackend(which, 1, deterministic).value();
    auto matrix = PrepareMatrix(*backend, weight).value();
    const bool onednn = dynamic_cast<cpu::OneDnnMatrix*>(matrix.get()) != nullptr;
    EXPECT_NE(onednn, dynamic_cast<cpu::PackedMatrix*>(matrix.get()) != nullptr);
    return onednn;
  };
  EXPECT_TRUE(library({best, DType::kF32}, false));
  EXPECT_FALSE(library({best, DType::kF32}, true));
  EXPECT_FALSE(library({best, DType::kBF16}, false));
  if (best != "scalar") {
    EXPECT_FALSE(library({"scalar", DType::kF32}, false));
  }
}

TEST(CpuDevice, BuffersAreAlignedZeroAndFreed) {
  const auto backend = MakeTestBackend({"scalar", DType::kF32}, 1).value();
  for (const int64_t bytes : {1, 63, 4096, 65535, 65536, 5 << 20}) {
    auto buffer = backend->device().Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    EXPECT_TRUE(std::all_of(buffer->data(), buffer->data() + bytes,
                            [](std::byte byte) { return byte == std::byte{0}; }));
    std::memset(buffer->data(), 1, static_cast<size_t>(bytes));
  }
  auto nothing = backend->device().AllocateHost(0);
  ASSERT_TRUE(nothing.ok());
  EXPECT_EQ(nothing->bytes(), 0);
}

TEST(CpuDevice, ShortMemoryIsAStatus) {
  for (const int64_t bytes : {int64_t{1} << 50, std::numeric_limits<int64_t>::max()}) {
    const auto buffer = cpu::AllocateZeroed(bytes);
    ASSERT_FALSE(buffer.ok());
    EXPECT_EQ(buffer.status().code(), StatusCode::kExhausted);
  }
  EXPECT_EQ(cpu::AllocateZeroed(-1).status().code(), StatusCode::kInvalidArgument);
}

TEST(CpuDevice, Copies) {
  const auto backend = MakeTestBackend({"scalar", DType::kF32}, 1).value();
  Stream stream;
  const std::string from = "sixteen bytes...";
  std::string to(from.size(), ' ');
  const auto bytes = static_cast<int64_t>(from.size());
  EXPECT_EQ(backend->device().Copy(to.data(), from.data(), bytes, stream), OkStatus());
  EXPECT_EQ(backend->device().Synchronize(stream), OkStatus());
  EXPECT_EQ(to, from);
  EXPECT_EQ(backend->device().Copy(nullptr, nullptr, 0, stream), OkStatus());
  EXPECT_FALSE(backend->device().Copy(to.data(), from.data(), -1, stream).ok());
}

TEST(Isa, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(cpu::Isa::kAmx); ++i) {
    const auto isa = static_cast<cpu::Isa>(i);
    const auto parsed = cpu::ParseIsa(cpu::IsaName(isa));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, isa);
  }
  EXPECT_FALSE(cpu::ParseIsa("").ok());
}

}  // namespace
}  // namespace lacuna::kernels
