// SPDX-License-Identifier: BSD-3-Clause
// Mask R-CNN's loss: for each matched box, binary cross entropy between the logits of its class and
// its mask. The mask is cropped as in crop_masks, into a buffer for one box. Forward stores only
// the derivative of these logits, 1 / C of all logits. Backward writes zeros and copies the
// derivative into them. Sums have one order, with any number of threads.
//
// The lower bound for the benchmark (1,024 boxes, 91 classes, 28 x 28) is that of crop_masks and 3
// MB of logits read; backward writes 292 MB.
#include <limits>
#include <vector>

#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "../tensors/feature_layout.h"
#include "contract.h"
#include "mask_cropper.h"
#include "mask_rcnn_loss.loops.h"
#include "tensors.h"

namespace fastdet::cpu {

namespace {

// Calls visit(i, pixel) for each pixel of a channel of box n, row by row.
template <typename T, typename Visit>
void for_each_pixel(const BoxChannels<T>& values, int64_t n, int64_t channel, const Visit& visit) {
  T* const first = &values.at(n, channel, 0, 0);
  const int64_t row_stride = values.stride[3], pixel_stride = values.stride[4];
  for (int64_t y = 0; y < values.height; ++y)
    for (int64_t x = 0; x < values.width; ++x)
      visit(y * values.width + x, first[y * row_stride + x * pixel_stride]);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> mask_rcnn_loss(const Tensor& logits, const Tensor& labels,
                                                  const Tensor& masks, const Tensor& boxes,
                                                  const Tensor& match) {
  check_mask_rcnn_loss("mask_rcnn_loss", logits, labels, masks, boxes, match);
  const auto dtype = box_dtype(logits);
  const Tensor masks_in = readable_masks(masks), match_in = torch::stable::contiguous(match);
  const Tensor labels_in = torch::stable::contiguous(labels), boxes_in = box_input(boxes, dtype);
  const int64_t num_rows = match.numel(), height = logits.size(3), width = logits.size(4);
  const Tensor loss = empty(logits, {}, dtype), count = empty(logits, {}, kInt64);
  const Tensor residual =
      empty(logits, {logits.size(0), logits.size(1), height, width}, logits.scalar_type());
  dispatch_floating(logits.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto values = box_channels(data<T>(logits), logits);
    const MaskBatch batch = mask_batch(masks_in);
    const auto* box = reinterpret_cast<const Box<S>*>(data<S>(boxes_in));
    const int64_t *matches = data<int64_t>(match_in), *label = data<int64_t>(labels_in);
    const int64_t pixels = height * width;
    std::vector<S> sums(num_rows);
    parallel_for(num_rows, 8, [&](int64_t begin, int64_t end) {
      MaskCropper<S> cropper(batch, height, width);
      std::vector<S> targets(pixels), x(pixels), derivative(pixels);
      for (int64_t n = begin; n < end; ++n) {
        T* out = mutable_data<T>(residual) + n * pixels;
        const S of_all = values.has(label[n]) ? S(0) : std::numeric_limits<S>::quiet_NaN();
        std::fill(derivative.begin(), derivative.end(), batch.has(matches[n]) ? of_all : S(0));
        sums[n] = derivative[0];
        if (batch.has(matches[n]) && values.has(label[n])) {
          cropper.crop(n / values.rows_per_image, matches[n], box[n], targets.data());
          for_each_pixel(values, n, label[n], [&](int64_t i, T logit) { x[i] = S(logit); });
          sums[n] = current_loops<MaskLossLoops<S>>().mask_loss(x.data(), targets.data(), pixels,
                                                                derivative.data());
        }
        for (int64_t i = 0; i < pixels; ++i) out[i] = static_cast<T>(derivative[i]);
      }
    });
    double total = 0;
    int64_t matched = 0;
    for (int64_t n = 0; n < num_rows; ++n) {
      total += static_cast<double>(sums[n]);
      matched += batch.has(matches[n]);
    }
    *mutable_data<int64_t>(count) = matched;
    *mutable_data<S>(loss) = static_cast<S>(
        matched > 0 ? total / (static_cast<double>(matched) * static_cast<double>(pixels)) : 0.);
  });
  return {loss, residual, count};
}

Tensor mask_rcnn_loss_backward(const Tensor& grad, const Tensor& residual, const Tensor& labels,
                               const Tensor& count, int64_t channels, bool channels_last) {
  check_mask_rcnn_loss_backward("mask_rcnn_loss_backward", grad, residual, labels, count, channels);
  const Tensor residual_in = torch::stable::contiguous(residual);
  const Tensor labels_in = torch::stable::contiguous(labels);
  const int64_t pixels = residual.size(2) * residual.size(3), of_row = channels * pixels;
  const Tensor out =
      in_huge_pages(empty_pooled(residual, residual.size(0), residual.size(1), channels,
                                 residual.size(2), residual.size(3), channels_last));
  dispatch_floating(residual.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto values = box_channels(mutable_data<T>(out), out);
    const int64_t* label = data<int64_t>(labels_in);
    const S mean_of =
        static_cast<S>(std::max<int64_t>(1, *data<int64_t>(count))) * static_cast<S>(pixels);
    const S scale = *data<S>(grad) / mean_of;
    parallel_for(labels.numel(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* derivative = data<T>(residual_in) + n * pixels;
        // If the label is not a class, the derivatives are all 0, or all NaN.
        const T rest = values.has(label[n]) ? T(0) : derivative[0];
        std::fill_n(values.data + n * of_row, of_row, rest);
        if (!values.has(label[n])) continue;
        for_each_pixel(values, n, label[n], [&](int64_t i, T& value) {
          value = static_cast<T>(scale * static_cast<S>(derivative[i]));
        });
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("mask_rcnn_loss", TORCH_BOX(&mask_rcnn_loss));
  m.impl("mask_rcnn_loss_backward", TORCH_BOX(&mask_rcnn_loss_backward));
}

}  // namespace fastdet::cpu
