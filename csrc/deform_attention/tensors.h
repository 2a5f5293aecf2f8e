// SPDX-License-Identifier: BSD-3-Clause
// Deformable attention's tensors as the kernels read them: contiguous, locations and weights in the
// type of sums.
#pragma once

#include <vector>

#include "../torch.h"

namespace fastdet {

struct AttentionTensors {
  Tensor value, locations, weights;
  int64_t images, queries, heads, channels, pixels, points;

  AttentionTensors(const Tensor& value, const Tensor& locations, const Tensor& weights)
      : value(torch::stable::contiguous(value)),
        locations(box_input(locations, box_dtype(value))),
        weights(box_input(weights, box_dtype(value))),
        images(value.size(0)),
        queries(locations.size(1)),
        heads(value.size(2)),
        channels(value.size(3)),
        pixels(value.size(1)),
        points(locations.size(3) * locations.size(4)) {}  // of a head

  // Of (B, Q, H).
  int64_t rows() const { return images * queries * heads; }
};

}  // namespace fastdet
