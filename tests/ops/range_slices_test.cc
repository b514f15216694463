// SelectRanges of CUDA with so little scratch that it goes in the smallest slices of heads and
// rows: the same ranges. Over the emulator.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/ops/range_cases.h"

namespace lacuna::kernels {
namespace {

constexpr cuda::DeviceTraits kTraits{
    .ordinal = 0, .major = 8, .minor = 0, .sm_count = 4, .shared_bytes_max = 163 << 10};

TEST(RangeSlices, LittleScratchGivesTheSame) {
  const BackendCase which{"emulated", DType::kBF16, true};
  auto made = MakeTestBackend(which);
  if (SkipsOrFails(made)) return;
  const std::shared_ptr<Backend> backend = std::move(made).value();
  constexpr int64_t kBytesMax = int64_t{64} << 20;
  auto memory = backend->device().Allocate(kBytesMax);
  ASSERT_TRUE(memory.ok());
  for (const NamedSpec& named : FewRangeCases()) {
    SCOPED_TRACE(named.name);
    RangeWorld world(backend, which, named.spec, named.spread, 3);
    const std::vector<int> cuts = {0, 1024 + 100, named.spec.tokens};  // the second off the grid
    const RangeLists whole = world.Run(cuts);
    int64_t bytes = 0;
    world.set_run([&](const SelectRangesArgs& args) {
      Status status = InternalError("");
      for (bytes = 16 << 10; !status.ok() && bytes < kBytesMax; bytes += bytes / 16) {
        status = cuda::SelectRanges(args, kTraits, {memory.value().data(), bytes}, nullptr);
      }
      return status;
    });
    EXPECT_EQ(world.Run(cuts), whole);
    EXPECT_LT(bytes, 4 << 20);
  }
}

// At the largest context one head and 1024 rows fit what is asked for; else the cap holds.
TEST(RangeSlices, WorkspaceIsBounded) {
  constexpr int64_t kMiB = 1 << 20;
  EXPECT_EQ(cuda::SelectRangesWorkspaceBytes(DType::kBF16, 8192, 32, 128, 131072), 512 * kMiB);
  EXPECT_LE(cuda::SelectRangesWorkspaceBytes(DType::kBF16, 8192, 32, 128, 1 << 20), 640 * kMiB);
  EXPECT_LE(cuda::SelectRangesWorkspaceBytes(DType::kBF16, 2048, 32, 128, 8192), 256 * kMiB);
}

}  // namespace
}  // namespace lacuna::kernels
