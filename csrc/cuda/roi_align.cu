// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of one level or several: one thread for each pooled value, in the order of memory, so
// that neighbours read neighbours in either layout. Backward adds atomically, in any order; where
// torch asks for deterministic algorithms, one thread for each feature gathers from the RoIs of its
// image in order instead: O(input) memory and no atomics, but a look at every RoI for each feature.
#include <type_traits>
#include <vector>

#include "../bilinear.h"
#include "../checks.h"
#include "../feature_layout.h"
#include "launch.cuh"

namespace fastdet::cuda {

namespace {

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T, typename S>
struct Levels {
  FeatureLevel<T, S> of[kMaxLevels];
};

// Pooled (B, K, C, h, w) of any strides.
struct PooledShape {
  int64_t rois_per_image, channels, height, width;
  int64_t stride[5];
  bool channels_last;  // in which order threads visit the elements
};

PooledShape pooled_shape(const Tensor& pooled, bool channels_last) {
  PooledShape shape = {pooled.size(1), pooled.size(2), pooled.size(3), pooled.size(4), {},
                       channels_last};
  for (int64_t d = 0; d < 5; ++d) shape.stride[d] = pooled.stride(d);
  return shape;
}

struct PooledElement {
  int64_t n, c, ph, pw, offset;
};

__device__ PooledElement pooled_element(const PooledShape& shape, int64_t i) {
  PooledElement at;
  if (shape.channels_last) {
    at.c = i % shape.channels, i /= shape.channels;
    at.pw = i % shape.width, i /= shape.width;
    at.ph = i % shape.height, at.n = i / shape.height;
  } else {
    at.pw = i % shape.width, i /= shape.width;
    at.ph = i % shape.height, i /= shape.height;
    at.c = i % shape.channels, at.n = i / shape.channels;
  }
  at.offset = at.n / shape.rois_per_image * shape.stride[0] +
              at.n % shape.rois_per_image * shape.stride[1] + at.c * shape.stride[2] +
              at.ph * shape.stride[3] + at.pw * shape.stride[4];
  return at;
}

// visit(offset, weight) for each feature of the channel that the bin (ph, pw) of the RoI averages.
template <typename T, typename S, typename Visit>
__device__ void for_each_tap(const FeatureLevel<T, S>& level, const PlacedRoi<S>& roi,
                             Sampling sampling, const PooledShape& shape, int64_t ph, int64_t pw,
                             Visit visit) {
  const RoiAxis<S> y =
      roi_axis(roi.box.y1, roi.box.y2, level.scale, sampling.aligned, shape.height, sampling.ratio);
  const RoiAxis<S> x =
      roi_axis(roi.box.x1, roi.box.x2, level.scale, sampling.aligned, shape.width, sampling.ratio);
  const S count = static_cast<S>(y.samples) * static_cast<S>(x.samples);
  const SampleRange rows = samples_within(y, ph, S(-1), static_cast<S>(level.height));
  const SampleRange columns = samples_within(x, pw, S(-1), static_cast<S>(level.width));
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const BilinearTap<S> row = bilinear_tap(sample_position(y, ph, i), level.height);
    if (row.weight[0] == S(0) && row.weight[1] == S(0)) continue;
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const BilinearTap<S> column = bilinear_tap(sample_position(x, pw, j), level.width);
      for (int a = 0; a < 2; ++a)
        for (int b = 0; b < 2; ++b) {
          const S weight = row.weight[a] * column.weight[b];
          if (weight != S(0))
            visit(row.index[a] * level.row_stride + column.index[b] * level.pixel_stride,
                  weight / count);
        }
    }
  }
}

template <typename T>
void pool(const Levels<const T, Sum<T>>& levels, const RoiTable<Sum<T>>& table, Sampling sampling,
          const Tensor& pooled, bool channels_last) {
  using S = Sum<T>;
  const PooledShape shape = pooled_shape(pooled, channels_last);
  T* const out = mutable_data<T>(pooled);
  for_each(pooled.numel(), current_stream(pooled), [=] __device__(int64_t i) {
    const PooledElement at = pooled_element(shape, i);
    const PlacedRoi<S> roi = table.place(at.n);
    S sum = S(0);
    if (roi.image >= 0) {
      const FeatureLevel<const T, S>& level = levels.of[roi.level];
      const T* map = level.data + roi.image * level.image_stride + at.c * level.channel_stride;
      for_each_tap(level, roi, sampling, shape, at.ph, at.pw,
                   [&](int64_t offset, S weight) { sum += weight * static_cast<S>(map[offset]); });
    }
    out[at.offset] = static_cast<T>(sum);
  });
}

template <typename T>
void spread(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
            const Levels<Sum<T>, Sum<T>>& levels, bool channels_last) {
  using S = Sum<T>;
  const PooledShape shape = pooled_shape(grad, channels_last);
  const T* const in = data<T>(grad);
  for_each(grad.numel(), current_stream(grad), [=] __device__(int64_t i) {
    const PooledElement at = pooled_element(shape, i);
    const PlacedRoi<S> roi = table.place(at.n);
    if (roi.image < 0) return;
    const FeatureLevel<S, S>& level = levels.of[roi.level];
    S* map = level.data + roi.image * level.image_stride + at.c * level.channel_stride;
    const S value = static_cast<S>(in[at.offset]);
    for_each_tap(level, roi, sampling, shape, at.ph, at.pw,
                 [&](int64_t offset, S weight) { atomicAdd(map + offset, weight * value); });
  });
}

// ---- deterministic ------------------------------------------------------------------------------

// A sample reads an index only from a distance of at most 1; the rest is for rounding.
template <typename S>
__device__ bool may_touch(const RoiAxis<S>& axis, int64_t bins, int64_t index) {
  const S end = axis.start + static_cast<S>(bins) * axis.bin, at = static_cast<S>(index);
  return axis.samples > 0 && at > min_of(axis.start, end) - S(2) &&
         at < max_of(axis.start, end) + S(2);
}

// The share of feature `index` in the average of bin p.
template <typename S>
__device__ S weight_of(const RoiAxis<S>& axis, int64_t p, int64_t index, int64_t size) {
  const SampleRange range =
      samples_within(axis, p, static_cast<S>(index - 1), static_cast<S>(index + 1));
  S weight = S(0);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const BilinearTap<S> tap = bilinear_tap(sample_position(axis, p, i), size);
    for (int a = 0; a < 2; ++a)
      if (tap.index[a] == index) weight += tap.weight[a];
  }
  return weight / static_cast<S>(axis.samples);
}

template <typename T>
void gather(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
            const FeatureLevel<Sum<T>, Sum<T>>& level, int64_t level_index, bool channels_last) {
  using S = Sum<T>;
  const PooledShape shape = pooled_shape(grad, channels_last);
  const T* const in = data<T>(grad);
  const int64_t num_rois = grad.size(0) * grad.size(1);
  const int64_t features = level.images * level.channels * level.height * level.width;
  for_each(features, current_stream(grad), [=] __device__(int64_t i) {
    int64_t rest = i, c = 0;
    if (channels_last) c = rest % level.channels, rest /= level.channels;
    const int64_t column = rest % level.width;
    rest /= level.width;
    const int64_t row = rest % level.height;
    rest /= level.height;
    if (!channels_last) c = rest % level.channels, rest /= level.channels;
    const int64_t image = rest;
    // Boxes lie image by image, rois in any order.
    const int64_t begin = table.columns == 5 ? 0 : image * table.rows_per_image;
    const int64_t end = table.columns == 5 ? num_rois : begin + table.rows_per_image;
    S sum = S(0);
    for (int64_t n = begin; n < end; ++n) {
      const PlacedRoi<S> roi = table.place(n);
      if (roi.image != image || roi.level != level_index) continue;
      const RoiAxis<S> y = roi_axis(roi.box.y1, roi.box.y2, level.scale, sampling.aligned,
                                    shape.height, sampling.ratio);
      const RoiAxis<S> x = roi_axis(roi.box.x1, roi.box.x2, level.scale, sampling.aligned,
                                    shape.width, sampling.ratio);
      if (!may_touch(y, shape.height, row) || !may_touch(x, shape.width, column)) continue;
      const T* pooled = in + n / shape.rois_per_image * shape.stride[0] +
                        n % shape.rois_per_image * shape.stride[1] + c * shape.stride[2];
      for (int64_t ph = 0; ph < shape.height; ++ph) {
        const S row_weight = weight_of(y, ph, row, level.height);
        if (row_weight == S(0)) continue;
        for (int64_t pw = 0; pw < shape.width; ++pw) {
          const S weight = row_weight * weight_of(x, pw, column, level.width);
          if (weight != S(0))
            sum += weight * static_cast<S>(pooled[ph * shape.stride[3] + pw * shape.stride[4]]);
        }
      }
    }
    level.data[image * level.image_stride + c * level.channel_stride + row * level.row_stride +
               column * level.pixel_stride] = sum;
  });
}

template <typename T>
void backward(const Tensor& grad, const RoiTable<Sum<T>>& table, Sampling sampling,
              const std::vector<Tensor>& sums, const double* scales, bool channels_last,
              bool deterministic) {
  Levels<Sum<T>, Sum<T>> levels = {};
  for (size_t l = 0; l < sums.size(); ++l) {
    levels.of[l] = feature_level<Sum<T>, Sum<T>>(sums[l], scales[l]);
    if (deterministic)
      gather<T>(grad, table, sampling, levels.of[l], static_cast<int64_t>(l), channels_last);
  }
  if (!deterministic) spread<T>(grad, table, sampling, levels, channels_last);
}

}  // namespace

Tensor roi_align(const Tensor& input, const Tensor& rois, double spatial_scale,
                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                 bool aligned) {
  check_roi_align("roi_align", input, rois);
  const DeviceGuard guard(input.get_device_index());
  const bool channels_last = is_channels_last(input);
  const Tensor pooled = empty_pooled(input, 1, rois.size(0), input.size(1), pooled_height,
                                     pooled_width, channels_last);
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor rows = box_input(rois, scalar_type_of<S>());
    pool<T>({{feature_level<const T, S>(input, spatial_scale)}}, roi_table<S>(rows, input.size(0)),
            {sampling_ratio, aligned}, pooled, channels_last);
  });
  return torch::stable::select(pooled, 0, 0);
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& rois, double spatial_scale,
                          int64_t batch, int64_t channels, int64_t height, int64_t width,
                          int64_t sampling_ratio, bool aligned, bool channels_last,
                          bool deterministic) {
  check_roi_align_backward("roi_align_backward", grad, rois, channels);
  const DeviceGuard guard(grad.get_device_index());
  return dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor rows = box_input(rois, scalar_type_of<S>());
    const Tensor sums =
        zero_features(grad, batch, channels, height, width, scalar_type_of<S>(), channels_last);
    backward<T>(torch::stable::unsqueeze(grad, 0), roi_table<S>(rows, batch),
                {sampling_ratio, aligned}, {sums}, &spatial_scale, channels_last, deterministic);
    return cast(sums, grad.scalar_type());
  });
}

Tensor multiscale_roi_align(const std::vector<Tensor>& features, const Tensor& boxes,
                            const std::optional<Tensor>& counts, int64_t pooled_height,
                            int64_t pooled_width, const std::vector<double>& scales,
                            int64_t sampling_ratio, int64_t canonical_scale,
                            int64_t canonical_level, bool aligned) {
  check_multiscale_roi_align("multiscale_roi_align", features, boxes, counts, scales.size());
  const Tensor& first = features[0];
  const DeviceGuard guard(first.get_device_index());
  const bool channels_last = is_channels_last(first);
  const Tensor pooled = empty_pooled(first, boxes.size(0), boxes.size(1), first.size(1),
                                     pooled_height, pooled_width, channels_last);
  dispatch_floating(first.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    Levels<const T, S> levels = {};
    for (size_t l = 0; l < features.size(); ++l)
      levels.of[l] = feature_level<const T, S>(features[l], scales[l]);
    const Tensor rows = box_input(boxes, scalar_type_of<S>());
    const std::optional<Tensor> rows_in_use = contiguous(counts);
    const auto map = level_map<S>(scales.data(), static_cast<int64_t>(scales.size()),
                                  canonical_scale, canonical_level);
    pool<T>(levels, roi_table<S>(rows, rows_in_use ? &*rows_in_use : nullptr, map),
            {sampling_ratio, aligned}, pooled, channels_last);
  });
  return pooled;
}

std::vector<Tensor> multiscale_roi_align_backward(
    const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
    const std::vector<double>& scales, int64_t sampling_ratio, int64_t canonical_scale,
    int64_t canonical_level, bool aligned, bool channels_last, bool deterministic) {
  check_multiscale_roi_align_backward("multiscale_roi_align_backward", grad, boxes, counts,
                                      heights.size(), widths.size(), scales.size());
  const DeviceGuard guard(grad.get_device_index());
  return dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    std::vector<Tensor> sums;
    for (size_t l = 0; l < scales.size(); ++l)
      sums.push_back(zero_features(grad, grad.size(0), grad.size(2), heights[l], widths[l],
                                   scalar_type_of<S>(), channels_last));
    const Tensor rows = box_input(boxes, scalar_type_of<S>());
    const std::optional<Tensor> rows_in_use = contiguous(counts);
    const auto map = level_map<S>(scales.data(), static_cast<int64_t>(scales.size()),
                                  canonical_scale, canonical_level);
    backward<T>(grad, roi_table<S>(rows, rows_in_use ? &*rows_in_use : nullptr, map),
                {sampling_ratio, aligned}, sums, scales.data(), channels_last, deterministic);
    for (Tensor& level : sums) level = cast(level, grad.scalar_type());
    return sums;
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward));
}

}  // namespace fastdet::cuda
