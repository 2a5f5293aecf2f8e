// SPDX-License-Identifier: BSD-3-Clause
// Each anchor's gt, one thread an anchor, the gts in tiles through shared memory. Pass 1 finds each
// anchor's best gt and, by an atomic maximum, each gt's best IoU; pass 2 computes the same bits
// again for the low-quality rules (no contraction, see CMake). O(anchors + gts) memory, 3 launches,
// no host sync. A maximum does not depend on the order of the threads, so neither does the result.
#include <string>

#include "../checks.h"
#include "launch.cuh"

namespace fastdet::cuda {

namespace {

constexpr int kTile = 128;  // gts in shared memory at once
constexpr int64_t kMaxGridImages = 65535;

// The bits of an IoU, which is never negative, order as integers do.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int;
  static __device__ int from(float x) { return __float_as_int(x); }
  static __device__ float back(int x) { return __int_as_float(x); }
};
template <>
struct BitsOf<double> {
  using type = long long;
  static __device__ long long from(double x) { return __double_as_longlong(x); }
  static __device__ double back(long long x) { return __longlong_as_double(x); }
};

template <typename T>
struct MatchArguments {
  const Box<T>* anchors;
  int64_t image_stride;      // of anchors: 0 where all images share them
  const Box<T>* gt_boxes;    // (B, G)
  const int64_t* gt_counts;  // (B,)
  int64_t num_images, num_anchors, num_gts;
  MatchRule<T> rule;
  typename BitsOf<T>::type* gt_best;  // (B, G), 0 at first
  int64_t* index;                     // (B, A)
  T* iou;                             // (B, A)

  __device__ int64_t count(int64_t image) const {
    return max_of(int64_t(0), min_of(gt_counts[image], num_gts));
  }
};

// All threads of a block call this with the same arguments but `box` and `usable`.
template <typename T>
__device__ void find_best(const MatchArguments<T>& in, int64_t image, const Box<T>& box,
                          bool usable, T& best_iou, int64_t& best_gt) {
  using Bits = typename BitsOf<T>::type;
  __shared__ Box<T> gts[kTile];
  __shared__ Bits most[kTile];
  const T box_area = area(box);
  const int64_t count = in.count(image);
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int n = static_cast<int>(min_of<int64_t>(kTile, count - begin));
    const int64_t first = image * in.num_gts + begin;
    for (int g = threadIdx.x; g < n; g += blockDim.x) {
      gts[g] = in.gt_boxes[first + g];
      most[g] = 0;
    }
    __syncthreads();
    for (int g = 0; usable && g < n; ++g) {
      if (!is_finite(gts[g])) continue;
      const T overlap = iou(gts[g], area(gts[g]), box, box_area);
      if (overlap > best_iou) {
        best_iou = overlap;
        best_gt = begin + g;
      }
      const Bits bits = BitsOf<T>::from(overlap);
      if (bits > 0) atomicMax(&most[g], bits);
    }
    __syncthreads();
    for (int g = threadIdx.x; g < n; g += blockDim.x)
      if (most[g] > 0) atomicMax(&in.gt_best[first + g], most[g]);
    __syncthreads();  // the next tile overwrites this one
  }
}

// The last gt whose IoU with the box is its rescue IoU, or -1.
template <typename T>
__device__ int64_t find_rescuer(const MatchArguments<T>& in, int64_t image, const Box<T>& box,
                                bool usable) {
  __shared__ Box<T> gts[kTile];
  __shared__ T wanted[kTile];
  const T box_area = area(box);
  const int64_t count = in.count(image);
  int64_t rescuer = -1;
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int n = static_cast<int>(min_of<int64_t>(kTile, count - begin));
    const int64_t first = image * in.num_gts + begin;
    for (int g = threadIdx.x; g < n; g += blockDim.x) {
      gts[g] = in.gt_boxes[first + g];
      wanted[g] =
          is_finite(gts[g]) ? in.rule.rescue_iou(BitsOf<T>::back(in.gt_best[first + g])) : T(-1);
    }
    __syncthreads();
    for (int g = 0; usable && g < n; ++g)
      if (iou(gts[g], area(gts[g]), box, box_area) == wanted[g]) rescuer = begin + g;
    __syncthreads();
  }
  return rescuer;
}

// Leaves in index the best gt, -1 where there is none, -2 for an anchor that is not finite.
template <typename T>
__global__ void find_best_kernel(MatchArguments<T> in) {
  const int64_t a = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t image = blockIdx.y; image < in.num_images; image += gridDim.y) {
    Box<T> box = {};
    if (a < in.num_anchors) box = in.anchors[image * in.image_stride + a];
    const bool usable = a < in.num_anchors && is_finite(box);
    T best_iou = T(-1);
    int64_t best_gt = -1;
    find_best(in, image, box, usable, best_iou, best_gt);
    if (a >= in.num_anchors) continue;
    in.index[image * in.num_anchors + a] = usable ? best_gt : -2;
    in.iou[image * in.num_anchors + a] = max_of(best_iou, T(0));
  }
}

template <typename T>
__global__ void label_kernel(MatchArguments<T> in) {
  const int64_t a = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t image = blockIdx.y; image < in.num_images; image += gridDim.y) {
    const int64_t i = image * in.num_anchors + a;
    const bool usable = a < in.num_anchors && in.index[i] >= 0;
    Box<T> box = {};
    if (usable) box = in.anchors[image * in.image_stride + a];
    int64_t rescuer = -1;
    if (in.rule.low_quality != LowQuality::kNone) rescuer = find_rescuer(in, image, box, usable);
    if (usable) in.index[i] = in.rule.label(in.iou[i], in.index[i], rescuer);
  }
}

template <typename T>
void match(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_counts,
           const MatchRule<T>& rule, const Tensor& index, const Tensor& iou) {
  using Bits = typename BitsOf<T>::type;
  const int64_t num_images = index.size(0), num_anchors = index.size(1);
  const int64_t num_gts = gt_boxes.size(1);
  const Tensor gt_best =
      zeros(gt_boxes, {num_images, num_gts}, sizeof(Bits) == 8 ? kInt64 : ScalarType::Int);
  const MatchArguments<T> arguments = {data<Box<T>>(anchors),
                                       anchors.dim() == 3 ? num_anchors : 0,
                                       data<Box<T>>(gt_boxes),
                                       data<int64_t>(gt_counts),
                                       num_images,
                                       num_anchors,
                                       num_gts,
                                       rule,
                                       mutable_data<Bits>(gt_best),
                                       mutable_data<int64_t>(index),
                                       mutable_data<T>(iou)};
  const dim3 grid(static_cast<unsigned>((num_anchors + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min(num_images, kMaxGridImages)));
  const cudaStream_t stream = current_stream(anchors);
  launch(find_best_kernel<T>, grid, dim3(kThreads), 0, stream, arguments);
  launch(label_kernel<T>, grid, dim3(kThreads), 0, stream, arguments);
}

}  // namespace

std::tuple<Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& gt_boxes,
                                         const Tensor& gt_counts, double high, double low,
                                         const std::string& low_quality) {
  check_match_anchors(anchors, gt_boxes, gt_counts);
  const DeviceGuard guard(anchors.get_device_index());
  const LowQuality rule = parse_low_quality(low_quality);
  const auto dtype = box_dtype(anchors, gt_boxes);
  const int64_t num_anchors = anchors.size(anchors.dim() - 2);
  const Tensor index = empty(anchors, {gt_boxes.size(0), num_anchors}, kInt64);
  const Tensor iou = empty(anchors, {gt_boxes.size(0), num_anchors}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    // As torch compares: the threshold is rounded to the type of the IoUs.
    match<T>(box_input(anchors, dtype), box_input(gt_boxes, dtype),
             torch::stable::contiguous(gt_counts),
             MatchRule<T>{static_cast<T>(high), static_cast<T>(low), rule}, index, iou);
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace fastdet::cuda
