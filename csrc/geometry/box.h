// SPDX-License-Identifier: BSD-3-Clause
// Arithmetic on xyxy boxes, shared by host and device: plain C++, no torch. Each function rounds in
// one fixed order (no contraction, see CMakeLists.txt). So every backend gets the same bits, and an
// index that depends on a comparison is the same on all of them.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTDET_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined: otherwise the linker could use a copy that was compiled for another ISA.
#define FASTDET_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastdet {

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

template <typename T>
FASTDET_HOST_DEVICE T min_of(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
FASTDET_HOST_DEVICE T max_of(T a, T b) {
  return a > b ? a : b;
}

// Like min_of, for arguments that are not NaN. On the device it is one instruction instead of two.
template <typename T>
FASTDET_HOST_DEVICE T min_of_numbers(T a, T b) {
#ifdef __CUDA_ARCH__
  return fmin(a, b);
#else
  return min_of(a, b);
#endif
}

template <typename T>
FASTDET_HOST_DEVICE T max_of_numbers(T a, T b) {
#ifdef __CUDA_ARCH__
  return fmax(a, b);
#else
  return max_of(a, b);
#endif
}

// False for infinities and NaN.
template <typename T>
FASTDET_HOST_DEVICE bool is_finite(T x) {
  return x - x == T(0);
}

template <typename T>
FASTDET_HOST_DEVICE bool is_finite(const Box<T>& b) {
  return is_finite(b.x1) && is_finite(b.y1) && is_finite(b.x2) && is_finite(b.y2);
}

// Whether both sides are at least min_size; false if a coordinate is NaN.
template <typename T>
FASTDET_HOST_DEVICE bool has_sides(const Box<T>& b, T min_size) {
  return b.x2 - b.x1 >= min_size && b.y2 - b.y1 >= min_size;
}

template <typename T>
FASTDET_HOST_DEVICE T area(const Box<T>& b) {
  return (b.x2 - b.x1) * (b.y2 - b.y1);
}

// Any number if a coordinate is NaN; the area of such a box is NaN too.
template <typename T>
FASTDET_HOST_DEVICE T intersection(const Box<T>& a, const Box<T>& b) {
  const T w = min_of_numbers(a.x2, b.x2) - max_of_numbers(a.x1, b.x1);
  const T h = min_of_numbers(a.y2, b.y2) - max_of_numbers(a.y1, b.y1);
  return max_of_numbers(w, T(0)) * max_of_numbers(h, T(0));
}

// The smallest box that contains both.
template <typename T>
FASTDET_HOST_DEVICE Box<T> enclosing(const Box<T>& a, const Box<T>& b) {
  return {min_of(a.x1, b.x1), min_of(a.y1, b.y1), max_of(a.x2, b.x2), max_of(a.y2, b.y2)};
}

// 0 if the union is not positive; never NaN for finite boxes.
template <typename T>
FASTDET_HOST_DEVICE T iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T inter = intersection(a, b);
  const T united = area_a + area_b - inter;
  return united > T(0) ? inter / united : T(0);
}

}  // namespace fastdet
