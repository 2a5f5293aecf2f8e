// SPDX-License-Identifier: BSD-3-Clause
// Mask R-CNN's loss. One block for each matched box crops its mask bin by bin, compares it with the
// logits of the box's class, stores the derivative of those logits and sums the losses. One more
// block sums the losses of the boxes, in a fixed order, and counts the matched boxes. Backward
// clears the gradient and writes one channel of each box into it. Forward takes two launches,
// backward a memset and one launch. No atomics, no wait for the host.
//
// Estimated, not measured, for 1,024 boxes, 91 classes and 28 x 28 on an H100: forward costs
// crop_masks and 3 MB of logits, about 25 us; backward writes 292 MB, 87 us, and then 3 MB.
#include <limits>

#include "../device/block_sum.cuh"
#include "../geometry/sigmoid.h"
#include "../tensors/feature_layout.h"
#include "contract.h"
#include "mask_cropper.cuh"
#include "tensors.h"

namespace fastdet::cuda {

namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, 4)
    loss_kernel(BoxChannels<const T> logits, const int64_t* labels, MaskBatch masks,
                const Box<S>* boxes, const int64_t* match, int64_t num_rows, T* residual, S* sums) {
  __shared__ MaskCropper<S> cropper;
  const int64_t pixels = logits.height * logits.width;
  for (int64_t n = blockIdx.x; n < num_rows; n += gridDim.x) {
    T* const derivatives = residual + n * pixels;
    const int64_t label = labels[n];
    if (!masks.has(match[n]) || !logits.has(label)) {
      const S all = masks.has(match[n]) ? std::numeric_limits<S>::quiet_NaN() : S(0);
      for (int64_t i = threadIdx.x; i < pixels; i += kThreads) derivatives[i] = static_cast<T>(all);
      if (threadIdx.x == 0) sums[n] = all;
      continue;
    }
    S sum = S(0);
    const auto use = [&](int64_t i, int64_t j, S target) {
      const S x = static_cast<S>(logits.at(n, label, i, j));
      const Sigmoid<S> sigmoid = sigmoid_of(x);
      derivatives[i * logits.width + j] = static_cast<T>(sigmoid.p - target);
      sum += (max_of(x, S(0)) - x * target) + sigmoid.log_term;
    };
    cropper.crop(masks, n / logits.rows_per_image, match[n], boxes[n], logits.height, logits.width,
                 use);
    const S of_box = block_sum(sum).total;
    if (threadIdx.x == 0) sums[n] = of_box;
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads)
    mean_kernel(int64_t num_rows, const S* sums, const int64_t* match, int64_t num_masks,
                int64_t pixels, S* loss, int64_t* count) {
  double sum = 0;
  int64_t matched = 0;
  for (int64_t n = threadIdx.x; n < num_rows; n += kThreads) {
    sum += static_cast<double>(sums[n]);
    matched += match[n] >= 0 && match[n] < num_masks;
  }
  sum = block_sum(sum).total;
  matched = block_sum(matched).total;
  if (threadIdx.x > 0) return;
  *count = matched;
  *loss = matched > 0
              ? static_cast<S>(sum / (static_cast<double>(matched) * static_cast<double>(pixels)))
              : S(0);
}

// `out` holds zeros before.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(const S* grad, const T* residual, const int64_t* labels, const int64_t* count,
                  int64_t num_rows, BoxChannels<T> out) {
  const int64_t pixels = out.height * out.width, of_row = out.channels * pixels;
  const S scale = *grad / (static_cast<S>(max_of<int64_t>(1, *count)) * static_cast<S>(pixels));
  for (int64_t n = blockIdx.x; n < num_rows; n += gridDim.x) {
    const T* const derivatives = residual + n * pixels;
    if (out.has(labels[n])) {
      for (int64_t i = threadIdx.x; i < pixels; i += kThreads)
        out.at(n, labels[n], i / out.width, i % out.width) =
            static_cast<T>(scale * static_cast<S>(derivatives[i]));
    } else if (static_cast<S>(derivatives[0]) != S(0)) {  // the label is not a class: all NaN
      for (int64_t i = threadIdx.x; i < of_row; i += kThreads)
        out.data[n * of_row + i] = derivatives[0];
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> mask_rcnn_loss(const Tensor& logits, const Tensor& labels,
                                                  const Tensor& masks, const Tensor& boxes,
                                                  const Tensor& match) {
  check_mask_rcnn_loss("mask_rcnn_loss", logits, labels, masks, boxes, match);
  const DeviceGuard guard(logits.get_device_index());
  const auto dtype = box_dtype(logits);
  const Tensor masks_in = readable_masks(masks), match_in = torch::stable::contiguous(match);
  const Tensor labels_in = torch::stable::contiguous(labels), boxes_in = box_input(boxes, dtype);
  const int64_t num_rows = match.numel(), height = logits.size(3), width = logits.size(4);
  const Tensor loss = empty(logits, {}, dtype), count = empty(logits, {}, kInt64);
  const Tensor residual =
      empty(logits, {logits.size(0), logits.size(1), height, width}, logits.scalar_type());
  const Tensor sums = empty(logits, {num_rows}, dtype);
  const cudaStream_t stream = current_stream(logits);
  dispatch_floating(logits.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    launch(loss_kernel<T, S>, grid_of(num_rows), dim3(kThreads), 0, stream,
           box_channels(data<T>(logits), logits), data<int64_t>(labels_in), mask_batch(masks_in),
           reinterpret_cast<const Box<S>*>(data<S>(boxes_in)), data<int64_t>(match_in), num_rows,
           mutable_data<T>(residual), mutable_data<S>(sums));
    launch(mean_kernel<S>, dim3(1), dim3(kThreads), 0, stream, num_rows, data<S>(sums),
           data<int64_t>(match_in), masks.size(1), height * width, mutable_data<S>(loss),
           mutable_data<int64_t>(count));
  });
  return {loss, residual, count};
}

Tensor mask_rcnn_loss_backward(const Tensor& grad, const Tensor& residual, const Tensor& labels,
                               const Tensor& count, int64_t channels, bool channels_last) {
  check_mask_rcnn_loss_backward("mask_rcnn_loss_backward", grad, residual, labels, count, channels);
  const DeviceGuard guard(residual.get_device_index());
  const Tensor residual_in = torch::stable::contiguous(residual);
  const Tensor labels_in = torch::stable::contiguous(labels);
  const Tensor out = empty_pooled(residual, residual.size(0), residual.size(1), channels,
                                  residual.size(2), residual.size(3), channels_last);
  const cudaStream_t stream = current_stream(residual);
  if (out.numel() == 0) return out;
  dispatch_floating(residual.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    STD_CUDA_CHECK(cudaMemsetAsync(mutable_data<T>(out), 0, out.numel() * sizeof(T), stream));
    launch(spread_kernel<T, S>, grid_of(labels.numel()), dim3(kThreads), 0, stream, data<S>(grad),
           data<T>(residual_in), data<int64_t>(labels_in), data<int64_t>(count), labels.numel(),
           box_channels(mutable_data<T>(out), out));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("mask_rcnn_loss", TORCH_BOX(&mask_rcnn_loss));
  m.impl("mask_rcnn_loss_backward", TORCH_BOX(&mask_rcnn_loss_backward));
}

}  // namespace fastdet::cuda
