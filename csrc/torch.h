// SPDX-License-Identifier: BSD-3-Clause
// All that this library uses of torch: the stable ABI, an alias, and the wrappers that it lacks.
// No other header under csrc/ includes torch, so that one binary serves every torch >= 2.11.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace fastdet {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr auto kBool = ScalarType::Bool;
constexpr auto kInt64 = ScalarType::Long;
constexpr auto kFloat32 = ScalarType::Float;
constexpr auto kFloat64 = ScalarType::Double;

// Uninitialised, contiguous, on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype);
}

// The same with the shape of `like`.
inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  return torch::stable::new_empty(like, like.sizes(), dtype);
}

// The same with the shape of `boxes` (..., 4) less its last dimension.
inline Tensor empty_rows(const Tensor& boxes, ScalarType dtype) {
  return torch::stable::new_empty(boxes, boxes.sizes().slice(0, boxes.dim() - 1), dtype);
}

inline Tensor zeros(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_zeros(like, {sizes.begin(), sizes.size()}, dtype);
}

inline Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Box arithmetic is done in float64 for float64 boxes and in float32 for every other type.
inline ScalarType box_dtype(const Tensor& boxes) {
  return boxes.scalar_type() == kFloat64 ? kFloat64 : kFloat32;
}

inline ScalarType box_dtype(const Tensor& boxes1, const Tensor& boxes2) {
  return box_dtype(boxes1) == kFloat64 ? kFloat64 : box_dtype(boxes2);
}

// Boxes or scores as the kernels read them: contiguous, float32 or float64.
inline Tensor box_input(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(cast(tensor, dtype));
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// float32 or float64, the types that sums and box arithmetic have.
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

// Calls body<T>() with T one of float, double, Half, BFloat16; checks.h has refused the rest.
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
