// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression, one thread block an image. A stable radix sort ranks the boxes by
// falling score; then the block walks the ranks, and each box that still stands strikes out the
// later ones it overlaps, all threads side by side. O(n * kept) IoUs, O(n) memory, no host sync.
#pragma once

#include <cub/device/device_segmented_radix_sort.cuh>

#include "../box.h"
#include "../threshold.h"
#include "launch.cuh"

namespace fastdet::cuda {

namespace {

constexpr int kNmsThreads = 512;

template <typename T>
struct SortKey;
template <>
struct SortKey<float> {
  using type = uint32_t;
};
template <>
struct SortKey<double> {
  using type = uint64_t;
};

// Unsigned keys in the order of the scores; 0, below every score, marks a box that is dropped.
template <typename T>
__device__ typename SortKey<T>::type sort_key(T score, const Box<T>& box) {
  using Key = typename SortKey<T>::type;
  if (isnan(score) || !is_finite(box)) return 0;
  const T positive_zero = score + T(0);
  Key bits;
  memcpy(&bits, &positive_zero, sizeof bits);
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  return bits & kSign ? ~bits : bits | kSign;
}

template <typename T>
struct NmsArguments {
  const Box<T>* boxes;                    // (B, N)
  const int64_t* groups;                  // (B, N) or null
  const typename SortKey<T>::type* keys;  // (B, N) by rank
  const int32_t* order;                   // (B, N) box of each rank
  bool* struck;                           // (B, N) by rank
  int64_t* keep;                          // (B, max_keep)
  int64_t* counts;                        // (B,)
  int64_t n, max_keep;
  T iou_threshold;
};

template <typename T>
__global__ void suppress_kernel(NmsArguments<T> in) {
  const int64_t image = blockIdx.x, first = image * in.n;
  int64_t num_kept = 0;
  for (int64_t rank = 0; rank < in.n && num_kept < in.max_keep; ++rank) {
    if (in.keys[first + rank] == 0) break;  // the dropped boxes come last
    // Every thread reads the flag that an earlier round may have set.
    __syncthreads();
    if (in.struck[first + rank]) continue;
    const int64_t i = in.order[first + rank];
    const Box<T> box = in.boxes[first + i];
    const T box_area = area(box);
    if (threadIdx.x == 0) in.keep[image * in.max_keep + num_kept] = i;
    ++num_kept;
    for (int64_t later = rank + 1 + threadIdx.x; later < in.n; later += blockDim.x) {
      if (in.struck[first + later] || in.keys[first + later] == 0) continue;
      const int64_t j = in.order[first + later];
      if (in.groups && in.groups[first + j] != in.groups[first + i]) continue;
      const Box<T> other = in.boxes[first + j];
      if (iou(box, box_area, other, area(other)) > in.iou_threshold)
        in.struck[first + later] = true;
    }
  }
  for (int64_t k = num_kept + threadIdx.x; k < in.max_keep; k += blockDim.x)
    in.keep[image * in.max_keep + k] = -1;
  if (threadIdx.x == 0) in.counts[image] = num_kept;
}

// Ranks each image's boxes: keys and indices by falling key, ties by rising index.
template <typename Key>
void sort_by_key(const Tensor& like, const Key* keys, Key* sorted_keys, const int32_t* index,
                 int32_t* order, int64_t num_images, int64_t n, cudaStream_t stream) {
  const Tensor begins = empty(like, {num_images + 1}, kInt64);
  int64_t* const begin = mutable_data<int64_t>(begins);
  for_each(num_images + 1, stream, [=] __device__(int64_t image) { begin[image] = image * n; });
  const auto sort = [&](void* workspace, size_t& bytes) {
    STD_CUDA_CHECK(cub::DeviceSegmentedRadixSort::SortPairsDescending(
        workspace, bytes, keys, sorted_keys, index, order, num_images * n, num_images, begin,
        begin + 1, 0, 8 * sizeof(Key), stream));
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  const Tensor workspace = empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  sort(workspace.mutable_data_ptr(), bytes);
}

// Of contiguous boxes (B, N, 4) and scores (B, N) of type T, groups (B, N) or none, and counts (B,)
// or none, both int64: writes keep (B, max_keep), padded with -1, and keep_counts (B,), int64. Rows
// from an image's count on are never read.
template <typename T>
void greedy_nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, int64_t max_keep,
                const std::optional<Tensor>& groups, const std::optional<Tensor>& counts,
                const Tensor& keep, const Tensor& keep_counts) {
  using Key = typename SortKey<T>::type;
  const cudaStream_t stream = current_stream(boxes);
  const int64_t num_images = boxes.size(0), n = boxes.size(1);
  const Tensor keys = empty(boxes, {2, num_images, n}, sizeof(Key) == 8 ? kInt64 : ScalarType::Int);
  const Tensor index = empty(boxes, {2, num_images, n}, ScalarType::Int);
  const Tensor struck = zeros(boxes, {num_images, n}, kBool);
  Key* const key = mutable_data<Key>(keys);
  int32_t* const position = mutable_data<int32_t>(index);
  const Box<T>* const box = data<Box<T>>(boxes);
  const T* const score = data<T>(scores);
  const int64_t* const count = counts ? data<int64_t>(*counts) : nullptr;
  for_each(num_images * n, stream, [=] __device__(int64_t i) {
    const int64_t image = i / n, row = i % n;
    key[i] = count && row >= count[image] ? Key(0) : sort_key(score[i], box[i]);
    position[i] = static_cast<int32_t>(row);
  });
  const int64_t total = num_images * n;
  if (total > 0)
    sort_by_key(boxes, key, key + total, position, position + total, num_images, n, stream);
  const NmsArguments<T> arguments = {box,
                                     groups ? data<int64_t>(*groups) : nullptr,
                                     key + total,
                                     position + total,
                                     mutable_data<bool>(struck),
                                     mutable_data<int64_t>(keep),
                                     mutable_data<int64_t>(keep_counts),
                                     n,
                                     max_keep,
                                     round_down<T>(iou_threshold)};
  launch(suppress_kernel<T>, dim3(static_cast<unsigned>(num_images)), dim3(kNmsThreads), 0, stream,
         arguments);
}

}  // namespace

}  // namespace fastdet::cuda
