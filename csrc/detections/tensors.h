// SPDX-License-Identifier: BSD-3-Clause
// The arguments and results of the detection operators as torch tensors, the same for both
// backends.
#pragma once

#include <tuple>
#include <vector>

#include "../torch.h"
#include "detection_rows.h"

namespace fastdet {

// ---- the results --------------------------------------------------------------------------------

// boxes (B, D, 4), scores (B, D), labels (B, D), counts (B,).
using DetectionTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline DetectionTensors empty_detections(const Tensor& logits, int64_t rows) {
  const int64_t num_images = logits.size(0);
  const auto dtype = box_dtype(logits);
  return {empty(logits, {num_images, rows, 4}, dtype), empty(logits, {num_images, rows}, dtype),
          empty(logits, {num_images, rows}, kInt64), empty(logits, {num_images}, kInt64)};
}

template <typename S>
DetectionRows<S> detection_rows(const DetectionTensors& out) {
  const auto& [boxes, scores, labels, counts] = out;
  return {mutable_data<Box<S>>(boxes), mutable_data<S>(scores), mutable_data<int64_t>(labels),
          mutable_data<int64_t>(counts)};
}

// ---- the arguments of rpn_proposals and retinanet_detections -----------------------------------

// (B, A, ...) with dense images; the images need not be adjacent.
inline Tensor dense_rows(const Tensor& level) {
  int64_t step = 1;
  bool dense = true;
  for (int64_t d = level.dim() - 1; d > 0; --d) {
    dense &= level.stride(d) == step || level.size(d) <= 1;
    step *= level.size(d);
  }
  return dense ? level : torch::stable::contiguous(level);
}

// The arguments have passed contract.h. A level whose images are not dense is copied; the images of
// a channels_last map are dense.
struct PyramidTensors {
  PyramidTensors(const std::vector<Tensor>& logits_in, const std::vector<Tensor>& deltas_in,
                 const Tensor& anchors_in, const Tensor& sizes_in)
      : dtype(logits_in[0].scalar_type()),
        anchors(box_input(anchors_in, box_dtype(logits_in[0]))),
        sizes(torch::stable::contiguous(sizes_in)) {
    for (size_t l = 0; l < logits_in.size(); ++l) {
      logits.push_back(dense_rows(logits_in[l]));
      deltas.push_back(dense_rows(deltas_in[l]));
    }
  }

  int64_t num_images() const { return logits[0].size(0); }
  int64_t num_classes() const { return logits[0].dim() == 3 ? logits[0].size(2) : 1; }

  ScalarType dtype;
  std::vector<Tensor> logits, deltas;
  Tensor anchors, sizes;
};

}  // namespace fastdet
