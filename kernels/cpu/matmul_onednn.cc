#include "kernels/cpu/matmul_onednn.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <dnnl.hpp>
#include <string>
#include <vector>

#include "kernels/core/checked_math.h"
#include "kernels/core/dtype.h"
#include "kernels/cpu/memory.h"

// Of libgomp, on which Debian's oneDNN runs; clang does not find its header.
extern "C" void omp_set_num_threads(int threads);

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kSliceColumns = 256;
// A call's rows are the fewest of these that add up to them.
constexpr std::array<int64_t, 5> kBlockRows = {256, 64, 16, 4, 1};

using dnnl::memory;
constexpr auto kF32 = memory::data_type::f32;

float ValueOf(const TensorView& weight, int64_t at) {
  switch (weight.dtype()) {
    case DType::kBF16:
      return ToFloat(weight.as<const BF16>()[at]);
    case DType::kF16:
      return ToFloat(weight.as<const F16>()[at]);
    default:
      return weight.as<const float>()[at];
  }
}

// Some output features: their packed weight, and a primitive for each size of a block of rows.
struct Slice final {
  int64_t first = 0, columns = 0;
  memory weight;
  std::array<dnnl::matmul, kBlockRows.size()> products;
  std::array<memory::desc, kBlockRows.size()> scratch;
};

class Matrix final : public OneDnnMatrix {
 public:
  Matrix(int64_t rows, int64_t columns) : rows_(rows), columns_(columns) {}

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t bytes() const override { return bytes_; }

  void Pack(const TensorView& weight);
  size_t scratch_bytes() const;  // that the library needs for a product
  Status Run(const MatmulArgs& args, ThreadPool& pool,
             std::vector<OneDnnScratch>& scratch) const override;

 private:
  void PackSlice(const TensorView& weight, Slice& slice);
  void RunBlock(const MatmulArgs& args, const Slice& slice, size_t size, int64_t row,
                OneDnnScratch& scratch) const;
  void Finish(const MatmulArgs& args, const Slice& slice, int64_t row, int64_t rows,
              const float* product) const;

  int64_t rows_, columns_, bytes_ = 0;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::vector<Slice> slices_;
};

void Matrix::Pack(const TensorView& weight) {
  omp_set_num_threads(1);  // of what this thread makes: one worker runs it
  slices_.resize(static_cast<size_t>(CeilDiv(rows_, kSliceColumns)));
  for (size_t i = 0; i < slices_.size(); ++i) {
    slices_[i].first = static_cast<int64_t>(i) * kSliceColumns;
    slices_[i].columns = std::min(kSliceColumns, rows_ - slices_[i].first);
    PackSlice(weight, slices_[i]);
    bytes_ += static_cast<int64_t>(slices_[i].weight.get_desc().get_size());
  }
}

size_t Matrix::scratch_bytes() const {
  size_t bytes = 1;
  for (const Slice& slice : slices_) {
    for (const memory::desc& scratch : slice.scratch) bytes = std::max(bytes, scratch.get_size());
  }
  return bytes;
}

// All sizes read the layout that the largest block asks for.
void Matrix::PackSlice(const TensorView& weight, Slice& slice) {
  const auto row_major = [](int64_t rows, int64_t columns) {
    return memory::desc({rows, columns}, kF32, memory::format_tag::ab);
  };
  memory::desc packed({columns_, slice.columns}, kF32, memory::format_tag::any);
  for (size_t size = 0; size < kBlockRows.size(); ++size) {
    const dnnl::matmul::desc product(row_major(kBlockRows[size], columns_), packed,
                                     row_major(kBlockRows[size], slice.columns));
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::matmul::primitive_desc descriptor(product, attributes, engine_);
    packed = descriptor.weights_desc();
    slice.scratch[size] = descriptor.scratchpad_desc();
    slice.products[size] = dnnl::matmul(descriptor);
  }
  std::vector<float> plain(static_cast<size_t>(slice.columns * columns_));
  for (int64_t j = 0; j < slice.columns; ++j) {
    const int64_t from = (slice.first + j) * weight.stride(0);
    for (int64_t k = 0; k < columns_; ++k) {
      plain[static_cast<size_t>(j * columns_ + k)] = ValueOf(weight, from + k);
    }
  }
  memory source({{columns_, slice.columns}, kF32, memory::format_tag::ba}, engine_, plain.data());
  slice.weight = memory(packed, engine_);
  dnnl::stream stream(engine_);
  dnnl::reorder(source, slice.weight).execute(stream, source, slice.weight);
  stream.wait();
}

Status Matrix::Run(const MatmulArgs& args, ThreadPool& pool,
                   std::vector<OneDnnScratch>& scratch) const {
  const int64_t rows = args.x.dim(0);
  // With few rows for many threads smaller blocks keep all of them busy.
  const auto slices = static_cast<int64_t>(slices_.size());
  const auto block_of = [&](int64_t left) {
    size_t size = 0;
    while (kBlockRows[size] > left) ++size;
    while (size + 1 < kBlockRows.size() && kBlockRows[size] > 16 &&
           CeilDiv(rows, kBlockRows[size]) * slices < pool.threads()) {
      ++size;
    }
    return size;
  };
  int64_t blocks = 0;
  for (int64_t row = 0; row < rows; ++blocks) row += kBlockRows[block_of(rows - row)];
  std::atomic<bool> failed = false;
  pool.ParallelFor(blocks * slices, [&](int64_t task, int worker) {
    int64_t row = 0;
    for (int64_t i = task / slices; i > 0; --i) row += kBlockRows[block_of(rows - row)];
    try {
      RunBlock(args, slices_[static_cast<size_t>(task % slices)], block_of(rows - row), row,
               scratch[static_cast<size_t>(worker)]);
    } catch (const dnnl::error&) {
      failed.store(true, std::memory_order_relaxed);
    }
  });
  return failed.load() ? InternalError("Matmul: oneDNN refused a product") : OkStatus();
}

void Matrix::RunBlock(const MatmulArgs& args, const Slice& slice, size_t size, int64_t row,
                      OneDnnScratch& scratch) const {
  omp_set_num_threads(1);
  const int64_t rows = kBlockRows[size];
  float* x = args.x.as<float>() + row * args.x.stride(0);
  if (rows > 1 && args.x.stride(0) != columns_) {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(scratch.x.data() + i * columns_, x + i * args.x.stride(0),
                  static_cast<size_t>(columns_) * sizeof(float));
    }
    x = scratch.x.data();
  }
  dnnl::stream stream(engine_);
  slice.products[size].execute(
      stream,
      {{DNNL_ARG_SRC, memory({{rows, columns_}, kF32, memory::format_tag::ab}, engine_, x)},
       {DNNL_ARG_WEIGHTS, slice.weight},
       {DNNL_ARG_DST,
        memory({{rows, slice.columns}, kF32, memory::format_tag::ab}, engine_, scratch.out.data())},
       {DNNL_ARG_SCRATCHPAD, memory(slice.scratch[size], engine_, scratch.library.data())}});
  stream.wait();
  Finish(args, slice, row, rows, scratch.out.data());
}

void Matrix::Finish(const MatmulArgs& args, const Slice& slice, int64_t row, int64_t rows,
                    const float* product) const {
  const float* bias = args.bias.empty() ? nullptr : args.bias.as<const float>() + slice.first;
  for (int64_t i = 0; i < rows; ++i) {
    float* out = args.out.as<float>() + (row + i) * args.out.stride(0) + slice.first;
    for (int64_t j = 0; j < slice.columns; ++j) {
      const float value =
          args.alpha * (product[i * slice.columns + j] + (bias == nullptr ? 0.0f : bias[j]));
      out[j] = args.accumulate ? out[j] + value : value;
    }
  }
}

}  // namespace

Result<std::unique_ptr<OneDnnMatrix>> OneDnnMatrix::Pack(const TensorView& weight,
                                                         std::vector<OneDnnScratch>& scratch) {
  const int64_t bytes = weight.dim(0) * weight.dim(1) * static_cast<int64_t>(sizeof(float));
  if (const int64_t available = AvailableBytes(); available >= 0 && bytes > available) {
    return Exhausted("a weight of " + std::to_string(bytes) +
                     " bytes: " + std::to_string(available) + " are free");
  }
  for (OneDnnScratch& worker : scratch) {
    const auto x = static_cast<size_t>(kBlockRows[0] * weight.dim(1));
    worker.x.resize(std::max(worker.x.size(), x));
    worker.out.resize(static_cast<size_t>(kBlockRows[0] * kSliceColumns));
  }
  try {
    auto matrix = std::make_unique<Matrix>(weight.dim(0), weight.dim(1));
    matrix->Pack(weight);
    for (OneDnnScratch& worker : scratch) {
      worker.library.resize(std::max(worker.library.size(), matrix->scratch_bytes()));
    }
    return std::unique_ptr<OneDnnMatrix>(std::move(matrix));
  } catch (const dnnl::error& error) {
    return InternalError(std::string("oneDNN: ") + error.what());
  }
}

}  // namespace lacuna::kernels::cpu
