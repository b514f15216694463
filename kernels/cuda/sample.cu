// Sample: the next token of each row, without a sort (the order of kernels/ops/sample.h).
//
// A row is spread over a cluster of up to 8 blocks that keep it in shared memory (sm_90), or given
// to one block that keeps it in the workspace. Reads the logits once and leaves them as they are.
#include <algorithm>
#include <cmath>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample_select.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr float kLogprobFloor = -9999.0f;
constexpr int kSliceStep = 128;  // tokens; one read of a warp in the draw

struct SampleParams final {
  const float* logits;
  const SampleRow* rows;
  const LogitEdit* edits;
  const uint32_t* mask;
  SampleResult* results;
  int32_t* tokens;
  float* values;  // [rows, values_stride], or null: in shared memory
  int64_t logits_stride;
  int64_t values_stride;
  int vocab;
  int slice;     // tokens of a block, a multiple of kSliceStep
  bool aligned;  // rows of logits to 16 bytes
};

// Finalizer of SplitMix64 (Steele et al. 2014).
__device__ inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// floor(u * total), u in [0, 1) of 53 bits, a function of (seed, index) alone; exact.
__device__ inline uint64_t UniformBelow(uint64_t seed, int64_t index, uint64_t total) {
  const uint64_t mixed = Mix(static_cast<uint64_t>(index));
  const uint64_t bits = Mix(Mix(seed) ^ (mixed << 32 | mixed >> 32)) >> 11;
  return __umul64hi(bits, total) << 11 | (bits * total) >> 53;
}

__device__ inline float Edited(float logit, const LogitEdit& edit, const SampleRow& row) {
  logit = __fadd_rn(logit, edit.bias);
  if ((edit.flags & LogitEdit::kBarred) != 0) logit = -INFINITY;
  if ((edit.flags & LogitEdit::kRepeated) != 0) {
    logit = logit > 0.0f ? __fdiv_rn(logit, row.repetition) : __fmul_rn(logit, row.repetition);
  }
  if (edit.output_count > 0) {
    const double penalty =
        static_cast<double>(row.presence) + static_cast<double>(row.frequency) * edit.output_count;
    logit = __fsub_rn(logit, static_cast<float>(penalty));
  }
  return logit;
}

template <bool kCluster>
class RowSampler final {
 public:
  __device__ RowSampler(const SampleParams& params, const Team<kCluster>& team,
                        SelectScratch& scratch, float* shared_values)
      : p_(params),
        team_(team),
        s_(scratch),
        index_(static_cast<int>(blockIdx.y)),
        row_(params.rows[index_]) {
    slice_.first = min(team.rank * p_.slice, p_.vocab);
    slice_.count = min(p_.slice, p_.vocab - slice_.first);
    slice_.values = p_.values != nullptr ? p_.values + index_ * p_.values_stride : shared_values;
  }

  __device__ void Run() {
    uint64_t best = kLastKey;
    uint64_t bad = 0;
    Load(best, bad);
    TeamMinMax(team_, s_.team, turn_, best, bad);
    if (bad != 0) return Fail(SampleResult::kNotANumber);
    if (ValueOf(best) == -INFINITY) return Fail(SampleResult::kImpossible);
    const bool forced = row_.forced_token >= 0;
    if (forced || row_.logprobs >= 0) RankRaw(ValueOf(best));
    if (forced) return Finish(row_.forced_token, 0);
    if (Edit()) best = Best();
    const float greatest = ValueOf(best);
    if (!isfinite(greatest)) return Fail(SampleResult::kImpossible);
    if (row_.temperature == 0.0f) return Finish(TokenOf(best), 0);
    Scale(greatest);
    Draw(FindCutoff());
  }

 private:
  __device__ float Raw(int token) const { return p_.logits[index_ * p_.logits_stride + token]; }

  __device__ void Note(float value, int i, uint64_t& best, uint64_t& bad) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u) bad = 1;
    slice_.values[i] = value;
    best = min(best, KeyOf(value, slice_.first + i));
  }
  __device__ void Load(uint64_t& best, uint64_t& bad) {
    const float* from = p_.logits + index_ * p_.logits_stride + slice_.first;
    const int whole = p_.aligned ? slice_.count / 4 : 0;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < whole; i += kSampleThreads) {
      const float4 four = __ldcs(reinterpret_cast<const float4*>(from) + i);
      Note(four.x, i * 4, best, bad);
      Note(four.y, i * 4 + 1, best, bad);
      Note(four.z, i * 4 + 2, best, bad);
      Note(four.w, i * 4 + 3, best, bad);
    }
    for (int i = whole * 4 + static_cast<int>(threadIdx.x); i < slice_.count; i += kSampleThreads) {
      Note(from[i], i, best, bad);
    }
    __syncthreads();
  }
  __device__ uint64_t Best() {
    uint64_t best = kLastKey;
    uint64_t unused = 0;
    for (int i = static_cast<int>(threadIdx.x); i < slice_.count; i += kSampleThreads) {
      best = min(best, KeyOf(slice_.values[i], slice_.first + i));
    }
    TeamMinMax(team_, s_.team, turn_, best, unused);
    return best;
  }

  // Sum of the distribution before any edit, and its likeliest tokens.
  __device__ void RankRaw(float greatest) {
    uint64_t sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < slice_.count; i += kSampleThreads) {
      sum += MassOf(slice_.values[i] - greatest);
    }
    sum = TeamSum(team_, s_.team, turn_, sum);
    log_sum_ = static_cast<double>(greatest) + log(static_cast<double>(sum)) -
               kMassBits * 0.69314718055994530942;
    top_ = min(min(row_.logprobs, SampleResult::kLogprobsMax), p_.vocab);
    if (top_ <= 0) return;
    Selector<kCluster> select(team_, s_, slice_, {greatest, true}, turn_);
    const uint64_t cutoff = select.Select(static_cast<uint32_t>(top_), 0).key;
    if (threadIdx.x == 0) s_.cursor = 0;
    team_.Barrier();
    for (int i = static_cast<int>(threadIdx.x); i < slice_.count; i += kSampleThreads) {
      const uint64_t key = KeyOf(slice_.values[i], slice_.first + i);
      if (key <= cutoff) {
        team_.Remote(&s_.list[0], 0)[atomicAdd(team_.Remote(&s_.cursor, 0), 1)].key = key;
      }
    }
    team_.Barrier();
    const int i = static_cast<int>(threadIdx.x);
    if (team_.rank == 0 && i < top_) {
      int place = 0;
      for (int j = 0; j < top_; ++j) place += s_.list[j].key < s_.list[i].key ? 1 : 0;
      p_.results[index_].top_tokens[place] = TokenOf(s_.list[i].key);
      p_.results[index_].top_logprobs[place] = Logprob(ValueOf(s_.list[i].key));
    }
    __syncthreads();
  }
  __device__ float Logprob(float logit) const {
    const double value = static_cast<double>(logit) - log_sum_;
    return value > static_cast<double>(kLogprobFloor) ? static_cast<float>(value) : kLogprobFloor;
  }

  // Whether any logit may have changed.
  __device__ bool Edit() {
    const int edits = row_.edits_end - row_.edits_begin;
    for (int i = static_cast<int>(threadIdx.x); i < edits; i += kSampleThreads) {
      const LogitEdit edit = p_.edits[row_.edits_begin + i];
      const int at = edit.token - slice_.first;
      if (edit.token >= 0 && at >= 0 && at < slice_.count) {
        slice_.values[at] = Edited(slice_.values[at], edit, row_);
      }
    }
    if (edits <= 0 && p_.mask == nullptr) return false;
    __syncthreads();
    if (p_.mask == nullptr) return true;
    const uint32_t* mask = p_.mask + static_cast<int64_t>(index_) * ((p_.vocab + 31) / 32);
    for (int i = static_cast<int>(threadIdx.x); i < slice_.count; i += kSampleThreads) {
      const int token = slice_.first + i;
      if ((mask[token / 32] >> (token % 32) & 1u) == 0) slice_.values[i] = -INFINITY;
    }
    __syncthreads();
    return true;
  }

  // Temperature and min_p: what min_p drops becomes -inf.
  __device__ void Scale(float greatest) {
    const auto inverse = static_cast<float>(1.0 / max(static_cast<double>(row_.temperature), 1e-6));
    const float floor =
        row_.min_p > 0.0f ? static_cast<float>(log(static_cast<double>(row_.min_p))) : -INFINITY;
    for (int i = static_cast<int>(threadIdx.x); i < slice_.count; i += kSampleThreads) {
      const float value = __fmul_rn(__fsub_rn(slice_.values[i], greatest), inverse);
      slice_.values[i] = value >= floor ? value : -INFINITY;
    }
    __syncthreads();
  }

  // The last key that top_k and top_p keep.
  __device__ uint64_t FindCutoff() {
    if (row_.top_k <= 0 && row_.top_p >= 1.0f) return kLastKey;
    Selector<kCluster> select(team_, s_, slice_, {0.0f, false}, turn_);
    uint32_t count;
    uint64_t mass;
    select.Totals(count, mass);
    uint64_t cutoff = kLastKey;
    if (row_.top_k > 0 && static_cast<uint32_t>(row_.top_k) < count) {
      const Pick pick = select.Select(static_cast<uint32_t>(row_.top_k), 0);
      cutoff = pick.key;
      mass = pick.mass_before;
    }
    if (row_.top_p >= 1.0f) return cutoff;
    const double wanted = ceil(static_cast<double>(row_.top_p) * static_cast<double>(mass));
    return select.Select(0, min(max(static_cast<uint64_t>(wanted), uint64_t{1}), mass)).key;
  }

  __device__ uint64_t KeptMass(int i, uint64_t cutoff) const {
    if (i >= slice_.count) return 0;
    const float value = slice_.values[i];
    return KeyOf(value, slice_.first + i) <= cutoff ? MassOf(value) : 0;
  }
  // By inverse of the cumulative masses in the order of ids.
  __device__ void Draw(uint64_t cutoff) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int steps = (p_.slice / kSliceStep + kSampleWarps - 1) / kSampleWarps;
    const int begin = warp * steps * kSliceStep + lane * 4;
    uint64_t sum = 0;
    for (int step = 0; step < steps; ++step) {
      for (int j = 0; j < 4; ++j) sum += KeptMass(begin + step * kSliceStep + j, cutoff);
    }
    const uint64_t warp_sum = WarpSum(sum);
    __syncthreads();
    if (lane == 0) s_.team.warps[0][warp] = warp_sum;
    __syncthreads();
    uint64_t block_sum = 0;
    for (int i = 0; i < kSampleWarps; ++i) block_sum += s_.team.warps[0][i];
    const auto* slots = Exchange(team_, s_.team, turn_, block_sum, 0);
    uint64_t before = 0;
    uint64_t total = 0;
    for (int i = 0; i < team_.size; ++i) {
      if (i < team_.rank) before += slots[i][0];
      total += slots[i][0];
    }
    const uint64_t target = UniformBelow(row_.seed, row_.index, total);
    for (int i = 0; i < warp; ++i) before += s_.team.warps[0][i];
    if (target < before || target - before >= warp_sum) return;
    Walk(cutoff, begin, steps, target - before);
  }
  // The first token at which the cumulative mass passes `target`; in this warp's part.
  __device__ void Walk(uint64_t cutoff, int begin, int steps, uint64_t target) {
    uint64_t before = 0;
    for (int step = 0; step < steps; ++step) {
      uint64_t mass[4];
      for (int j = 0; j < 4; ++j) mass[j] = KeptMass(begin + step * kSliceStep + j, cutoff);
      const uint64_t mine = mass[0] + mass[1] + mass[2] + mass[3];
      const uint64_t prefix = before + WarpPrefix(mine);
      if (target < prefix && target >= prefix - mine) {
        uint64_t passed = prefix - mine;
        int j = 0;
        while (j < 3 && passed + mass[j] <= target) passed += mass[j++];
        Store(slice_.first + begin + step * kSliceStep + j);
      }
      before = __shfl_sync(~0u, prefix, 31);
      if (target < before) return;
    }
  }

  __device__ void Store(int token) {
    SampleResult& result = p_.results[index_];
    result.token = token;
    result.status = SampleResult::kOk;
    result.top_count = top_;
    result.logprob = 0.0f;
    if (row_.forced_token >= 0 || row_.logprobs >= 0) {
      result.logprob = token < p_.vocab ? Logprob(Raw(token)) : kLogprobFloor;
    }
    p_.tokens[index_] = token;
  }
  __device__ void Finish(int token, int by_rank) {
    if (team_.rank == by_rank && threadIdx.x == 0) Store(token);
  }
  __device__ void Fail(SampleResult::Status status) {
    if (team_.rank != 0 || threadIdx.x != 0) return;
    SampleResult& result = p_.results[index_];
    result.token = 0;
    result.status = status;
    result.logprob = 0.0f;
    result.top_count = 0;
    p_.tokens[index_] = 0;
  }

  const SampleParams& p_;
  const Team<kCluster>& team_;
  SelectScratch& s_;
  int index_;
  const SampleRow row_;
  Slice slice_;
  int turn_ = 0;
  int top_ = 0;
  double log_sum_ = 0.0;
};

template <bool kCluster>
__global__ void __launch_bounds__(kSampleThreads, 2) SampleKernel(const SampleParams params) {
  extern __shared__ __align__(16) std::byte shared[];
  auto& scratch = *reinterpret_cast<SelectScratch*>(shared);
  auto* values = reinterpret_cast<float*>(shared + (sizeof(SelectScratch) + 15) / 16 * 16);
  const Team<kCluster> team;
  LetNextStart();
  WaitForPrevious();
  RowSampler<kCluster>(params, team, scratch, values).Run();
  team.Barrier();  // others may still read this block's shared memory
}

Status LaunchCluster(const SampleParams& params, unsigned blocks, unsigned rows, int shared_bytes,
                     cudaStream_t stream) {
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      SampleKernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks, rows);
  config.blockDim = dim3(kSampleThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return CudaStatus(cudaLaunchKernelEx(&config, SampleKernel<true>, params), "Sample");
}

}  // namespace

int64_t SampleWorkspaceBytes(int64_t rows_max, int64_t vocab_size) {
  return rows_max * RoundUp(vocab_size, kSliceStep) * static_cast<int64_t>(sizeof(float));
}

Status Sample(const SampleArgs& args, const DeviceTraits& traits, const Workspace& workspace,
              cudaStream_t stream) {
  const int64_t rows = args.logits.dim(0);
  const int64_t vocab = args.logits.dim(1);
  if (rows == 0) return OkStatus();
  if (vocab > int64_t{1} << 21) return InvalidArgument("Sample: more than 2097152 tokens");
  SampleParams params{.logits = args.logits.as<float>(),
                      .rows = args.rows,
                      .edits = args.edits,
                      .mask = args.mask,
                      .results = args.results,
                      .tokens = args.tokens,
                      .values = nullptr,
                      .logits_stride = args.logits.stride(0),
                      .values_stride = RoundUp(vocab, kSliceStep),
                      .vocab = static_cast<int>(vocab),
                      .slice = 0,
                      .aligned = false};
  params.aligned = reinterpret_cast<uintptr_t>(params.logits) % 16 == 0 &&
                   (rows == 1 || params.logits_stride % 4 == 0);
  constexpr int64_t kScratchBytes = RoundUp(sizeof(SelectScratch), 16);
  constexpr int64_t kTokensPerBlock = 4096;  // at least, before a row is spread further
  unsigned blocks = 1;
  while (blocks < kTeamMax && blocks * kTokensPerBlock < vocab) blocks *= 2;
  const int64_t slice = RoundUp(CeilDiv(vocab, blocks), kSliceStep);
  const int64_t shared_bytes = kScratchBytes + slice * static_cast<int64_t>(sizeof(float));
  const auto rows_u = static_cast<unsigned>(rows);
  if (traits.major >= 9 && shared_bytes <= traits.shared_bytes_max) {
    params.slice = static_cast<int>(slice);
    return LaunchCluster(params, blocks, rows_u, static_cast<int>(shared_bytes), stream);
  }
  if (workspace.bytes < SampleWorkspaceBytes(rows, vocab)) {
    return InternalError("Sample: the workspace is too small");
  }
  params.values = static_cast<float*>(workspace.data);
  params.slice = static_cast<int>(params.values_stride);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(SampleKernel<false>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(kScratchBytes)));
  return Launch(SampleKernel<false>, dim3(1, rows_u), dim3(kSampleThreads),
                static_cast<size_t>(kScratchBytes), stream, params);
}

}  // namespace lacuna::kernels::cuda
