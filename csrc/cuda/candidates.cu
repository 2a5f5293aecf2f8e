// SPDX-License-Identifier: BSD-3-Clause
// Suppression of candidates by rank and label, and one more launch that copies the boxes kept.
#include "../threshold.h"
#include "candidates.cuh"
#include "greedy_nms.cuh"
#include "packs.cuh"

namespace fastdet::cuda {

namespace {

template <typename S>
void write_kept(const CandidateRows<S>& all, Rank rank, const Tensor& keep,
                const DetectionTensors& detections) {
  const DetectionRows<S> out = detection_rows<S>(detections);
  const int64_t* const index = data<int64_t>(keep);
  const int64_t rows = keep.size(1);
  for_each(keep.numel(), current_stream(keep), [=] __device__(int64_t i) {
    const bool kept = index[i] >= 0;
    const int64_t from = kept ? i / rows * all.rows + index[i] : 0;
    S score = 0;
    if (kept) score = rank == Rank::kLogit ? sigmoid(all.ranks[from]) : all.ranks[from];
    store_box(out.boxes + i, kept ? load_box(all.boxes + from) : Box<S>{});
    out.scores[i] = score;
    out.labels[i] = kept ? all.labels[from] : 0;
  });
}

}  // namespace

DetectionTensors keep_detections(const CandidateTensors& candidates, Rank rank, double nms_thresh,
                                 int64_t detections_per_img) {
  const DetectionTensors out = empty_detections(candidates.ranks, detections_per_img);
  const Tensor& counts = std::get<3>(out);
  const Tensor keep = empty(counts, {counts.size(0), detections_per_img}, kInt64);
  dispatch_box(candidates.boxes.scalar_type(), [&]<typename S>() {
    greedy_nms<S>(candidates.boxes, candidates.ranks, nms_thresh, detections_per_img,
                  candidates.labels, candidates.counts, keep, counts);
    write_kept<S>(candidates.rows<S>(), rank, keep, out);
  });
  return out;
}

}  // namespace fastdet::cuda
