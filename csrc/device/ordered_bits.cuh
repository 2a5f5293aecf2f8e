// SPDX-License-Identifier: BSD-3-Clause
// Floating numbers >= 0 as integers of the same order, for atomic maxima.
#pragma once

#include "launch.cuh"

namespace fastdet::cuda {

template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int;
  static constexpr ScalarType kDtype = ScalarType::Int;
  static __device__ int from(float x) { return __float_as_int(x); }
  static __device__ float back(int x) { return __int_as_float(x); }
};
template <>
struct BitsOf<double> {
  using type = long long;
  static constexpr ScalarType kDtype = kInt64;
  static __device__ long long from(double x) { return __double_as_longlong(x); }
  static __device__ double back(long long x) { return __longlong_as_double(x); }
};

}  // namespace fastdet::cuda
