// SPDX-License-Identifier: BSD-3-Clause
// The detections of a box head. It computes the softmax of each RoI's logits, decodes and clips the
// boxes of the classes above the threshold, and suppresses by class (candidates.cu).
//
// Two launches find the candidates, with one half-warp for each RoI. The first counts the classes
// that pass in each block. The second computes the softmax again, which costs less than storing it,
// and writes the candidates densely, by RoI and then by class. So the suppression sorts only the
// classes that passed, and the order of the RoIs decides ties. The partial sums and their order are
// those of the CPU (softmax.loops.cpp), so that both round in the same way. The lower bound of the
// traffic is to read all logits once, 1 MB for 2000 RoIs of 91 classes; the second launch finds
// them in the L2 cache. Memory: room for as many candidates as can be above the threshold at once,
// 1 / threshold for each RoI.
#include "../device/block_sum.cuh"
#include "../device/packs.cuh"
#include "../geometry/box_coding.h"
#include "../geometry/numbers.h"
#include "candidates.cuh"
#include "contract.h"

namespace fastdet::cuda {

namespace {

// The number of lanes for one RoI: the number of partial sums in the CPU's softmax.
constexpr int kRoiLanes = 16, kRoisPerBlock = kThreads / kRoiLanes;

// K RoIs in each image: logits (B, K, C), deltas (B, K, C, 4), boxes (B, K, 4). Class 0 is
// background.
template <typename T>
struct RoiHead {
  using S = Sum<T>;

  const T *logits, *deltas;
  const Box<S>* proposals;
  const int64_t* counts;  // (B,) or null; RoIs from an image's count on are not read
  const int64_t* sizes;   // (B, 2)
  int64_t num_images, num_rois, num_classes;
  int64_t num_blocks;  // of an image
  Deltas<S> weights;
  S score_threshold, min_size;
  int* block_counts;  // (B, num_blocks): the number of candidates
};

// The RoI of a half-warp. All lanes of a warp construct one, because all take part in the shuffles.
template <typename T>
struct RoiSoftmax {
  using S = Sum<T>;

  int64_t image, roi;  // `roi` counts over all images
  int first_class;     // the lane takes this class and every kRoiLanes-th after it
  bool exists;
  S largest, total;

  __device__ RoiSoftmax(const RoiHead<T>& in) : image(blockIdx.x / in.num_blocks) {
    const int64_t first = blockIdx.x % in.num_blocks * kRoisPerBlock;
    const int64_t of_image = first + threadIdx.x / kRoiLanes;
    const int64_t count = in.counts ? min_of(in.counts[image], in.num_rois) : in.num_rois;
    roi = image * in.num_rois + of_image;
    first_class = threadIdx.x % kRoiLanes;
    exists = of_image < count;
    find_largest(in);
    add_up(in);
  }

  __device__ S logit(const RoiHead<T>& in, int64_t c) const {
    return static_cast<S>(in.logits[roi * in.num_classes + c]);
  }

  // False if the RoI does not exist, the class is background, or the score is NaN.
  __device__ bool passes(const RoiHead<T>& in, int64_t c, S& score) const {
    if (!exists || c == 0 || c >= in.num_classes) return false;
    score = exp_of(logit(in, c) - largest) / total;
    return score > in.score_threshold;
  }

 private:
  __device__ void find_largest(const RoiHead<T>& in) {
    largest = -std::numeric_limits<S>::infinity();
    for (int64_t c = first_class; exists && c < in.num_classes; c += kRoiLanes)
      largest = max_of(logit(in, c), largest);  // a NaN is never larger
    for (int distance = kRoiLanes / 2; distance > 0; distance /= 2)
      largest = max_of(__shfl_xor_sync(kAllLanes, largest, distance), largest);
  }

  __device__ void add_up(const RoiHead<T>& in) {
    total = 0;
    for (int64_t c = first_class; exists && c < in.num_classes; c += kRoiLanes)
      total += exp_of(logit(in, c) - largest);
    for (int half = kRoiLanes / 2; half > 0; half /= 2)
      total += __shfl_xor_sync(kAllLanes, total, half);
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) count_kernel(RoiHead<T> in) {
  const RoiSoftmax<T> roi(in);
  Sum<T> score;
  int passing = 0;
  for (int64_t c = roi.first_class; c < in.num_classes; c += kRoiLanes)
    passing += roi.passes(in, c, score);
  const int total = block_sum(passing).total;
  if (threadIdx.x == 0) in.block_counts[blockIdx.x] = total;
}

template <typename T>
__device__ void write_candidate(const RoiHead<T>& in, const RoiSoftmax<T>& roi, int64_t label,
                                Sum<T> score, const CandidateRows<Sum<T>>& out, int64_t row) {
  using S = Sum<T>;
  const T* d = in.deltas + 4 * (roi.roi * in.num_classes + label);
  const Deltas<S> deltas = {S(d[0]), S(d[1]), S(d[2]), S(d[3])};
  const S height = S(in.sizes[2 * roi.image]), width = S(in.sizes[2 * roi.image + 1]);
  const Box<S> box = clip(decode(deltas, in.proposals[roi.roi], in.weights), width, height);
  const int64_t at = roi.image * out.rows + row;
  store_box(out.boxes + at, box);
  out.ranks[at] = has_sides(box, in.min_size) ? score : std::numeric_limits<S>::quiet_NaN();
  out.labels[at] = label;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) write_kernel(RoiHead<T> in, CandidateRows<Sum<T>> out) {
  const RoiSoftmax<T> roi(in);
  const int64_t own_block = blockIdx.x % in.num_blocks;
  int64_t before = 0;
  for (int64_t b = threadIdx.x; b < own_block; b += kThreads)
    before += in.block_counts[blockIdx.x - own_block + b];
  before = block_sum(before).total;
  if (own_block == in.num_blocks - 1 && threadIdx.x == 0)
    out.counts[roi.image] = before + in.block_counts[blockIdx.x];

  Sum<T> score;
  int passing = 0;
  for (int64_t c = roi.first_class; c < in.num_classes; c += kRoiLanes)
    passing += roi.passes(in, c, score);
  // The half-warp's first row. Then the classes follow in order, one for each lane.
  const int half = threadIdx.x % kWarp / kRoiLanes * kRoiLanes;
  int64_t row = before + __shfl_sync(kAllLanes, block_sum(passing).before, half);
  for (int64_t c = roi.first_class; c - roi.first_class < in.num_classes; c += kRoiLanes) {
    const bool passes = roi.passes(in, c, score);
    const unsigned lanes = __ballot_sync(kAllLanes, passes) >> half & ((1u << kRoiLanes) - 1);
    const int64_t own = row + __popc(lanes & ((1u << roi.first_class) - 1));
    if (passes) write_candidate(in, roi, c, score, out, own);
    row += __popc(lanes);
  }
}

// The largest number of classes of a RoI that can be above the threshold: their scores sum to 1, up
// to rounding.
template <typename S>
int64_t most_passing(S score_threshold, int64_t num_classes) {
  const double sum = 1 + (num_classes + 2) * 0x1p-22;
  const double most = sum / score_threshold;
  return most > 0 && most < num_classes - 1 ? static_cast<int64_t>(most) : num_classes - 1;
}

template <typename T>
CandidateTensors candidates(const Tensor& logits, const Tensor& deltas, const Tensor& proposals,
                            const std::optional<Tensor>& counts, const Tensor& sizes,
                            const Deltas<double>& weights, double score_threshold,
                            double min_size) {
  using S = Sum<T>;
  const int64_t num_images = logits.size(0), num_rois = logits.size(1),
                num_classes = logits.size(2);
  const int64_t num_blocks = std::max<int64_t>((num_rois + kRoisPerBlock - 1) / kRoisPerBlock, 1);
  const Tensor block_counts = empty(logits, {num_images, num_blocks}, ScalarType::Int);
  const CandidateTensors out(logits,
                             num_rois * most_passing(static_cast<S>(score_threshold), num_classes));
  const RoiHead<T> head = {data<T>(logits),
                           data<T>(deltas),
                           data<Box<S>>(proposals),
                           counts ? data<int64_t>(*counts) : nullptr,
                           data<int64_t>(sizes),
                           num_images,
                           num_rois,
                           num_classes,
                           num_blocks,
                           {S(weights.dx), S(weights.dy), S(weights.dw), S(weights.dh)},
                           static_cast<S>(score_threshold),
                           static_cast<S>(min_size),
                           mutable_data<int>(block_counts)};
  const cudaStream_t stream = current_stream(logits);
  const dim3 grid(static_cast<unsigned>(num_images * num_blocks));
  launch(count_kernel<T>, grid, dim3(kThreads), 0, stream, head);
  launch(write_kernel<T>, grid, dim3(kThreads), 0, stream, head, out.template rows<S>());
  return out;
}

}  // namespace

DetectionTensors roi_detections(const Tensor& logits, const Tensor& deltas, const Tensor& proposals,
                                const std::optional<Tensor>& counts, const Tensor& sizes, double wx,
                                double wy, double ww, double wh, double score_threshold,
                                double iou_threshold, int64_t detections_per_img, double min_size) {
  check_roi_detections(logits, deltas, proposals, counts, sizes, detections_per_img);
  const DeviceGuard guard(logits.get_device_index());
  const CandidateTensors all = dispatch_floating(logits.scalar_type(), [&]<typename T>() {
    return candidates<T>(torch::stable::contiguous(logits), torch::stable::contiguous(deltas),
                         box_input(proposals, box_dtype(logits)), contiguous(counts),
                         torch::stable::contiguous(sizes), {wx, wy, ww, wh}, score_threshold,
                         min_size);
  });
  return keep_detections(all, Rank::kScore, iou_threshold, detections_per_img);
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("roi_detections", TORCH_BOX(&roi_detections));
}

}  // namespace fastdet::cuda
