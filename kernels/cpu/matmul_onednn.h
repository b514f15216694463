// Matmul in f32 by oneDNN: weights packed by the library, the rows and columns split over our pool.
// Owned by CpuBackend, engine thread.
//
// The weight is cut into slices of kSliceColumns output features, each packed on its own, and the
// rows into blocks of fixed sizes, so that every product has a primitive made at load. A task is
// one block times one slice, on one thread of our pool: the library's own threads stay out of it.
// Which block a row falls in depends on how many rows share the call, so deterministic mode takes
// our own kernels (matmul.h) instead.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/args.h"

namespace lacuna::kernels::cpu {

// Of one worker: a block of x, when its rows are strided, the block's product, and what the library
// needs (scratch of its own would belong to a primitive, which several workers run at once). Pack
// makes it fit.
struct OneDnnScratch final {
  std::vector<float> x, out;
  std::vector<std::byte> library;
};

class OneDnnMatrix : public PreparedMatrix {
 public:
  // Whether products of this backend go through oneDNN: f32, not deterministic, all instructions
  // that this machine has (the library always takes the newest).
  static bool Serves(DType precision, bool deterministic, Isa isa) {
    return precision == DType::kF32 && !deterministic && isa == DetectIsa();
  }

  // weight: [out, in] f32 | bf16 | f16. kExhausted when memory is short, kInternal when the library
  // refuses.
  static Result<std::unique_ptr<OneDnnMatrix>> Pack(const TensorView& weight,
                                                    std::vector<OneDnnScratch>& scratch);

  // `scratch` has one for each worker of the pool.
  virtual Status Run(const MatmulArgs& args, ThreadPool& pool,
                     std::vector<OneDnnScratch>& scratch) const = 0;
};

}  // namespace lacuna::kernels::cpu
