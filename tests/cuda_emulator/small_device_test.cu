// Devices whose blocks have less shared memory than an A100's: the kernels that need most of it.
// attention_geforce_test runs the attention tests on such a device.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/attend/attend_prefill_sm80.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int64_t kGeForce = 99 << 10;  // bytes of a block, sm_86, sm_89 and sm_120

bool PrefillUsesTensorCores(int64_t head_dim, int major, int64_t shared_bytes) {
  std::vector<uint16_t> memory(static_cast<size_t>(head_dim) + 8);
  const uintptr_t start = (reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16;
  const TensorView q(reinterpret_cast<void*>(start), DType::kBF16, {1, 1, head_dim});
  const AttendPrefillArgs args{.q = q,
                               .pool = {nullptr, DType::kBF16, 1, 1, head_dim, 64},
                               .params = {.scale = 1.0f},
                               .out = q};
  return ServesSm80(args, {.major = major, .sm_count = 4, .shared_bytes_max = shared_bytes});
}

TEST(SmallDevice, PrefillUsesTensorCoresForEveryHeadDim) {
  for (const int64_t head_dim : {16, 32, 64, 80, 96, 128, 256}) {
    EXPECT_TRUE(PrefillUsesTensorCores(head_dim, 8, kGeForce)) << head_dim;
    EXPECT_TRUE(PrefillUsesTensorCores(head_dim, 12, kGeForce)) << head_dim;
    EXPECT_TRUE(PrefillUsesTensorCores(head_dim, 8, 163 << 10)) << head_dim;
    EXPECT_TRUE(PrefillUsesTensorCores(head_dim, 9, 227 << 10)) << head_dim;
    EXPECT_FALSE(PrefillUsesTensorCores(head_dim, 7, kGeForce)) << head_dim;
  }
  EXPECT_FALSE(PrefillUsesTensorCores(256, 8, 64 << 10));  // of sm_75
}

}  // namespace
}  // namespace lacuna::kernels::cuda
