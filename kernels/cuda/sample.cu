// Sample: the next token of each row, without a sort (the order of kernels/ops/sample.h).
//
// A row is spread over a cluster of up to 8 blocks that keep it in shared memory (sm_90), or given
// to one block that keeps it in the workspace. Reads the logits once and leaves them as they are.
#include <algorithm>
#include <cmath>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample_select.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr float kLogprobFloor = -9999.0f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr int kSliceStep = 128 * kSampleWarps;  // tokens that a block reads at once

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
  int steps;     // a block has steps x kSliceStep tokens
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
    slice_.first = team.rank * p_.steps * kSliceStep;
    slice_.steps = p_.steps;
    slice_.values = p_.values != nullptr ? p_.values + index_ * p_.values_stride : shared_values;
  }

  // After team.Arrive().
  __device__ void Run() {
    Fetch();
    team_.Wait();
    uint64_t best;
    uint64_t bad;
    FindBest(best, bad);
    if (bad != 0) return Fail(SampleResult::kNotANumber);
    if (ValueOf(best) == -INFINITY) return Fail(SampleResult::kImpossible);
    const bool forced = row_.forced_token >= 0;
    if (forced || row_.logprobs >= 0) RankRaw(ValueOf(best));
    if (forced) return Finish(row_.forced_token);
    if (Edit()) FindBest(best, bad);
    const float greatest = ValueOf(best);
    if (!isfinite(greatest)) return Fail(SampleResult::kImpossible);
    if (row_.temperature == 0.0f) return Finish(TokenOf(best));
    const uint64_t warp_mass = Scale(greatest);
    if (row_.top_k <= 0 && row_.top_p >= 1.0f) return Draw({}, warp_mass);
    const Cutoff cutoff = FindCutoff(warp_mass);
    Draw(cutoff, KeptMass(cutoff));
  }

 private:
  __device__ float Raw(int token) const { return p_.logits[index_ * p_.logits_stride + token]; }

  // The row's part to the slice: each warp its own, by one bulk copy where that is possible.
  __device__ void Fetch() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int part = p_.steps * 128;
    const int begin = warp * part;
    const int count = max(0, min(part, p_.vocab - slice_.first - begin));
    const float* from = p_.logits + index_ * p_.logits_stride + slice_.first + begin;
    float* to = slice_.values + begin;
    int done = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (kCluster && p_.aligned && count >= 4) {
      const uint32_t barrier = SharedAddress(&s_.loaded[warp]);
      done = count / 4 * 4;
      if (lane == 0) {
        BarrierInit(barrier, 1);
        FenceBarrierInit();
        BarrierArriveExpect(barrier, static_cast<uint32_t>(done) * 4);
        BulkCopyToShared(SharedAddress(to), from, static_cast<uint32_t>(done) * 4, barrier);
      }
      __syncwarp();
      BarrierWait(barrier, 0);
    }
#endif
#pragma unroll 4
    for (int i = done + lane; i < part; i += 32) to[i] = i < count ? from[i] : -INFINITY;
    __syncwarp();
  }
  // The likeliest token (key), and whether a logit is NaN or +inf.
  __device__ void FindBest(uint64_t& best, uint64_t& bad) {
    float greatest = -INFINITY;
    int at = 0;
    bool wrong = false;
    slice_.ForEach([&](float value, int i) {
      wrong = wrong || !(value <= 3.402823466e38f);
      if (value > greatest) {
        greatest = value;
        at = i;
      }
    });
    best = KeyOf(greatest, slice_.first + at);
    bad = wrong ? 1 : 0;
    TeamMinMax(team_, s_.team, turn_, best, bad);
  }

  // Sum of the distribution before any edit, and its likeliest tokens.
  __device__ void RankRaw(float greatest) {
    uint64_t sum = 0;
    slice_.ForEach([&](float value, int) { sum += MassOf(value - greatest); });
    sum = TeamSum(team_, s_.team, turn_, sum);
    log_sum_ = static_cast<double>(greatest) + log(static_cast<double>(sum)) - kMassBits * kLn2;
    top_ = max(0, min(min(row_.logprobs, SampleResult::kLogprobsMax), p_.vocab));
    if (top_ == 0) return;
    const Cutoff cutoff =
        Selector<kCluster>(team_, s_, slice_, {.origin = greatest, .with_barred = true}, turn_)
            .Select(static_cast<uint32_t>(top_), 0);
    if (threadIdx.x == 0) s_.cursor = 0;
    team_.Barrier();
    slice_.ForEach([&](float value, int i) {
      if (!cutoff.Keeps(value, slice_.first + i)) return;
      const int at = atomicAdd(team_.Remote(&s_.cursor, 0), 1);
      team_.Remote(&s_.list[0], 0)[at].key = KeyOf(value, slice_.first + i);
    });
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
      if (edit.token < p_.vocab && at >= 0 && at < p_.steps * kSliceStep) {
        slice_.values[at] = Edited(slice_.values[at], edit, row_);
      }
    }
    if (edits <= 0 && p_.mask == nullptr) return false;
    __syncthreads();  // other warps' edits
    if (p_.mask == nullptr) return true;
    const uint32_t* mask = p_.mask + static_cast<int64_t>(index_) * ((p_.vocab + 31) / 32);
    slice_.Update([&](float value, int i) {
      const int token = slice_.first + i;
      return token < p_.vocab && (mask[token / 32] >> (token % 32) & 1u) != 0 ? value : -INFINITY;
    });
    __syncthreads();
    return true;
  }

  // Temperature and min_p (what it drops becomes -inf); returns the mass of this warp's part.
  __device__ uint64_t Scale(float greatest) {
    const auto inverse = static_cast<float>(1.0 / max(static_cast<double>(row_.temperature), 1e-6));
    const float floor =
        row_.min_p > 0.0f ? static_cast<float>(log(static_cast<double>(row_.min_p))) : -INFINITY;
    uint64_t sum = 0;
    slice_.Update([&](float value, int) {
      value = __fmul_rn(__fsub_rn(value, greatest), inverse);
      if (!(value >= floor)) return -INFINITY;
      sum += MassOf(value);
      return value;
    });
    return WarpSum(sum);
  }
  __device__ uint64_t KeptMass(const Cutoff& cutoff) const {
    uint64_t sum = 0;
    slice_.ForEach([&](float value, int i) {
      if (cutoff.Keeps(value, slice_.first + i)) sum += MassOf(value);
    });
    return WarpSum(sum);
  }

  // The last token that top_k and top_p keep.
  __device__ Cutoff FindCutoff(uint64_t warp_mass) {
    Domain domain{.origin = 0.0f};
    if (row_.top_k > 0) {
      domain.limit = Selector<kCluster>(team_, s_, slice_, domain, turn_)
                         .Select(static_cast<uint32_t>(row_.top_k), 0);
      if (row_.top_p >= 1.0f) return domain.limit;
      warp_mass = KeptMass(domain.limit);
    }
    const uint64_t mass =
        TeamSum(team_, s_.team, turn_, threadIdx.x % 32 == 0 ? warp_mass : uint64_t{0});
    const double wanted = ceil(static_cast<double>(row_.top_p) * static_cast<double>(mass));
    // The tokens below this have together less than what top_p leaves out.
    const double spare = static_cast<double>(mass) * (1.0 - static_cast<double>(row_.top_p));
    domain.floor = static_cast<float>(log(spare / p_.vocab) - kMassBits * kLn2 - 0.01);
    domain.with_mass = true;
    return Selector<kCluster>(team_, s_, slice_, domain, turn_)
        .Select(0, min(max(static_cast<uint64_t>(wanted), uint64_t{1}), mass));
  }

  // By inverse of the cumulative masses in the order of ids.
  __device__ void Draw(const Cutoff& cutoff, uint64_t warp_mass) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) s_.team.warps[0][warp] = warp_mass;
    __syncthreads();
    uint64_t block_mass = 0;
    for (int i = 0; i < kSampleWarps; ++i) block_mass += s_.team.warps[0][i];
    const auto* slots = Exchange(team_, s_.team, turn_, block_mass, 0);
    uint64_t before = 0;
    uint64_t total = 0;
    for (int i = 0; i < team_.size; ++i) {
      if (i < team_.rank) before += slots[i][0];
      total += slots[i][0];
    }
    const uint64_t target = UniformBelow(row_.seed, row_.index, total);
    for (int i = 0; i < warp; ++i) before += s_.team.warps[0][i];
    if (target < before || target - before >= warp_mass) return;
    Walk(cutoff, target - before);
  }
  // The first token at which the cumulative mass passes `target`; in this warp's part.
  __device__ void Walk(const Cutoff& cutoff, uint64_t target) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int i = (static_cast<int>(threadIdx.x) / 32 * p_.steps * 32 + lane) * 4;
    uint64_t before = 0;
    for (int step = 0; step < p_.steps; ++step, i += 128) {
      uint64_t mass[4];
      for (int j = 0; j < 4; ++j) {
        const float value = slice_.values[i + j];
        mass[j] = cutoff.Keeps(value, slice_.first + i + j) ? MassOf(value) : 0;
      }
      const uint64_t mine = mass[0] + mass[1] + mass[2] + mass[3];
      const uint64_t prefix = before + WarpPrefix(mine);
      if (target < prefix && target >= prefix - mine) {
        uint64_t passed = prefix - mine;
        int j = 0;
        while (j < 3 && passed + mass[j] <= target) passed += mass[j++];
        Store(slice_.first + i + j);
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
  __device__ void Finish(int token) {
    if (team_.rank == 0 && threadIdx.x == 0) Store(token);
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
  LACUNA_DYNAMIC_SHARED(16, std::byte, shared);
  auto& scratch = *reinterpret_cast<SelectScratch*>(shared);
  auto* values = reinterpret_cast<float*>(shared + (sizeof(SelectScratch) + 15) / 16 * 16);
  const Team<kCluster> team;
  team.Arrive();
  LetNextStart();
  WaitForPrevious();
  RowSampler<kCluster>(params, team, scratch, values).Run();
  team.Barrier();  // others may still read this block's shared memory
}

Status LaunchCluster(const SampleParams& params, unsigned blocks, unsigned rows, int shared_bytes,
                     cudaStream_t stream) {
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      SampleKernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(SampleKernel<true>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
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
                      .steps = 0,
                      .aligned = false};
  params.aligned = reinterpret_cast<uintptr_t>(params.logits) % 16 == 0 &&
                   (rows == 1 || params.logits_stride % 4 == 0);
  constexpr int64_t kScratchBytes = RoundUp(sizeof(SelectScratch), 16);
  // Few rows: more blocks for each; 16 is what sm_90 allows beyond the portable 8.
  const unsigned blocks_max = rows <= 8 && traits.major == 9 ? kTeamMax : 8;
  unsigned blocks = 1;
  while (blocks < blocks_max && blocks * kSliceStep * 2 < vocab) blocks *= 2;
  const int64_t steps = CeilDiv(vocab, int64_t{blocks} * kSliceStep);
  const int64_t shared_bytes = kScratchBytes + steps * kSliceStep * int64_t{sizeof(float)};
  const auto rows_u = static_cast<unsigned>(rows);
  if (traits.major >= 9 && shared_bytes <= traits.shared_bytes_max) {
    params.steps = static_cast<int>(steps);
    return LaunchCluster(params, blocks, rows_u, static_cast<int>(shared_bytes), stream);
  }
  if (workspace.bytes < SampleWorkspaceBytes(rows, vocab)) {
    return InternalError("Sample: the workspace is too small");
  }
  params.values = static_cast<float*>(workspace.data);
  params.steps = static_cast<int>(params.values_stride / kSliceStep);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(SampleKernel<false>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(kScratchBytes)));
  return Launch(SampleKernel<false>, dim3(1, rows_u), dim3(kSampleThreads),
                static_cast<size_t>(kScratchBytes), stream, params);
}

}  // namespace lacuna::kernels::cuda
