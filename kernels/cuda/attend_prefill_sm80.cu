#include "kernels/cuda/attend_prefill_sm80.cuh"
#include "kernels/cuda/attend_prefill_sm80.h"

namespace lacuna::kernels::cuda {
namespace {

using sm80::PrefillParams;
using sm80::Tiling;

template <typename T, int kDim>
Status Run(const PrefillParams& params, int q_heads, cudaStream_t stream) {
  constexpr int kShared = Tiling<kDim>::kSharedBytes;
  const auto kernel = sm80::PrefillKernel<T, kDim>;
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  const dim3 grid(static_cast<unsigned>(q_heads), static_cast<unsigned>(params.table.tiles));
  return Launch(kernel, grid, dim3(Tiling<kDim>::kThreads), kShared, stream, params);
}

// Calls `visit` with the head size as a template argument, if it is one of ours.
template <typename Visit>
Status VisitHeadDim(int64_t head_dim, const Visit& visit) {
  switch (head_dim) {
    case 16:
      return visit.template operator()<16>();
    case 32:
      return visit.template operator()<32>();
    case 64:
      return visit.template operator()<64>();
    case 80:
      return visit.template operator()<80>();
    case 96:
      return visit.template operator()<96>();
    case 128:
      return visit.template operator()<128>();
    case 256:
      return visit.template operator()<256>();
    default:
      return InvalidArgument("attention with mma.sync: no kernel for this head_dim");
  }
}

bool RowsAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.stride(0) % 8 == 0 &&
         view.stride(1) == view.dim(2);
}

PrefillParams MakeParams(const AttendPrefillArgs& args) {
  constexpr float kLog2E = 1.442695041f;
  PrefillParams params;
  params.q = args.q.data();
  params.out = args.out.data();
  params.q_row = args.q.stride(0);
  params.out_row = args.out.stride(0);
  if (!args.lse.empty()) {
    params.lse = args.lse.as<float>();
    params.lse_row = args.lse.stride(0);
  }
  params.pool = static_cast<const std::byte*>(args.pool.data);
  params.slab_bytes = args.pool.SlabBytes();
  params.kv_heads = static_cast<int>(args.pool.kv_heads);
  params.group = static_cast<int>(args.q.dim(1) / args.pool.kv_heads);
  params.page_tokens = static_cast<int>(args.pool.page_tokens);
  params.exponent_scale = kLog2E * (args.params.softcap > 0.0f ? 1.0f : args.params.scale);
  params.params = args.params;
  params.lists = args.lists;
  if (args.ranges != nullptr) params.ranges = *args.ranges;
  return params;
}

}  // namespace

bool ServesSm80(const AttendPrefillArgs& args, const DeviceTraits& traits) {
  const KvPool& pool = args.pool;
  const Status fits = VisitHeadDim(pool.head_dim, [&]<int kDim>() -> Status {
    if (Tiling<kDim>::kSharedBytes <= traits.shared_bytes_max) return OkStatus();
    return InvalidArgument("attention with mma.sync: not enough shared memory");
  });
  return traits.major >= 8 && fits.ok() &&
         (pool.dtype == DType::kBF16 || pool.dtype == DType::kF16) &&
         (pool.page_tokens == 16 || pool.page_tokens == 64) && args.params.scale > 0.0f &&
         RowsAligned(args.q) && RowsAligned(args.out);
}

Status AttendPrefillSm80(const AttendPrefillArgs& args, const DeviceTraits& traits,
                         cudaStream_t stream) {
  if (!ServesSm80(args, traits)) return InternalError("AttendPrefillSm80: arguments not served");
  PrefillParams params = MakeParams(args);
  const int q_heads = static_cast<int>(args.q.dim(1));
  for (size_t next = 0; next < args.chunks.size();) {
    next = params.table.Fill(args.chunks, next, Tiling<128>::kRows);
    if (params.table.count == 0) break;
    LACUNA_RETURN_IF_ERROR(VisitHeadDim(args.pool.head_dim, [&]<int kDim>() -> Status {
      if (args.pool.dtype == DType::kF16) return Run<__half, kDim>(params, q_heads, stream);
      return Run<__nv_bfloat16, kDim>(params, q_heads, stream);
    }));
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cuda
