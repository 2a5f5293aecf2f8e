// SPDX-License-Identifier: BSD-3-Clause
// Crops the matched mask of each box to the box and averages it over a few bins.
//
// The lower bound for the benchmark (1,024 boxes of two images, 28 x 28 bins, 100 masks of 800 x
// 1216 in each image) is to read the bytes under the boxes once, about 30 KB each, and to write 3
// MB. For an average box of 170 x 170 pixels, merging the rows of the bins takes about 40,000
// multiply-adds, and the columns 28 x 28 x 8 more. Workspace: the taps of one box for each thread.
#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "contract.h"
#include "mask_cropper.h"
#include "tensors.h"

namespace fastdet::cpu {

Tensor crop_masks(const Tensor& masks, const Tensor& boxes, const Tensor& match, int64_t height,
                  int64_t width) {
  check_crop_masks("crop_masks", masks, boxes, match, height, width);
  const Tensor masks_in = readable_masks(masks), match_in = torch::stable::contiguous(match);
  const int64_t rows_per_image = boxes.size(1), bins = height * width;
  const Tensor out = in_huge_pages(
      empty(boxes, {boxes.size(0), rows_per_image, height, width}, boxes.scalar_type()));
  const Tensor boxes_in = box_input(boxes, box_dtype(boxes));
  dispatch_floating(boxes.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto* box = reinterpret_cast<const Box<S>*>(data<S>(boxes_in));
    const int64_t* matches = data<int64_t>(match_in);
    T* cropped = mutable_data<T>(out);
    parallel_for(match.numel(), 8, [&](int64_t begin, int64_t end) {
      MaskCropper<S> cropper(mask_batch(masks_in), height, width);
      std::vector<S> wide(bins);
      for (int64_t n = begin; n < end; ++n) {
        cropper.crop(n / rows_per_image, matches[n], box[n], wide.data());
        for (int64_t i = 0; i < bins; ++i) cropped[n * bins + i] = static_cast<T>(wide[i]);
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("crop_masks", TORCH_BOX(&crop_masks)); }

}  // namespace fastdet::cpu
