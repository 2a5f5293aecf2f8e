// SPDX-License-Identifier: BSD-3-Clause
// Everything that the kernels use of torch's tensors: the stable ABI, which lets one binary run
// with every torch >= 2.11, and the wrappers that it lacks. There are two exceptions: some headers
// include torch's header-only types, and device/launch.cuh asks torch for the current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "expect.h"
#include "geometry/numbers.h"

namespace fastdet {

using torch::stable::Tensor;

template <>
struct ArgumentOf<Tensor> {
  static ArgumentView view(const Tensor& tensor) {
    const Place place = tensor.is_cpu()    ? Place::kCpu
                        : tensor.is_cuda() ? Place::kCuda
                                           : Place::kOther;
    return {tensor.scalar_type(), tensor.sizes().data(), tensor.dim(), place,
            tensor.get_device_index()};
  }
};

// Uninitialised, contiguous, on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype);
}

// Like empty, with the shape of `like`.
inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  return torch::stable::new_empty(like, like.sizes(), dtype);
}

// Like empty, with the shape of `boxes` (..., 4) without its last dimension.
inline Tensor empty_rows(const Tensor& boxes, ScalarType dtype) {
  return torch::stable::new_empty(boxes, boxes.sizes().slice(0, boxes.dim() - 1), dtype);
}

inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_zeros(like, {sizes.begin(), sizes.size()}, dtype);
}

inline Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// The type of box arithmetic.
inline ScalarType box_dtype(const Tensor& boxes) { return box_dtype(boxes.scalar_type()); }

inline ScalarType box_dtype(const Tensor& boxes1, const Tensor& boxes2) {
  return box_dtype(boxes1.scalar_type(), boxes2.scalar_type());
}

// Boxes or scores as the kernels read them: contiguous, float32 or float64.
inline Tensor box_input(const Tensor& tensor, ScalarType dtype) {
  const Tensor values = cast(tensor, dtype);
  return values.is_contiguous() ? values : torch::stable::contiguous(values);
}

inline std::optional<Tensor> box_input(const std::optional<Tensor>& tensor, ScalarType dtype) {
  return tensor ? std::optional(box_input(*tensor, dtype)) : std::nullopt;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// out (N, R, C) = the products of a (N, R, K) and b (N, K, C). Written to `out` because autocast
// would change the type of a result.
inline void multiply_matrices(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the result's reference
}

// float32 or float64, the types of sums and of box arithmetic.
template <typename S>
constexpr ScalarType scalar_type_of() {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, double>);
  return std::is_same_v<S, double> ? kFloat64 : kFloat32;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls body<float>() or body<double>().
template <typename Body>
auto dispatch_box(ScalarType dtype, Body body) {
  return dtype == kFloat64 ? body.template operator()<double>() : body.template operator()<float>();
}

// Calls body<T>() with T one of float, double, Half, BFloat16. The operator's contract has already
// rejected all other types.
template <typename Body>
auto dispatch_floating(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Double:
      return body.template operator()<double>();
    case ScalarType::Half:
      return body.template operator()<Half>();
    case ScalarType::BFloat16:
      return body.template operator()<BFloat16>();
    default:
      return body.template operator()<float>();
  }
}

}  // namespace fastdet
