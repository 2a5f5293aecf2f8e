// SPDX-License-Identifier: BSD-3-Clause
// The tensors of rpn_proposals and retinanet_detections as their drivers read and write them.
// A level's rows must be dense, as those of a channels_last map are; another layout is copied.
#pragma once

#include <utility>
#include <vector>

#include "../torch.h"
#include "detection_tensors.h"
#include "pyramid_detections.h"

namespace fastdet::cpu {

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

// What a PyramidHead points into.
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

  template <typename T>
  PyramidHead<T> head() const {
    const Tensor& first = logits[0];
    PyramidHead<T> head = {{},
                           data<Box<Sum<T>>>(anchors),
                           data<int64_t>(sizes),
                           first.size(0),
                           first.dim() == 3 ? first.size(2) : 1};
    for (size_t l = 0; l < logits.size(); ++l)
      head.levels.push_back({data<T>(logits[l]), data<T>(deltas[l]), logits[l].size(1),
                             logits[l].stride(0), deltas[l].stride(0)});
    return head;
  }

  ScalarType dtype;
  std::vector<Tensor> logits, deltas;
  Tensor anchors, sizes;
};

}  // namespace fastdet::cpu
