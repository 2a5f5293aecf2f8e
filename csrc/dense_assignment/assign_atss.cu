// SPDX-License-Identifier: BSD-3-Clause
// Adaptive training sample selection (ATSS) on the device, with the arithmetic of atss_rule.h. A
// warp takes a ground-truth box (gt): it measures the distance of every anchor, keeps the nearest
// of each level, and finds the positives among them. An anchor's largest IoU is an atomic maximum;
// then the lowest gt of that IoU, an atomic minimum. Neither depends on the order of the threads.
//
// For 8 images of 20k anchors and 100 gts a warp measures 625 vectors of anchors, about 15
// instructions each, and sorts some 20 times: 20,000 instructions, 16 million in all, some 20 us.
// Memory: O(anchors + gts * topk * levels). 2 launches and 2 memsets, no host sync.
#include <limits>

#include "../device/ordered_bits.cuh"
#include "../device/packs.cuh"
#include "atss_rule.h"
#include "contract.h"
#include "warp_picks.cuh"

namespace fastdet::cuda {

namespace {

template <typename S>
struct AtssArguments {
  using Bits = typename BitsOf<S>::type;

  const Box<S>* anchors;  // (A,)
  int64_t level_ends[kMaxAnchorLevels];
  int num_levels;
  const Box<S>* gt_boxes;    // (B, G)
  const int64_t* gt_counts;  // (B,)
  int64_t num_images, num_anchors, num_gts;
  int64_t topk;
  int* candidates;            // (B, G, slots); those that are not positive become -1
  S* candidate_iou;           // (B, G, slots)
  Bits* iou;                  // (B, A), the largest of each anchor; 0 at first
  unsigned long long* index;  // (B, A), -1 at first

  __device__ int64_t slots() const { return topk * num_levels; }
  __device__ bool takes_part(int64_t row) const {
    return row % num_gts < gt_counts[row / num_gts] && is_assignable(load_box(gt_boxes + row));
  }
};

// Writes the candidates of a gt. Returns how many. All lanes of a warp call it.
template <typename S>
__device__ int find_candidates(const AtssArguments<S>& in, const Point<S>& centre,
                               PickStore<S>& store, int* candidates) {
  int n = 0;
  for (int level = 0; level < in.num_levels; ++level) {
    WarpPicks<S> nearest(store, in.topk, -std::numeric_limits<S>::infinity());
    const int64_t end = in.level_ends[level];
    for (int64_t begin = level == 0 ? 0 : in.level_ends[level - 1]; begin < end; begin += kWarp) {
      const int64_t anchor = begin + lane();
      bool usable = anchor < end;
      S distance = S(0);
      if (usable) {
        const Box<S> box = load_box(in.anchors + anchor);
        usable = is_finite(box);
        distance = squared_distance(centre_of(box), centre);
      }
      nearest.offer(usable, -distance, static_cast<int>(anchor));
    }
    nearest.sort();
    for (int k = lane(); k < nearest.size(); k += kWarp) candidates[n + k] = nearest.anchor(k);
    n += nearest.size();
    __syncwarp();  // the next level overwrites the store
  }
  return n;
}

template <typename S>
__global__ void __launch_bounds__(kPickWarps* kWarp) atss_positives_kernel(AtssArguments<S> in) {
  __shared__ PickStore<S> stores[kPickWarps];
  const int64_t row = int64_t(blockIdx.x) * kPickWarps + warp();
  if (row >= in.num_images * in.num_gts) return;
  int* const candidates = in.candidates + row * in.slots();
  S* const candidate_iou = in.candidate_iou + row * in.slots();
  int n = 0;
  if (in.takes_part(row)) {
    const Box<S> gt = load_box(in.gt_boxes + row);
    n = find_candidates(in, centre_of(gt), stores[warp()], candidates);
    for (int k = lane(); k < n; k += kWarp) {
      const Box<S> anchor = load_box(in.anchors + candidates[k]);
      candidate_iou[k] = iou(anchor, area(anchor), gt, area(gt));
    }
    __syncwarp();
    const double threshold = atss_threshold(candidate_iou, n);
    for (int k = lane(); k < n; k += kWarp) {
      const int anchor = candidates[k];
      const S own = candidate_iou[k];
      if (is_atss_positive(own, threshold, load_box(in.anchors + anchor), gt))
        atomicMax(&in.iou[row / in.num_gts * in.num_anchors + anchor], BitsOf<S>::from(own));
      else
        candidates[k] = -1;
    }
  }
  for (int64_t k = n + lane(); k < in.slots(); k += kWarp) candidates[k] = -1;
}

template <typename S>
void assign(const AtssArguments<S>& in, int64_t num_rows, cudaStream_t stream) {
  const int64_t num_blocks = (num_rows + kPickWarps - 1) / kPickWarps;
  launch(atss_positives_kernel<S>, dim3(static_cast<unsigned>(num_blocks)),
         dim3(kPickWarps * kWarp), 0, stream, in);
  const int64_t slots = in.topk * in.num_levels;
  for_each(num_rows * slots, stream, [=] __device__(int64_t k) {
    const int anchor = in.candidates[k];
    if (anchor < 0) return;
    const int64_t row = k / slots, i = row / in.num_gts * in.num_anchors + anchor;
    if (in.iou[i] == BitsOf<S>::from(in.candidate_iou[k]))
      atomicMin(&in.index[i], static_cast<unsigned long long>(row % in.num_gts));
  });
}

}  // namespace

std::tuple<Tensor, Tensor> assign_atss(const Tensor& anchors,
                                       const std::vector<int64_t>& level_sizes,
                                       const Tensor& gt_boxes, const Tensor& gt_counts,
                                       int64_t topk) {
  check_assign_atss(anchors, level_sizes, gt_boxes, gt_counts, topk);
  const DeviceGuard guard(anchors.get_device_index());
  const ScalarType dtype = box_dtype(anchors, gt_boxes);
  const Tensor anchors_in = aligned(box_input(anchors, dtype));
  const Tensor gt_boxes_in = aligned(box_input(gt_boxes, dtype));
  const Tensor counts_in = torch::stable::contiguous(gt_counts);
  const int64_t num_images = gt_boxes.size(0), num_anchors = anchors.size(0);
  const int64_t num_rows = num_images * gt_boxes.size(1);
  const int64_t slots = topk * static_cast<int64_t>(level_sizes.size());
  const Tensor index = empty(anchors, {num_images, num_anchors}, kInt64);
  const Tensor iou = zeros(anchors, {num_images, num_anchors}, dtype);
  const cudaStream_t stream = current_stream(anchors);
  if (index.numel() > 0)
    STD_CUDA_CHECK(cudaMemsetAsync(mutable_data<int64_t>(index), 0xff,
                                   index.numel() * sizeof(int64_t), stream));
  const Tensor candidates = empty(anchors, {num_rows, slots}, ScalarType::Int);
  const Tensor candidate_iou = empty(anchors, {num_rows, slots}, dtype);
  dispatch_box(dtype, [&]<typename S>() {
    AtssArguments<S> arguments = {data<Box<S>>(anchors_in),
                                  {},
                                  static_cast<int>(level_sizes.size()),
                                  data<Box<S>>(gt_boxes_in),
                                  data<int64_t>(counts_in),
                                  num_images,
                                  num_anchors,
                                  gt_boxes.size(1),
                                  topk,
                                  mutable_data<int>(candidates),
                                  mutable_data<S>(candidate_iou),
                                  mutable_data<typename BitsOf<S>::type>(iou),
                                  mutable_data<unsigned long long>(index)};
    int64_t end = 0;
    for (size_t level = 0; level < level_sizes.size(); ++level)
      arguments.level_ends[level] = end += level_sizes[level];
    assign(arguments, num_rows, stream);
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("assign_atss", TORCH_BOX(&assign_atss)); }

}  // namespace fastdet::cuda
