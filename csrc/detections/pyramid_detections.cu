// SPDX-License-Identifier: BSD-3-Clause
// From the maps of a dense head to the boxes that are kept, all levels of all images side by side:
// selection of the best logits of each level (top_logits.cuh), decoding of those alone, suppression
// of each image by falling logit, ties by level and index.
//
// Floor: the bytes of the logits, once. Launches for float32: a memset and 3 for the selection, 1
// that decodes, 4 of greedy_nms.cuh, whose last one writes: 9, for the half types 8; none of it
// waits for the host. Deltas and anchors are read of what is selected alone. Memory: the
// candidates, O(levels x k) an image.
#include "../geometry/box_coding.h"
#include "candidates.cuh"
#include "pyramid_detections.cuh"
#include "../selection/top_logits.cuh"

namespace fastdet::cuda {

namespace {

template <typename T>
struct LevelDeltas {
  const T* deltas;  // (B, A_l, 4)
  int64_t image_stride, first_anchor;
};

template <typename T>
struct PyramidHead {
  using S = RowMaths<T>;

  LogitSegments<T> logits;
  LevelDeltas<T> levels[kMaxLevels];
  const Box<S>* anchors;
  const int64_t* sizes;  // (B, 2)
  int64_t num_classes;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(PyramidHead<T> in, DetectionRule<RowMaths<T>> rule,
                  CandidateRows<RowMaths<T>> out) {
  using S = RowMaths<T>;
  const Run<T> run = in.logits.run(take_chunk(in.logits));
  if (run.chunk % in.logits.num_chunks == 0 && threadIdx.x == 0)
    out.counts[run.image] = in.logits.num_selected(run.image, in.logits.num_levels);
  const LevelDeltas<T>& level = in.levels[run.level];
  const S height = S(in.sizes[2 * run.image]), width = S(in.sizes[2 * run.image + 1]);
  for_each_selected(in.logits, run, [&](int64_t row, int64_t index, S logit) {
    const int64_t anchor = index / in.num_classes;
    const T* d = level.deltas + run.image * level.image_stride + 4 * anchor;
    const Deltas<S> deltas = {S(d[0]), S(d[1]), S(d[2]), S(d[3])};
    const Box<S> box =
        clip(decode(deltas, in.anchors[level.first_anchor + anchor], {S(1), S(1), S(1), S(1)}),
             width, height);
    const int64_t at = run.image * out.rows + row;
    store_box(out.boxes + at, box);
    out.ranks[at] = has_sides(box, rule.min_size) ? logit : std::numeric_limits<S>::quiet_NaN();
    out.labels[at] = rule.label(run.level, index % in.num_classes);
  });
}

template <typename T>
CandidateTensors best_boxes(const PyramidTensors& in, const DetectionRule<RowMaths<T>>& rule) {
  const cudaStream_t stream = current_stream(in.anchors);
  TopLogits<T> top(in.logits, rule.topk, rule.logit_bound);
  PyramidHead<T> head = {top.select(stream),
                         {},
                         data<Box<RowMaths<T>>>(in.anchors),
                         data<int64_t>(in.sizes),
                         in.num_classes()};
  int64_t num_anchors = 0;
  for (size_t l = 0; l < in.deltas.size(); ++l) {
    head.levels[l] = {data<T>(in.deltas[l]), in.deltas[l].stride(0), num_anchors};
    num_anchors += in.deltas[l].size(1);
  }
  const CandidateTensors out(in.logits[0], top.most_selected());
  launch(decode_kernel<T>, top.grid(), dim3(kThreads), 0, stream, head, rule,
         out.rows<RowMaths<T>>());
  return out;
}

}  // namespace

template <typename T>
DetectionTensors pyramid_detections(const PyramidTensors& in,
                                    const DetectionRule<RowMaths<T>>& rule) {
  return keep_detections(best_boxes<T>(in, rule), Rank::kLogit, rule.nms_thresh, rule.max_boxes);
}

template DetectionTensors pyramid_detections<float>(const PyramidTensors&,
                                                    const DetectionRule<float>&);
template DetectionTensors pyramid_detections<double>(const PyramidTensors&,
                                                     const DetectionRule<double>&);
template DetectionTensors pyramid_detections<Half>(const PyramidTensors&,
                                                   const DetectionRule<float>&);
template DetectionTensors pyramid_detections<BFloat16>(const PyramidTensors&,
                                                       const DetectionRule<float>&);

}  // namespace fastdet::cuda
