// SPDX-License-Identifier: BSD-3-Clause
// SimOTA on the device, with the arithmetic of simota_rule.h. First a warp takes 32 anchors: it
// tests which are in a ground-truth box (gt) or near the centre of one, and half a warp sums the
// classes of each. Then a warp takes a gt: it keeps the largest IoUs, which tell how many anchors
// the gt picks, and the anchors of least cost. Last, a thread takes an anchor: one that several gts
// picked looks for the gt of least cost. Nothing depends on the order of the threads.
//
// For 8 images of 20k anchors with 100 gts and 80 classes the scores are 51 MB, 16 us. A warp of a
// gt reads all class sums and candidates' boxes twice, from the L2 cache: 800 x 0.8 MB, some 150
// us. Memory: O(anchors). 3 launches and 1 memset, no host sync.
#include <limits>

#include "../device/packs.cuh"
#include "simota_rule.h"
#include "tensors.h"
#include "warp_picks.cuh"

namespace fastdet::cuda {

namespace {

template <typename T>
struct SimotaArguments {
  using S = Sum<T>;

  const T* scores;      // (B, A, C)
  const Box<S>* boxes;  // (B, A)
  const S* points;      // (A, 2)
  const S* strides;     // (A,)
  LabelledGts<S> gts;
  int64_t num_images, num_anchors;
  int64_t candidate_topk;
  SimotaRule<S> rule;
  S* sums;         // (B, A), NaN for an anchor that is no candidate
  int* num_picks;  // (B, A), 0 at first
  int64_t* index;  // (B, A)
  S* iou;          // (B, A)

  __device__ SimotaGt<S> gt(int64_t row) const {
    return SimotaGt<S>::of(load_box(gts.boxes + row));
  }

  // Whether the anchor is in the gt and near its centre.
  __device__ bool is_central(int64_t anchor, const SimotaGt<S>& gt) const {
    const Pack<S, 2> point = load_pack<2>(points + 2 * anchor);
    return gt.contains(point[0], point[1]) &&
           gt.is_centred_at(point[0], point[1], rule.radius * strides[anchor]);
  }

  // i counts the anchors of all images.
  __device__ S overlap(int64_t i, const Box<S>& gt) const {
    const Box<S> box = load_box(boxes + i);
    return fastdet::iou(box, area(box), gt, area(gt));
  }

  __device__ S cost(int64_t i, int64_t row, const Box<S>& gt) const {
    const S score = static_cast<S>(scores[i * gts.num_classes + gts.labels[row]]);
    return simota_cost(sums[i], score, overlap(i, gt), rule);
  }
};

// ---- candidates ---------------------------------------------------------------------------------

// The sum over the n scores of an anchor, by the kClassLanes lanes of half a warp, in the lowest of
// them. All lanes of a warp call it; without scores the result is of no use.
template <typename T>
__device__ Sum<T> sum_classes(const T* scores, int64_t n) {
  double product = 1;
  int64_t exponent = 0;
  int ones = 0, steps = 0;
  bool bad = false;
  for (int64_t c = lane() % kClassLanes; scores && c < n; c += kClassLanes) {
    const double p = static_cast<double>(static_cast<Sum<T>>(scores[c]));
    product *= class_factor(p);
    ones += p == 1;
    if (++steps % kClassSteps != 0) continue;
    bad |= product != product;
    exponent += take_exponent(product);
  }
  bad |= product != product;
  exponent += take_exponent(product);
  for (int d = kClassLanes / 2; d > 0; d /= 2) {
    product *= __shfl_xor_sync(kAllLanes, product, d);
    exponent += __shfl_xor_sync(kAllLanes, exponent, d);
    ones += __shfl_xor_sync(kAllLanes, ones, d);
  }
  const unsigned half = 0xffffu << (lane() / kClassLanes * kClassLanes);
  if (__ballot_sync(kAllLanes, bad) & half) return std::numeric_limits<Sum<T>>::quiet_NaN();
  return class_sum<Sum<T>>(product, exponent, ones);
}

// Whether a gt covers the lane's anchor. All lanes of a warp call it.
template <typename T>
__device__ bool is_covered(const SimotaArguments<T>& in, int64_t image, int64_t anchor,
                           bool usable) {
  using S = Sum<T>;
  S x = S(0), y = S(0), reach = S(0);
  if (usable) {
    const Pack<S, 2> point = load_pack<2>(in.points + 2 * anchor);
    x = point[0], y = point[1];
    reach = in.rule.radius * in.strides[anchor];
  }
  bool covered = false;
  for (int64_t g = 0; g < in.gts.num_gts; ++g) {
    const int64_t row = image * in.gts.num_gts + g;
    if (in.gts.takes_part(row)) {
      const SimotaGt<S> gt = in.gt(row);
      covered |= gt.contains(x, y) || gt.is_centred_at(x, y, reach);
    }
    if (__all_sync(kAllLanes, covered || !usable)) break;
  }
  return covered && usable;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) simota_candidates_kernel(SimotaArguments<T> in) {
  using S = Sum<T>;
  const int64_t warps = (in.num_anchors + kWarp - 1) / kWarp;  // of an image
  const int64_t own = int64_t(blockIdx.x) * (kThreads / kWarp) + warp();
  if (own >= warps * in.num_images) return;
  const int64_t image = own / warps, anchor = own % warps * kWarp + lane();
  const int64_t i = image * in.num_anchors + anchor;
  const bool exists = anchor < in.num_anchors;
  const bool usable = exists && is_finite(in.points[2 * anchor]) &&
                      is_finite(in.points[2 * anchor + 1]) && is_finite(in.strides[anchor]) &&
                      is_finite(load_box(in.boxes + i));
  unsigned left = __ballot_sync(kAllLanes, is_covered(in, image, anchor, usable));
  if (exists && !(left >> lane() & 1)) in.sums[i] = std::numeric_limits<S>::quiet_NaN();
  while (left) {
    const int first = __ffs(left) - 1;
    left &= left - 1;
    const int second = left ? __ffs(left) - 1 : -1;
    left &= left - 1;
    const int chosen = lane() < kClassLanes ? first : second;
    const int64_t row = i - lane() + chosen;
    const S sum = sum_classes(chosen < 0 ? nullptr : in.scores + row * in.gts.num_classes,
                              in.gts.num_classes);
    if (chosen >= 0 && lane() % kClassLanes == 0) in.sums[row] = sum;
  }
}

// ---- picks --------------------------------------------------------------------------------------

// Offers the candidates that `is_offered` names, with the values of `value_of`. All lanes of a warp
// call it; both functions take the number of the anchor.
template <typename T, typename IsOffered, typename ValueOf>
__device__ void offer_candidates(const SimotaArguments<T>& in, int64_t image,
                                 WarpPicks<Sum<T>>& picks, const IsOffered& is_offered,
                                 const ValueOf& value_of) {
  const int64_t first = image * in.num_anchors;
  for (int64_t begin = 0; begin < in.num_anchors; begin += kWarp) {
    const int64_t anchor = begin + lane();
    bool offered = false;
    if (anchor < in.num_anchors) {
      const Sum<T> sum = in.sums[first + anchor];
      offered = sum == sum && is_offered(anchor);
    }
    if (!__any_sync(kAllLanes, offered)) continue;
    const Sum<T> value = offered ? value_of(anchor) : Sum<T>(0);
    picks.offer(offered, value, static_cast<int>(anchor));
  }
  picks.sort();
}

template <typename T>
__device__ void claim(const SimotaArguments<T>& in, int64_t row, const WarpPicks<Sum<T>>& picks) {
  for (int k = lane(); k < picks.size(); k += kWarp) {
    const int64_t i = row / in.gts.num_gts * in.num_anchors + picks.anchor(k);
    atomicAdd(&in.num_picks[i], 1);
    in.index[i] = row % in.gts.num_gts;  // of several writers one is right for the next launch
  }
  __syncwarp();  // the next picks overwrite these
}

template <typename T>
__global__ void __launch_bounds__(kPickWarps* kWarp) simota_pick_kernel(SimotaArguments<T> in) {
  using S = Sum<T>;
  __shared__ PickStore<S> stores[kPickWarps];
  const int64_t row = int64_t(blockIdx.x) * kPickWarps + warp();
  if (row >= in.num_images * in.gts.num_gts || !in.gts.takes_part(row)) return;
  const int64_t image = row / in.gts.num_gts, first = image * in.num_anchors;
  PickStore<S>& store = stores[warp()];
  const SimotaGt<S> gt = in.gt(row);
  WarpPicks<S> largest(store, in.candidate_topk, S(0));
  offer_candidates(
      in, image, largest, [](int64_t) { return true; },
      [&](int64_t anchor) { return in.overlap(first + anchor, gt.box); });
  const int64_t wanted = simota_picks(store.value, largest.size());
  __syncwarp();  // the next picks overwrite these
  const auto value_of = [&](int64_t anchor) { return -in.cost(first + anchor, row, gt.box); };
  WarpPicks<S> central(store, wanted, -std::numeric_limits<S>::infinity());
  offer_candidates(
      in, image, central, [&](int64_t anchor) { return in.is_central(anchor, gt); }, value_of);
  claim(in, row, central);
  if (central.size() == wanted) return;
  // Too few in the gt and near its centre: the other candidates of the image come next.
  WarpPicks<S> others(store, wanted - central.size(), -std::numeric_limits<S>::infinity());
  offer_candidates(
      in, image, others, [&](int64_t anchor) { return !in.is_central(anchor, gt); }, value_of);
  claim(in, row, others);
}

// ---- anchors ------------------------------------------------------------------------------------

// The gt of least cost for an anchor (of equal ones the lowest row) among those in which it is
// central, or among all; -1 if there is none.
template <typename T>
__device__ int64_t cheapest_gt(const SimotaArguments<T>& in, int64_t i, bool central) {
  using S = Sum<T>;
  int64_t best = -1;
  S least = std::numeric_limits<S>::infinity();
  for (int64_t g = 0; g < in.gts.num_gts; ++g) {
    const int64_t row = i / in.num_anchors * in.gts.num_gts + g;
    if (!in.gts.takes_part(row)) continue;
    const SimotaGt<S> gt = in.gt(row);
    if (central && !in.is_central(i % in.num_anchors, gt)) continue;
    const S cost = in.cost(i, row, gt.box);
    if (cost < least) least = cost, best = g;
  }
  return best;
}

template <typename T>
__device__ void settle(const SimotaArguments<T>& in, int64_t i) {
  const int num_picks = in.num_picks[i];
  int64_t g = num_picks > 0 ? in.index[i] : -1;
  if (num_picks > 1) {
    g = cheapest_gt(in, i, true);
    if (g < 0) g = cheapest_gt(in, i, false);
  }
  in.index[i] = g;
  const int64_t row = i / in.num_anchors * in.gts.num_gts + g;
  in.iou[i] = g < 0 ? Sum<T>(0) : in.overlap(i, load_box(in.gts.boxes + row));
}

template <typename T>
void assign(const SimotaArguments<T>& in, cudaStream_t stream) {
  const int64_t warps = (in.num_anchors + kWarp - 1) / kWarp * in.num_images;
  constexpr int64_t kWarps = kThreads / kWarp;  // of a block
  launch(simota_candidates_kernel<T>, dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps)),
         dim3(kThreads), 0, stream, in);
  const int64_t num_blocks = (in.num_images * in.gts.num_gts + kPickWarps - 1) / kPickWarps;
  launch(simota_pick_kernel<T>, dim3(static_cast<unsigned>(num_blocks)), dim3(kPickWarps * kWarp),
         0, stream, in);
  for_each(in.num_images * in.num_anchors, stream, [=] __device__(int64_t i) { settle(in, i); });
}

}  // namespace

std::tuple<Tensor, Tensor> assign_simota(const Tensor& scores, const Tensor& boxes,
                                         const Tensor& points, const Tensor& strides,
                                         const Tensor& gt_labels, const Tensor& gt_boxes,
                                         const Tensor& gt_counts, double center_radius,
                                         int64_t candidate_topk, double cls_weight,
                                         double iou_weight) {
  check_assign_simota(scores, boxes, points, strides, gt_labels, gt_boxes, gt_counts, center_radius,
                      candidate_topk, cls_weight, iou_weight);
  const DeviceGuard guard(scores.get_device_index());
  PredictionTensors tensors(prediction_dtype(scores, {boxes, points, strides, gt_boxes}), scores,
                            boxes, points, gt_labels, gt_boxes, gt_counts);
  tensors.boxes = aligned(tensors.boxes);
  tensors.points = aligned(tensors.points);
  tensors.gt_boxes = aligned(tensors.gt_boxes);
  const Tensor scores_in = torch::stable::contiguous(cast(scores, tensors.dtype));
  const Tensor strides_in = box_input(strides, tensors.maths);
  const Tensor sums = empty_like(tensors.index, tensors.maths);
  const Tensor num_picks =
      zeros(scores, {tensors.num_images, tensors.num_anchors}, ScalarType::Int);
  dispatch_floating(tensors.dtype, [&]<typename T>() {
    using S = Sum<T>;
    const SimotaArguments<T> arguments = {
        data<T>(scores_in),
        data<Box<S>>(tensors.boxes),
        data<S>(tensors.points),
        data<S>(strides_in),
        tensors.gts<S>(),
        tensors.num_images,
        tensors.num_anchors,
        candidate_topk,
        {static_cast<S>(center_radius), static_cast<S>(cls_weight), static_cast<S>(iou_weight)},
        mutable_data<S>(sums),
        mutable_data<int>(num_picks),
        mutable_data<int64_t>(tensors.index),
        mutable_data<S>(tensors.metric)};
    assign(arguments, current_stream(scores));
  });
  return {tensors.index, tensors.metric};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("assign_simota", TORCH_BOX(&assign_simota)); }

}  // namespace fastdet::cuda
