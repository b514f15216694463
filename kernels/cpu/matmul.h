// Matmul of the CPU backend: packed weights and the split of the work over the pool.
// Owned by CpuBackend, engine thread.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/device/device.h"
#include "kernels/ops/args.h"

namespace lacuna::kernels::cpu {

// A weight as panels of kPanelColumns output features; see matmul_kernels.h.
class PackedMatrix final : public PreparedMatrix {
 public:
  // precision: bf16 or f32. kExhausted when memory is short.
  static Result<std::unique_ptr<PackedMatrix>> Pack(const TensorView& weight, DType precision,
                                                    ThreadPool& pool);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t bytes() const override { return data_.bytes(); }

  DType dtype() const { return dtype_; }
  int64_t panels() const { return panels_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  std::byte* panel(int64_t index) const { return data_.data() + index * panel_bytes_; }

 private:
  PackedMatrix() = default;

  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t panels_ = 0;
  int64_t panel_bytes_ = 0;
  DType dtype_ = DType::kBF16;
  Buffer data_;
};

class MatmulRunner final {
 public:
  MatmulRunner(Isa isa, bool deterministic, ThreadPool& pool);

  // Makes the per-worker scratch fit a weight with this many columns.
  Status Reserve(int64_t columns);
  void Run(const MatmulArgs& args, const PackedMatrix& weight);

 private:
  Isa isa_;
  bool deterministic_;
  ThreadPool& pool_;
  int64_t scratch_bytes_ = 0;  // of one worker
  Buffer scratch_;
};

}  // namespace lacuna::kernels::cpu
