// SPDX-License-Identifier: BSD-3-Clause
// Finds the ground-truth box (gt) of each anchor; one warp handles 32 anchors. Pass 1 finds the
// best gt of each anchor and labels the anchor by the thresholds. It also records the best IoU of
// each gt: the maximum of a warp, then of a block in shared memory, then one atomic maximum for
// each block and gt. Pass 2, for the low-quality rules, computes the same bits again (no
// contraction, see CMakeLists.txt) where a gt may have its best IoU, and writes the labels that
// change. A maximum does not depend on the order of the threads, so the result does not depend on
// it either.
//
// Consecutive anchors lie close together. So a warp tests which gts touch the hull of its anchors,
// 32 gts at a time, and computes IoUs only for those, about 30 instructions for each. On a pyramid
// of 267k anchors these are 4 of 100 gts, counted for random gts; a warp needs about 400
// instructions, 4 us in all. (With anchors in random order every hull touches every gt: 27M IoUs,
// 25 us.) Pass 1 reads 16 bytes for each anchor and writes 12, 2.2 us. Pass 2 reads one hull for 32
// anchors and stops there unless the hull touches a gt that needs a match. O(anchors / 32 + gts)
// memory, 3 launches, no host sync.
#include <limits>
#include <string>

#include "../device/ordered_bits.cuh"
#include "../device/packs.cuh"
#include "../device/warp.cuh"
#include "contract.h"

namespace fastdet::cuda {

namespace {

constexpr int64_t kMaxGridImages = 65535;

// sm_80 and newer have one instruction for 32 bits.
template <typename Bits>
__device__ Bits max_of_warp(Bits x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if constexpr (sizeof(Bits) == sizeof(int)) return __reduce_max_sync(kAllLanes, x);
#endif
  return group_max(x, kWarp);
}

template <typename T>
struct MatchArguments {
  const Box<T>* anchors;
  int64_t image_stride;      // of anchors; 0 if all images share them
  const Box<T>* gt_boxes;    // (B, G)
  const int64_t* gt_counts;  // (B,)
  int64_t num_images, num_anchors, num_gts;
  MatchRule<T> rule;
  typename BitsOf<T>::type* gt_best;  // (B, G), 0 at first
  Box<T>* hulls;                      // (B, warps of an image)
  int64_t* index;                     // (B, A)
  T* iou;                             // (B, A)

  __device__ int64_t count(int64_t image) const {
    return max_of(int64_t(0), min_of(gt_counts[image], num_gts));
  }
  __device__ Box<T>& hull(int64_t image, int64_t anchor) const {
    return hulls[(image * gridDim.x * blockDim.x + anchor) / kWarp];
  }
  // The IoU with gt g at which an anchor is rescued.
  __device__ T rescue_iou(int64_t image, int64_t g) const {
    return rule.rescue_iou(BitsOf<T>::back(gt_best[image * num_gts + g]));
  }
};

// A box that touches no other. It replaces an empty anchor, whose IoU with every gt is 0.
template <typename T>
__device__ Box<T> nothing() {
  constexpr T kInf = std::numeric_limits<T>::infinity();
  return {kInf, kInf, -kInf, -kInf};
}

template <typename T>
struct Anchor {
  Box<T> box;
  bool usable;

  __device__ Anchor(const MatchArguments<T>& in, int64_t image, int64_t a)
      : box(nothing<T>()), usable(false) {
    if (a >= in.num_anchors) return;
    const Box<T> own = load_box(in.anchors + image * in.image_stride + a);
    usable = is_finite(own);
    if (usable && own.x1 < own.x2 && own.y1 < own.y2) box = own;
  }
};

template <typename T>
__device__ Box<T> hull_of_warp(Box<T> b) {
  for (int d = kWarp / 2; d > 0; d /= 2)
    b = {min_of(b.x1, __shfl_xor_sync(kAllLanes, b.x1, d)),
         min_of(b.y1, __shfl_xor_sync(kAllLanes, b.y1, d)),
         max_of(b.x2, __shfl_xor_sync(kAllLanes, b.x2, d)),
         max_of(b.y2, __shfl_xor_sync(kAllLanes, b.y2, d))};
  return b;
}

template <typename T>
__device__ bool touches(const Box<T>& gt, const Box<T>& hull) {
  return gt.x1 < hull.x2 && gt.x2 > hull.x1 && gt.y1 < hull.y2 && gt.y2 > hull.y1;
}

// The best gt so far. While its IoU is 0, it is the first finite gt, or -1.
template <typename T>
struct Match {
  T iou = T(0);
  int64_t gt = -1;
};

// Improves `best` by gts[0, n), the first of which has the number `first`. All lanes of a warp call
// this together, each with its own box within the hull. For each gts[g] that touches the hull, in
// order, all lanes call on_overlap(g, IoU).
template <typename T, typename OnOverlap>
__device__ void match_warp(const Box<T>* gts, int64_t first, int64_t n, const Box<T>& box,
                           const Box<T>& hull, Match<T>& best, const OnOverlap& on_overlap) {
  const T box_area = area(box);
  for (int64_t begin = 0; begin < n; begin += kWarp) {
    const Box<T> own = begin + lane() < n ? load_box(gts + begin + lane()) : nothing<T>();
    const unsigned finite = __ballot_sync(kAllLanes, is_finite(own));
    if (best.gt < 0 && finite) best.gt = first + begin + __ffs(finite) - 1;
    unsigned touching = finite & __ballot_sync(kAllLanes, touches(own, hull));
    for (; touching; touching &= touching - 1) {
      const int64_t g = begin + __ffs(touching) - 1;
      const Box<T> gt = load_box(gts + g);
      T overlap = T(0);
      if (intersection(gt, box) > T(0)) overlap = iou(gt, area(gt), box, box_area);
      if (overlap > best.iou) best = {overlap, first + g};
      on_overlap(g, overlap);
    }
  }
}

// All threads of a block call this together, each with its own box. Each thread owns one gt of a
// tile: it loads the gt, and at the end of the tile it stores the gt's largest IoU.
template <typename T>
__device__ Match<T> match_block(const MatchArguments<T>& in, int64_t image, const Box<T>& box,
                                const Box<T>& hull) {
  using Bits = typename BitsOf<T>::type;
  alignas(kPackBytes) __shared__ Box<T> gts[kThreads];
  __shared__ Bits most[kThreads];
  const int own = threadIdx.x;
  const int64_t count = in.count(image);
  Match<T> best;
  for (int64_t begin = 0; begin < count; begin += kThreads) {
    const int64_t n = min_of<int64_t>(kThreads, count - begin);
    const int64_t first = image * in.num_gts + begin;
    if (own < n) store_box(gts + own, load_box(in.gt_boxes + first + own));
    most[own] = 0;
    __syncthreads();
    match_warp(gts, begin, n, box, hull, best, [&](int64_t g, T overlap) {
      const Bits bits = max_of_warp(BitsOf<T>::from(overlap));
      if (lane() == 0 && bits > 0) atomicMax(&most[g], bits);
    });
    __syncthreads();
    if (most[own] > 0) atomicMax(&in.gt_best[first + own], most[own]);
  }
  return best;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) find_best_kernel(MatchArguments<T> in) {
  const int64_t a = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t image = blockIdx.y; image < in.num_images; image += gridDim.y) {
    const Anchor<T> anchor(in, image, a);
    const Box<T> hull = hull_of_warp(anchor.box);
    if (lane() == 0) store_box(&in.hull(image, a), hull);
    const Match<T> best = match_block(in, image, anchor.box, hull);
    if (a >= in.num_anchors) continue;
    const int64_t i = image * in.num_anchors + a;
    in.iou[i] = best.iou;
    // Without gts, all usable anchors are negative.
    in.index[i] = !anchor.usable ? -2 : best.gt < 0 ? -1 : in.rule.label(best.iou, best.gt, -1);
  }
}

// Whether anchors may be rescued: within a hull, or in the whole image, because a gt overlaps no
// anchor.
struct Rescue {
  bool here, everywhere;
};

// An anchor whose IoU with a gt is at least `high` is matched to its own best gt already. Only the
// rule kGtBest can still change its match.
template <typename T>
__device__ Rescue rescue_within(const MatchArguments<T>& in, int64_t image, const Box<T>& hull) {
  const bool always = in.rule.low_quality == LowQuality::kGtBest;
  const int64_t count = in.count(image);
  Rescue rescue = {false, false};
  for (int64_t g = lane(); g < count; g += kWarp) {
    const Box<T> gt = load_box(in.gt_boxes + image * in.num_gts + g);
    if (!is_finite(gt)) continue;
    const T wanted = in.rescue_iou(image, g);
    rescue.everywhere |= wanted == T(0);
    rescue.here |= wanted > T(0) && (always || wanted < in.rule.high) && touches(gt, hull);
  }
  return {__any_sync(kAllLanes, rescue.here) != 0, __any_sync(kAllLanes, rescue.everywhere) != 0};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) rescue_kernel(MatchArguments<T> in) {
  const int64_t a = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t image = blockIdx.y; image < in.num_images; image += gridDim.y) {
    const Box<T> hull = load_box(&in.hull(image, a));
    const Rescue rescue = rescue_within(in, image, hull);
    if (!rescue.here && !rescue.everywhere) continue;
    const Anchor<T> anchor(in, image, a);
    Match<T> best;
    int64_t rescuer = rescue.everywhere ? 0 : -1;
    match_warp(in.gt_boxes + image * in.num_gts, 0, in.count(image), anchor.box, hull, best,
               [&](int64_t g, T overlap) {
                 if (overlap > T(0) && overlap == in.rescue_iou(image, g)) rescuer = g;
               });
    if (anchor.usable && rescuer >= 0)
      in.index[image * in.num_anchors + a] = in.rule.label(best.iou, best.gt, rescuer);
  }
}

template <typename T>
void match(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_counts,
           const MatchRule<T>& rule, const Tensor& index, const Tensor& iou) {
  using Bits = typename BitsOf<T>::type;
  const int64_t num_images = index.size(0), num_anchors = index.size(1);
  const int64_t num_gts = gt_boxes.size(1);
  const int64_t num_blocks = (num_anchors + kThreads - 1) / kThreads;
  const Tensor gt_best = zeros(gt_boxes, {num_images, num_gts}, BitsOf<T>::kDtype);
  const Tensor hulls =
      empty(anchors, {num_images, num_blocks * kThreads / kWarp, 4}, scalar_type_of<T>());
  const MatchArguments<T> arguments = {data<Box<T>>(anchors),
                                       anchors.dim() == 3 ? num_anchors : 0,
                                       data<Box<T>>(gt_boxes),
                                       data<int64_t>(gt_counts),
                                       num_images,
                                       num_anchors,
                                       num_gts,
                                       rule,
                                       mutable_data<Bits>(gt_best),
                                       mutable_data<Box<T>>(hulls),
                                       mutable_data<int64_t>(index),
                                       mutable_data<T>(iou)};
  const dim3 grid(static_cast<unsigned>(num_blocks),
                  static_cast<unsigned>(std::min(num_images, kMaxGridImages)));
  const cudaStream_t stream = current_stream(anchors);
  launch(find_best_kernel<T>, grid, dim3(kThreads), 0, stream, arguments);
  if (rule.low_quality != LowQuality::kNone)
    launch(rescue_kernel<T>, grid, dim3(kThreads), 0, stream, arguments);
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
    // As in torch, the threshold is rounded to the type of the IoUs before it is compared.
    match<T>(aligned(box_input(anchors, dtype)), aligned(box_input(gt_boxes, dtype)),
             torch::stable::contiguous(gt_counts),
             MatchRule<T>{static_cast<T>(high), static_cast<T>(low), rule}, index, iou);
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace fastdet::cuda
