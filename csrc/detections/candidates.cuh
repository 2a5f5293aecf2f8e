// SPDX-License-Identifier: BSD-3-Clause
// The last step of every detector: the candidates of a batch of images, and which of them are kept.
#pragma once

#include "../device/launch.cuh"
#include "tensors.h"

namespace fastdet::cuda {

// An image's candidates are its first counts[image] rows. A row whose rank is NaN does not count.
template <typename S>
struct CandidateRows {
  Box<S>* boxes;
  S* ranks;         // scores or logits; they give the order of the suppression
  int64_t* labels;  // boxes of different labels do not suppress each other
  int64_t* counts;
  int64_t rows;  // of an image
};

struct CandidateTensors {
  CandidateTensors(const Tensor& logits, int64_t rows)
      : boxes(empty(logits, {logits.size(0), rows, 4}, box_dtype(logits))),
        ranks(empty(logits, {logits.size(0), rows}, box_dtype(logits))),
        labels(empty(logits, {logits.size(0), rows}, kInt64)),
        counts(empty(logits, {logits.size(0)}, kInt64)) {}

  template <typename S>
  CandidateRows<S> rows() const {
    return {mutable_data<Box<S>>(boxes), mutable_data<S>(ranks), mutable_data<int64_t>(labels),
            mutable_data<int64_t>(counts), boxes.size(1)};
  }

  Tensor boxes, ranks, labels, counts;  // (B, N, 4), (B, N), (B, N), (B,)
};

enum class Rank { kScore, kLogit };

// The best candidates of each image that survive suppression; of equal ranks the first ones.
DetectionTensors keep_detections(const CandidateTensors& candidates, Rank rank,
                                 double iou_threshold, int64_t detections_per_img);

}  // namespace fastdet::cuda
