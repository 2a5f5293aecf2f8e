// SPDX-License-Identifier: BSD-3-Clause
// The tensors of rpn_proposals and retinanet_detections as both backends read them. A level's rows
// must be dense, as those of a channels_last map are; another layout is copied.
#pragma once

#include <vector>

#include "../torch.h"

namespace fastdet {

// (B, A, ...) with dense rows; the images may lie apart.
inline Tensor dense_rows(const Tensor& level) {
  int64_t step = 1;
  bool dense = true;
  for (int64_t d = level.dim() - 1; d > 0; --d) {
    dense &= level.stride(d) == step || level.size(d) <= 1;
    step *= level.size(d);
  }
  return dense ? level : torch::stable::contiguous(level);
}

// checks.h has seen the arguments.
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
