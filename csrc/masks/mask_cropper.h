// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of one mask, with an adaptive grid. Rows and columns are lists of taps. So each byte of
// the mask under the box is read once or twice, and no mask is converted to floats.
#pragma once

#include <algorithm>
#include <vector>

#include "../geometry/bilinear.h"
#include "../roi_align/tap_list.h"
#include "crop_masks.loops.h"
#include "mask_batch.h"

namespace fastdet::cpu {

// For one thread. Its memory is reused from box to box.
template <typename S>
class MaskCropper {
 public:
  MaskCropper(const MaskBatch& masks, int64_t height, int64_t width)
      : masks_(masks), height_(height), width_(width) {}

  // out (height, width) = the fraction of each bin that the mask covers; 0 if the mask does not
  // exist or the box is not finite.
  void crop(int64_t image, int64_t match, const Box<S>& box, S* out) {
    RoiAxis<double> y = axis(box.y1, box.y2, height_), x = axis(box.x1, box.x2, width_);
    if (!masks_.has(match) || y.samples == 0 || x.samples == 0) {
      std::fill_n(out, height_ * width_, S(0));
      return;
    }
    row_list_.build(y, height_, masks_.height);
    column_list_.build(x, width_, masks_.width);
    const Taps<S> rows = row_list_.taps(masks_.height), columns = column_list_.taps(masks_.width);
    merged_.resize(std::max<size_t>(merged_.size(), kMergedRows * merged_stride(columns.span)));
    current_loops<CropLoops<S>>().crop_mask(masks_.mask(image, match), masks_.row_stride, rows,
                                            columns, out, merged_.data());
  }

 private:
  static RoiAxis<double> axis(S low, S high, int64_t bins) {
    return roi_axis_in_float64(low, high, S(1), false, bins, 0);
  }

  MaskBatch masks_;
  int64_t height_, width_;
  TapList<S> row_list_, column_list_;
  std::vector<S> merged_;
};

}  // namespace fastdet::cpu
