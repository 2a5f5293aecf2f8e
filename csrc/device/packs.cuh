// SPDX-License-Identifier: BSD-3-Clause
// Packs: several values that one instruction loads or stores, up to 16 bytes. The address must be a
// multiple of the pack's size, or of 16 bytes for larger packs.
#pragma once

#include <type_traits>

#include "../geometry/box.h"
#include "launch.cuh"

namespace fastdet::cuda {

constexpr int kPackBytes = 16;

// The number of values that one instruction moves.
template <typename T>
constexpr int kPackWidth = kPackBytes / sizeof(T);

template <typename T, int n>
struct alignas(sizeof(T) * n < kPackBytes ? sizeof(T) * n : kPackBytes) Pack {
  T values[n];

  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

template <int n, typename T>
__device__ Pack<T, n> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}

template <typename T, int n>
__device__ void store_pack(T* p, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
}

// Loads or stores only the first `count` values; the rest of a loaded pack is 0.
template <int n, typename T>
__device__ Pack<T, n> load_pack(const T* p, int64_t count) {
  if (count >= n) return load_pack<n>(p);
  Pack<T, n> pack;
  for (int k = 0; k < n; ++k) pack[k] = k < count ? p[k] : T(0);
  return pack;
}

template <typename T, int n>
__device__ void store_pack(T* p, const Pack<T, n>& pack, int64_t count) {
  if (count >= n) return store_pack(p, pack);
  for (int k = 0; k < n; ++k)
    if (k < count) p[k] = pack[k];
}

template <typename T>
__device__ Box<T> load_box(const Box<T>* p) {
  const Pack<T, 4> pack = load_pack<4>(&p->x1);
  return {pack[0], pack[1], pack[2], pack[3]};
}

template <typename T>
__device__ void store_box(Box<T>* p, const Box<T>& b) {
  store_pack(&p->x1, Pack<T, 4>{b.x1, b.y1, b.x2, b.y2});
}

// Adds the weighted values, 16 bytes at a time if the GPU can.
template <typename S, int V>
__device__ void add_atomically(S* to, S weight, const S (&values)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (V % 4 == 0 && std::is_same_v<S, float>) {
    for (int v = 0; v < V; v += 4)
      atomicAdd(reinterpret_cast<float4*>(to + v),
                make_float4(weight * values[v], weight * values[v + 1], weight * values[v + 2],
                            weight * values[v + 3]));
  } else
#endif
    for (int v = 0; v < V; ++v) atomicAdd(to + v, weight * values[v]);
}

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0; }

// The contiguous tensor itself, or a copy if it is a view whose address is not a multiple of a
// pack.
inline Tensor aligned(const Tensor& tensor) {
  return is_aligned(tensor.const_data_ptr()) ? tensor : torch::stable::clone(tensor);
}

}  // namespace fastdet::cuda
