// SPDX-License-Identifier: BSD-3-Clause
// What RoIAlign's CUDA kernels share: the levels and the pooled features in device memory, packs of
// channels, and the samples of a RoI on one axis.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>

#include "../device/packs.cuh"
#include "../geometry/bilinear.h"
#include "tensors.h"

namespace fastdet::cuda {

template <typename T, typename S>
struct Levels {
  FeatureLevel<T, S> of[kMaxLevels];
};

// The shape and strides of pooled features (B, K, C, h, w).
struct PooledShape {
  int64_t images, rois_per_image, channels;
  int height, width;
  int64_t stride[5];

  explicit PooledShape(const Tensor& pooled)
      : images(pooled.size(0)),
        rois_per_image(pooled.size(1)),
        channels(pooled.size(2)),
        height(static_cast<int>(pooled.size(3))),
        width(static_cast<int>(pooled.size(4))) {
    for (int64_t d = 0; d < 5; ++d) stride[d] = pooled.stride(d);
  }

  FASTDET_HOST_DEVICE int64_t num_rois() const { return images * rois_per_image; }

  __device__ int64_t offset(int64_t n) const {
    return n / rois_per_image * stride[0] + n % rois_per_image * stride[1];
  }
};

// Adds weight * values to the sums of adjacent channels.
template <typename T, typename S, int V>
__device__ void add_to(S (&sums)[V], S weight, const Pack<T, V>& values) {
  for (int v = 0; v < V; ++v) sums[v] = std::fma(weight, static_cast<S>(values[v]), sums[v]);
}

template <typename T, typename S, int V>
__device__ void store_sums(T* to, const S (&sums)[V]) {
  Pack<T, V> pack;
  for (int v = 0; v < V; ++v) pack[v] = static_cast<T>(sums[v]);
#ifdef __CUDA_ARCH__  // without this, the compiler splits the copy of a pack
  if constexpr (sizeof pack == kPackBytes)
    return __stwb(reinterpret_cast<uint4*>(to), std::bit_cast<uint4>(pack));
#endif
  store_pack(to, pack);
}

// The pack at `from` if it exists, else zeros: one load that a predicate guards, not a branch. So a
// few of these stand before the first use, and are under way at once.
template <int V, typename T>
__device__ Pack<T, V> load_pack_if(bool exists, const T* from) {
  Pack<T, V> pack = {};
  if (exists) pack = load_pack<V>(from);
  return pack;
}

// Hides the value of a stride from the compiler. Otherwise it computes all multiples of the stride
// before a loop, which needs too many registers.
__device__ inline int64_t opaque(int64_t stride) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(stride));
#endif
  return stride;
}

// Whether the channels of (..., C, h, w) can be loaded and stored as packs.
template <typename T>
bool moves_in_packs(const Tensor& tensor) {
  const int64_t channels = tensor.dim() - 3;
  if (tensor.stride(channels) != 1 || tensor.size(channels) % kPackWidth<T> != 0) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (d != channels && tensor.size(d) > 1 && tensor.stride(d) % kPackWidth<T> != 0) return false;
  return is_aligned(tensor.const_data_ptr());
}

// The largest block of bins of a RoI that a block of threads handles at once; most RoIs have fewer
// bins.
constexpr int kMostBins = 128;  // on each side

struct BinBlock {
  int ph, height, pw, width;
};

template <typename Visit>
__device__ void for_each_bin_block(const PooledShape& shape, Visit visit) {
  for (int ph = 0; ph < shape.height; ph += kMostBins)
    for (int pw = 0; pw < shape.width; pw += kMostBins)
      visit(BinBlock{ph, min_of(shape.height - ph, kMostBins), pw,
                     min_of(shape.width - pw, kMostBins)});
}

// With double, fewer blocks share the registers of a multiprocessor.
template <typename T>
constexpr bool kDouble = std::is_same_v<T, double>;

// The bins of a RoI in y (its rows) or in x.
template <typename S>
__device__ RoiAxis<double> axis_of(const PlacedRoi<S>& roi, bool in_y, S scale, Sampling sampling,
                                   const PooledShape& shape) {
  if (roi.image < 0) return {};
  const Box<S>& box = roi.box;
  return roi_axis_in_float64(in_y ? box.y1 : box.x1, in_y ? box.y2 : box.x2, scale,
                             sampling.aligned, in_y ? shape.height : shape.width, sampling.ratio);
}

// Calls visit(index, weight) for each tap of sample i of bin p. The weight must still be divided by
// the number of samples.
template <typename S, typename Visit>
__device__ void for_each_tap(const RoiAxis<double>& axis, int p, int64_t i, int64_t size,
                             Visit visit) {
  const BilinearTap<double> tap = bilinear_tap(sample_position(axis, p, i), size);
#pragma unroll 1
  for (int k = 0; k < 2; ++k) {
    const S weight = static_cast<S>(k == 0 ? tap.weight[0] : tap.weight[1]);
    if (weight != S(0)) visit(k == 0 ? tap.index[0] : tap.index[1], weight);
  }
}

// A feature that a bin reads, at `offset` on its axis, and its weight in the average.
template <typename S>
struct alignas(16) Tap {
  int64_t offset;
  S weight;
};

// What merge_taps found: the number of taps, and the first sample that it left out.
struct MergedTaps {
  int count;
  int64_t next;
  bool more;  // whether it left out any
};

// Stores the taps of bin p, from sample `i` on, or from the first one if that is later, as long as
// `taps` has room for those of one sample more: float64 for the positions, S for the weights.
// Positions rise with the samples, so an offset that the bin already has is one of the last two. In
// an inverted RoI they fall, and some equal offsets are not merged.
template <typename S>
__device__ MergedTaps merge_taps(const RoiAxis<double>& axis, int p, int64_t i, int64_t size,
                                 int64_t stride, Tap<S>* taps, int room) {
  const SampleRange range = samples_within(axis, p, -1.0, static_cast<double>(size));
  int n = 0;
  for (i = max_of(i, range.begin); i < range.end && n + 2 <= room; ++i) {
    for_each_tap<S>(axis, p, i, size, [&](int64_t index, S weight) {
      for (int k = n - 1; k >= 0 && k >= n - 2; --k) {
        if (taps[k].offset == index * stride) {
          taps[k].weight += weight;
          return;
        }
      }
      taps[n++] = {index * stride, weight};
    });
  }
  for (int k = 0; k < n; ++k) taps[k].weight /= static_cast<S>(axis.samples);
  return {n, i, i < range.end};
}

}  // namespace fastdet::cuda
