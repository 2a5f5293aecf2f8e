// SPDX-License-Identifier: BSD-3-Clause
// Suppresses candidates by rank and label. The last launch writes the kept boxes.
#include "../device/packs.cuh"
#include "../geometry/threshold.h"
#include "../nms/greedy_nms.cuh"
#include "candidates.cuh"

namespace fastdet::cuda {

namespace {

template <typename S>
struct WriteKept {
  CandidateRows<S> all;
  DetectionRows<S> out;
  Rank rank;
  int64_t rows;  // of an image's detections

  __device__ void operator()(int64_t image, int64_t k, int64_t row) const {
    const bool kept = row >= 0;
    const int64_t from = kept ? image * all.rows + row : 0, to = image * rows + k;
    S score = 0;
    if (kept) score = rank == Rank::kLogit ? sigmoid(all.ranks[from]) : all.ranks[from];
    store_box(out.boxes + to, kept ? load_box(all.boxes + from) : Box<S>{});
    out.scores[to] = score;
    out.labels[to] = kept ? all.labels[from] : 0;
  }
};

}  // namespace

DetectionTensors keep_detections(const CandidateTensors& candidates, Rank rank,
                                 double iou_threshold, int64_t detections_per_img) {
  const DetectionTensors out = empty_detections(candidates.ranks, detections_per_img);
  dispatch_box(candidates.boxes.scalar_type(), [&]<typename S>() {
    greedy_nms<S>(
        candidates.boxes, candidates.ranks, iou_threshold, detections_per_img, candidates.labels,
        candidates.counts, std::get<3>(out),
        WriteKept<S>{candidates.rows<S>(), detection_rows<S>(out), rank, detections_per_img});
  });
  return out;
}

}  // namespace fastdet::cuda
