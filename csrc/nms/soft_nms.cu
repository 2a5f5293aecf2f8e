// SPDX-License-Identifier: BSD-3-Clause
// Soft-NMS for torch tensors on the GPU. Each pick depends on the one before, so one block runs all
// steps in 1 launch: its threads lower the scores of their boxes by the last pick, and find the
// next one by a reduction with one barrier. The cost is picks * (n / 1024 boxes of a thread, and
// about 1 us). No host sync. Memory: the scores that are left.
#include "../device/packs.cuh"
#include "../device/warp.cuh"
#include "contract.h"

namespace fastdet::cuda {

namespace {

constexpr int kPickThreads = 1024;
static_assert(kPickThreads == kWarp * kWarp);

template <typename T>
struct SoftNmsArrays {
  const Box<T>* boxes;    // (N,)
  const T* scores;        // (N,)
  const int64_t* labels;  // (N,) or null
  int64_t n;
  T* left;         // (N,) the scores, -1 for a removed or picked box
  int64_t* keep;   // (N,)
  T* kept_scores;  // (N,)
  int64_t* count;
};

// A box with its score; score -1 stands for none.
template <typename T>
struct Pick {
  T score;
  int64_t row;

  __device__ bool before(const Pick& other) const {
    return score > other.score || (score == other.score && row < other.row);
  }
};

template <typename T>
__device__ Pick<T> best_of_warp(Pick<T> pick) {
  for (int d = kWarp / 2; d > 0; d /= 2) {
    const Pick<T> other = {__shfl_xor_sync(kAllLanes, pick.score, d),
                           __shfl_xor_sync(kAllLanes, pick.row, d)};
    if (other.before(pick)) pick = other;
  }
  return pick;
}

// The best pick of the block. `of_warps` must not be in use by the call before.
template <typename T>
__device__ Pick<T> best_of_block(Pick<T> pick, Pick<T> (&of_warps)[kWarp]) {
  pick = best_of_warp(pick);
  if (lane() == 0) of_warps[warp()] = pick;
  __syncthreads();
  return best_of_warp(of_warps[lane()]);
}

template <typename T>
__global__ void __launch_bounds__(kPickThreads, 1)
    soft_nms_kernel(SoftNmsArrays<T> in, SoftNmsRule<T> rule) {
  __shared__ Pick<T> of_warps[2][kWarp];
  const Pick<T> none = {T(-1), INT64_MAX};
  Pick<T> own = none;
  for (int64_t i = threadIdx.x; i < in.n; i += kPickThreads) {
    const Pick<T> pick = {rule.first(in.scores[i], load_box(in.boxes + i)), i};
    in.left[i] = pick.score;
    if (pick.before(own)) own = pick;
  }
  int64_t num_kept = 0;
  for (;; ++num_kept) {
    const Pick<T> pick = best_of_block(own, of_warps[num_kept % 2]);
    if (pick.score < T(0)) break;
    if (threadIdx.x == 0) in.keep[num_kept] = pick.row, in.kept_scores[num_kept] = pick.score;
    const Box<T> box = load_box(in.boxes + pick.row);
    const T box_area = area(box);
    const int64_t label = in.labels ? in.labels[pick.row] : 0;
    own = none;
    for (int64_t i = threadIdx.x; i < in.n; i += kPickThreads) {
      T left = i == pick.row ? T(-1) : in.left[i];
      if (left >= T(0) && (!in.labels || in.labels[i] == label)) {
        const Box<T> other = load_box(in.boxes + i);
        const T overlap = iou(box, box_area, other, area(other));
        left =
            rule.left(left, rule.method == SoftNmsMethod::kGaussian ? rule.gaussian_weight(overlap)
                                                                    : rule.linear_weight(overlap));
      }
      in.left[i] = left;
      const Pick<T> next = {left, i};
      if (next.before(own)) own = next;
    }
  }
  for (int64_t k = num_kept + threadIdx.x; k < in.n; k += kPickThreads)
    in.keep[k] = -1, in.kept_scores[k] = T(0);
  if (threadIdx.x == 0) *in.count = num_kept;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> soft_nms(const Tensor& boxes, const Tensor& scores,
                                            const std::optional<Tensor>& labels,
                                            double iou_threshold, double sigma,
                                            double score_threshold, const std::string& method) {
  check_labelled("soft_nms", boxes, scores, labels);
  const SoftNmsMethod own_method = parse_soft_nms_method(method);
  const DeviceGuard guard(boxes.get_device_index());
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = aligned(box_input(boxes, dtype)), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> labels_in = contiguous(labels);
  const int64_t n = boxes.size(0);
  const Tensor keep = empty(boxes, {n}, kInt64), kept_scores = empty(boxes, {n}, dtype);
  const Tensor count = empty(boxes, {}, kInt64), left = empty(boxes, {n}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    const SoftNmsArrays<T> in = {data<Box<T>>(boxes_in),
                                 data<T>(scores_in),
                                 labels_in ? data<int64_t>(*labels_in) : nullptr,
                                 n,
                                 mutable_data<T>(left),
                                 mutable_data<int64_t>(keep),
                                 mutable_data<T>(kept_scores),
                                 mutable_data<int64_t>(count)};
    launch(soft_nms_kernel<T>, dim3(1), dim3(kPickThreads), 0, current_stream(boxes), in,
           soft_nms_rule<T>(own_method, iou_threshold, sigma, score_threshold));
  });
  return {keep, kept_scores, count};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("soft_nms", TORCH_BOX(&soft_nms)); }

}  // namespace fastdet::cuda
