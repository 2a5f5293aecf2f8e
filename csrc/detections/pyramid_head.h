// SPDX-License-Identifier: BSD-3-Clause
// The tensors of rpn_proposals and retinanet_detections as their driver reads them.
#pragma once

#include "pyramid_tensors.h"
#include "pyramid_detections.h"

namespace fastdet::cpu {

template <typename T>
PyramidHead<T> pyramid_head(const PyramidTensors& in) {
  PyramidHead<T> head = {{},
                         data<Box<Sum<T>>>(in.anchors),
                         data<int64_t>(in.sizes),
                         in.num_images(),
                         in.num_classes()};
  for (size_t l = 0; l < in.logits.size(); ++l)
    head.levels.push_back({data<T>(in.logits[l]), data<T>(in.deltas[l]), in.logits[l].size(1),
                           in.logits[l].stride(0), in.deltas[l].stride(0)});
  return head;
}

}  // namespace fastdet::cpu
