// SPDX-License-Identifier: BSD-3-Clause
// From the maps of a dense head to the boxes that are kept: what rpn_proposals and
// retinanet_detections share, which is all but the rule.
#pragma once

#include "detection_rule.h"
#include "detection_tensors.h"
#include "pyramid_tensors.h"
#include "../tensors/rows.h"

namespace fastdet::cuda {

// T: the type of the logits and deltas.
template <typename T>
DetectionTensors pyramid_detections(const PyramidTensors& in,
                                    const DetectionRule<RowMaths<T>>& rule);

}  // namespace fastdet::cuda
