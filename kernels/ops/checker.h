// Checker: collects the first thing that is wrong with an op's arguments. Private to kernels/ops.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"

namespace lacuna::kernels {

inline constexpr int64_t kAnyDim = -1;

class Checker final {
 public:
  explicit Checker(std::string_view op) : op_(op) {}

  bool ok() const { return status_.ok(); }
  Status Take() { return std::move(status_); }

  // A tensor of these dtypes and this shape (kAnyDim: any extent); false once anything is wrong.
  bool Tensor(std::string_view name, const TensorView& view, std::initializer_list<DType> dtypes,
              std::initializer_list<int64_t> shape) {
    if (!ok()) return false;
    if (!ShapeMatches(view, shape) ||
        std::find(dtypes.begin(), dtypes.end(), view.dtype()) == dtypes.end()) {
      Fail(name, "got " + view.ShapeString() + ", need " + Describe(dtypes, shape));
    } else if (!LayoutIsSound(view)) {
      Fail(name, "got null, misaligned or overlapping rows, need rows of a row-major tensor");
    }
    return ok();
  }
  bool OptionalTensor(std::string_view name, const TensorView& view,
                      std::initializer_list<DType> dtypes, std::initializer_list<int64_t> shape) {
    return view.rank() == 0 ? ok() : Tensor(name, view, dtypes, shape);
  }
  bool Require(bool condition, std::string_view name, std::string_view need) {
    if (ok() && !condition) Fail(name, "need " + std::string(need));
    return ok();
  }

 private:
  static bool ShapeMatches(const TensorView& view, std::initializer_list<int64_t> shape) {
    if (view.rank() != static_cast<int>(shape.size())) return false;
    int axis = 0;
    for (const int64_t extent : shape) {
      const int64_t got = view.dim(axis++);
      if (got < 0 || (extent != kAnyDim && got != extent)) return false;
    }
    return true;
  }

  // Everything contiguous but the outermost dimension, whose rows must not overlap.
  static bool LayoutIsSound(const TensorView& view) {
    int64_t inner = 1;
    for (int axis = view.rank() - 1; axis > 0; --axis) {
      if (view.stride(axis) != inner) return false;
      inner *= view.dim(axis);
    }
    if (view.elements() == 0) return true;
    const auto address = reinterpret_cast<uintptr_t>(view.data());
    return address != 0 && address % DTypeBytes(view.dtype()) == 0 &&
           (view.dim(0) == 1 || view.stride(0) >= inner);
  }

  static std::string Describe(std::initializer_list<DType> dtypes,
                              std::initializer_list<int64_t> shape) {
    std::string text = "[";
    for (const int64_t extent : shape) {
      if (text.size() > 1) text += ", ";
      text += extent == kAnyDim ? "any" : std::to_string(extent);
    }
    text += "]";
    for (const DType& dtype : dtypes) {
      text += (&dtype == dtypes.begin() ? " " : " | ") + std::string(DTypeName(dtype));
    }
    return text;
  }

  void Fail(std::string_view name, const std::string& message) {
    status_ = InvalidArgument(std::string(op_) + ": " + std::string(name) + ": " + message);
  }

  std::string_view op_;
  Status status_;
};

}  // namespace lacuna::kernels
