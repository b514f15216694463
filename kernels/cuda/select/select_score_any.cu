// Raw scores by any metadata and by keys in f32: one thread per entry. For verification and odd
// shapes.
#include <cmath>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/select/select_line.cuh"
#include "kernels/cuda/select/select_query.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTogether = 4;  // heads that share a pass over an entry

// Raw scores of one entry for heads [first, first + kTogether) of a kv head.
__device__ void ScoreEntry(const SelectKeysCall& call, const ScoreShape& shape,
                           const float* queries, const char* slab, int entry, int first,
                           float (&scores)[kTogether]) {
  const bool bound = call.path.metadata.kind == MetadataKind::kMinMax;
  const auto* key = reinterpret_cast<const float*>(slab) + entry * call.head_dim;
#pragma unroll
  for (float& score : scores) score = 0.0f;
  for (int vector = 0; vector < shape.vectors; ++vector) {
    for (int i = 0; i < shape.width; ++i) {
      const float x =
          call.scores_keys ? key[i] : MetadataValue(call.layout, slab, entry, vector, i);
#pragma unroll
      for (int h = 0; h < kTogether; ++h) {
        if (first + h >= call.heads) continue;
        const float q = queries[(first + h) * shape.width + i];
        const float part = !bound ? q : vector == 0 ? fminf(q, 0.0f) : fmaxf(q, 0.0f);
        scores[h] = fmaf(part, x, scores[h]);
      }
    }
  }
}

__device__ void ScoreRun(const SelectKeysCall& call, const ScoreShape& shape, const ChunkLine& line,
                         const ChunkRun& run, const float* queries) {
  const int chunk_entries = shape.chunk_tokens / call.entry_tokens;
  const int entries = (line.tokens[run.row] + call.entry_tokens - 1) / call.entry_tokens;
  const int end = min(run.end * chunk_entries, entries);
  const int32_t* ids = call.pages.pages + line.first_entry[run.row];
  const auto* base =
      static_cast<const char*>(call.scores_keys ? call.pool.data : call.metadata.data);
  const int64_t slab_bytes = call.scores_keys ? call.slab_bytes : call.metadata_slab_bytes;
  for (int entry = run.first * chunk_entries + static_cast<int>(threadIdx.x); entry < end;
       entry += kThreads) {
    const int page = entry >> shape.page_shift, in_page = entry & ((1 << shape.page_shift) - 1);
    const char* slab =
        base + (static_cast<int64_t>(ids[page]) * call.kv_heads + run.head) * slab_bytes;
    for (int first = 0; first < call.heads; first += kTogether) {
      float scores[kTogether];
      ScoreEntry(call, shape, queries, slab, in_page, first, scores);
#pragma unroll
      for (int h = 0; h < kTogether; ++h) {
        if (first + h >= call.heads) continue;
        const int64_t query_row =
            static_cast<int64_t>(run.row) * call.query_rows + run.head * call.heads + first + h;
        call.scores[query_row * call.scores_stride + entry] = scores[h] * call.scale;
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    ScoreAnyKernel(const __grid_constant__ SelectKeysCall call,
                   const __grid_constant__ ScoreShape shape) {
  LACUNA_DYNAMIC_SHARED(16, char, memory);
  __shared__ ChunkLine line;
  QueryMemory queries{};
  queries.terms = reinterpret_cast<HeadTerms*>(memory);
  queries.scales = reinterpret_cast<float*>(queries.terms + call.heads);
  queries.plain = queries.scales + call.heads;
  LetNextStart();
  WaitForPrevious();
  MeasureChunks(call, shape.chunk_tokens, line);
  VisitRuns(call, line, call.kv_heads, [&](const ChunkRun& run) {
    const int row = call.first_row + run.row;
    if (HasWindow(call, row, run.head)) return;
    __syncthreads();
    LoadQueries<float>(call, shape, row, run.head, queries);
    __syncthreads();
    ScoreRun(call, shape, line, run, queries.plain);
  });
}

}  // namespace

Status ScoreAny(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  const int64_t shared_bytes =
      call.heads * (static_cast<int64_t>(sizeof(HeadTerms)) + 4 + 4 * shape.width);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      ScoreAnyKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  const int64_t chunks =
      CeilDiv(int64_t{call.pages_max} * call.page_tokens, shape.chunk_tokens) * call.kv_heads;
  LACUNA_ASSIGN_OR_RETURN(const int64_t blocks,
                          ResidentBlocks(ScoreAnyKernel, chunks * call.group_rows, kThreads,
                                         static_cast<size_t>(shared_bytes)));
  return Launch(ScoreAnyKernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                static_cast<size_t>(shared_bytes), stream, call, shape);
}

}  // namespace lacuna::kernels::cuda
