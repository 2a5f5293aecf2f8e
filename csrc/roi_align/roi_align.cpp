// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign of one level or several, forward and backward. A RoI becomes two short lists of taps:
// rows and columns with weights. Samples of a bin that share a row or a column are merged. So the
// loops read each feature once for each bin, in either memory layout.
//
// RoIs are processed image by image in the order of their places, so that a RoI finds the data of
// its neighbours in the caches. In channels_last forward, a thread takes RoIs. Otherwise it owns a
// block of channels of an image and goes over all RoIs of the image. In backward the RoIs are
// summed in that order, which gives the same bits for any number of threads. Workspace: O(taps), 12
// to 16 bytes each.
//
// The lower bound for the benchmark (1,024 RoIs, 256 x 7 x 7, ratio 2, features of 105 MB) is to
// read the features once and to write 51 MB once. In channels_last there are 205 million
// multiply-adds for 16 taps in each bin; in NCHW the rows of each RoI's window. Backward reads 51
// MB and writes 105 MB.
#include <algorithm>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

#include "../geometry/bilinear.h"
#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "../tensors/feature_layout.h"
#include "contract.h"
#include "roi_align.loops.h"
#include "tap_list.h"
#include "tensors.h"

namespace fastdet::cpu {

namespace {

// Interleaves the bits of x and y (Z curve), so that close points mostly get close numbers.
uint32_t morton(uint32_t x, uint32_t y) {
  const auto spread_bits = [](uint32_t v) {
    v = (v | v << 8) & 0x00ff00ff;
    v = (v | v << 4) & 0x0f0f0f0f;
    v = (v | v << 2) & 0x33333333;
    return (v | v << 1) & 0x55555555;
  };
  return spread_bits(x & 0xffff) | spread_bits(y & 0xffff) << 1;
}

// The taps of one RoI on one level.
template <typename S>
class RoiPlan {
 public:
  template <typename T>
  void build(const PlacedRoi<S>& roi, const FeatureLevel<T, S>& level, Sampling sampling,
             int64_t pooled_height, int64_t pooled_width) {
    RoiAxis<double> y = roi_axis_in_float64(roi.box.y1, roi.box.y2, level.scale, sampling.aligned,
                                            pooled_height, sampling.ratio);
    RoiAxis<double> x = roi_axis_in_float64(roi.box.x1, roi.box.x2, level.scale, sampling.aligned,
                                            pooled_width, sampling.ratio);
    if (roi.image < 0) y.samples = x.samples = 0;
    row_list_.build(y, pooled_height, level.height);
    column_list_.build(x, pooled_width, level.width);
    rows = row_list_.taps(level.height);
    columns = column_list_.taps(level.width);
  }

  // The number of the RoI's centre on a Z curve through the map.
  uint32_t place() const {
    return morton(static_cast<uint32_t>(columns.low + columns.span / 2),
                  static_cast<uint32_t>(rows.low + rows.span / 2));
  }

  int64_t row_taps() const { return rows.begin[rows.bins]; }

  Taps<S> rows, columns;

 private:
  TapList<S> row_list_, column_list_;
};

// `channels` channels of one image, from `channel` on.
template <typename T, typename S>
FeatureMap<T> map_of(const FeatureLevel<T, S>& level, int64_t image, int64_t channel,
                     int64_t channels) {
  return {level.data + image * level.image_stride + channel * level.channel_stride, channels,
          level.channel_stride, level.row_stride, level.pixel_stride};
}

// Pooled features (K, C, h, w) or (B, K, C, h, w) of any strides.
template <typename T>
struct Pooled {
  T* data;
  int64_t rois_per_image, height, width, stride[5];

  Pooled(T* first, const Tensor& pooled) : data(first) {
    const int64_t batch_dims = pooled.dim() - 4;
    rois_per_image = pooled.size(batch_dims);
    height = pooled.size(batch_dims + 2);
    width = pooled.size(batch_dims + 3);
    stride[0] = 0;  // without batch dimension there is one image
    for (int64_t d = 0; d < pooled.dim(); ++d) stride[d + 1 - batch_dims] = pooled.stride(d);
  }

  // `channels` channels of RoI n, from `channel` on.
  FeatureMap<T> roi(int64_t n, int64_t channel, int64_t channels) const {
    const int64_t image = n / rois_per_image, row = n % rois_per_image;
    return {data + image * stride[0] + row * stride[1] + channel * stride[2], channels, stride[2],
            stride[3], stride[4]};
  }
};

// The RoIs with their plans, and the order in which the loops take them: by image, level, place.
template <typename S>
struct Plans {
  std::vector<RoiPlan<S>> of;
  std::vector<int64_t> order;
  std::vector<int64_t> image_begin;  // in `order`; RoIs without an image come before the first
  std::vector<int64_t> reads;        // for each image and level: row taps times columns
  int64_t widest = 0;                // the largest span of columns

  template <typename T>
  Plans(const std::vector<FeatureLevel<T, S>>& levels, const std::vector<PlacedRoi<S>>& rois,
        Sampling sampling, int64_t pooled_height, int64_t pooled_width)
      : of(rois.size()),
        order(rois.size()),
        image_begin(levels[0].images + 1),
        reads(levels[0].images * kMaxLevels) {
    parallel_for(static_cast<int64_t>(rois.size()), 64, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        of[n].build(rois[n], levels[rois[n].level], sampling, pooled_height, pooled_width);
    });
    for (size_t n = 0; n < of.size(); ++n) {
      widest = std::max(widest, of[n].columns.span);
      if (rois[n].image >= 0)
        reads[rois[n].image * kMaxLevels + rois[n].level] += of[n].row_taps() * of[n].columns.span;
    }
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return std::tuple(rois[a].image, rois[a].level, of[a].place(), a) <
             std::tuple(rois[b].image, rois[b].level, of[b].place(), b);
    });
    for (int64_t i = 0; i <= levels[0].images; ++i)
      image_begin[i] = std::partition_point(order.begin(), order.end(),
                                            [&](int64_t n) { return rois[n].image < i; }) -
                       order.begin();
  }

  int64_t reads_of(int64_t image, int64_t level) const { return reads[image * kMaxLevels + level]; }

  std::span<const int64_t> of_image(int64_t image) const {
    return {order.data() + image_begin[image], order.data() + image_begin[image + 1]};
  }
};

template <typename T, typename S>
bool by_pixels(const FeatureLevel<T, S>& level) {
  return level.channel_stride == 1 && level.pixel_stride != 1;
}

// The number of planes (NCHW) that are processed for a RoI at a time. Its taps are computed once
// for them, and the RoI finds the data of its neighbours in the L2 cache.
constexpr int64_t kPlaneBlock = 8;

// Prefetches planes in memory order. In the order of the RoIs, every access would be a cache miss.
template <typename T>
void fetch(const FeatureMap<const T>& planes, int64_t height, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t c = 0; c < planes.channels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      const T* row = planes.data + c * planes.channel_stride + y * planes.row_stride;
      for (int64_t x = 0; x < width; x += kLine) __builtin_prefetch(row + x, 0, 2);
    }
  }
}

template <typename T>
void pool(const std::vector<FeatureLevel<const T, Sum<T>>>& levels,
          const std::vector<PlacedRoi<Sum<T>>>& rois, Sampling sampling, const Tensor& pooled) {
  const auto& loops = current_loops<RoiAlignLoops<T>>();
  const Pooled<T> out(mutable_data<T>(pooled), pooled);
  const Plans<Sum<T>> plans(levels, rois, sampling, out.height, out.width);
  const int64_t channels = levels[0].channels;
  parallel_for(static_cast<int64_t>(rois.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = plans.order[i];
      const auto& level = levels[rois[n].level];
      if (rois[n].image >= 0 && !by_pixels(level)) continue;
      // A RoI without an image has no taps; for it, this call writes zeros.
      const auto map = map_of(level, std::max<int64_t>(rois[n].image, 0), 0, channels);
      loops.pool_pixels(map, plans.of[n].rows, plans.of[n].columns, out.roi(n, 0, channels));
    }
  });
  if (std::all_of(levels.begin(), levels.end(), by_pixels<const T, Sum<T>>)) return;
  const int64_t blocks = (channels + kPlaneBlock - 1) / kPlaneBlock;
  parallel_for(levels[0].images * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Sum<T>> merged(kMergedRows * merged_stride(plans.widest));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, channel = task % blocks * kPlaneBlock;
      const int64_t width = std::min(kPlaneBlock, channels - channel);
      int64_t swept = -1;
      for (const int64_t n : plans.of_image(image)) {
        const auto& level = levels[rois[n].level];
        if (by_pixels(level)) continue;
        const auto map = map_of(level, image, channel, width);
        if (rois[n].level != swept) {
          swept = rois[n].level;
          if (plans.reads_of(image, swept) > level.height * level.width)
            fetch(map, level.height, level.width);
        }
        loops.pool_planes(map, plans.of[n].rows, plans.of[n].columns, out.roi(n, channel, width),
                          merged.data());
      }
    }
  });
}

// Wide enough to fill vectors and cache lines, and narrow enough that each thread gets a few
// blocks.
int64_t channel_block(int64_t images, int64_t channels) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t block = 128;
  while (block > 16 && images * ((channels + block - 1) / block) < wanted) block /= 2;
  return block;
}

// Called just before sums are added, so that the planes are still in the cache. NCHW is dense.
template <typename S>
void zero_planes(const FeatureLevel<S, S>& level, int64_t image, int64_t channel, int64_t planes) {
  std::fill_n(map_of(level, image, channel, planes).data, planes * level.height * level.width,
              S(0));
}

// All levels have the same layout. Planes (NCHW) come uninitialised.
template <typename T>
void spread(const Tensor& grad, const std::vector<PlacedRoi<Sum<T>>>& rois, Sampling sampling,
            const std::vector<FeatureLevel<Sum<T>, Sum<T>>>& levels) {
  const auto& loops = current_loops<RoiAlignLoops<T>>();
  const Pooled<const T> pooled(data<T>(grad), grad);
  const Plans<Sum<T>> plans(levels, rois, sampling, pooled.height, pooled.width);
  const int64_t images = levels[0].images, channels = levels[0].channels;
  const bool pixels = by_pixels(levels[0]);
  const int64_t block = pixels ? channel_block(images, channels) : kPlaneBlock;
  const int64_t blocks = (channels + block - 1) / block;
  parallel_for(images * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Sum<T>> merged(kMergedRows * merged_stride(plans.widest));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, channel = task % blocks * block;
      const int64_t width = std::min(block, channels - channel);
      if (!pixels)
        for (const auto& level : levels) zero_planes(level, image, channel, width);
      for (const int64_t n : plans.of_image(image)) {
        const auto in = pooled.roi(n, channel, width);
        const auto map = map_of(levels[rois[n].level], image, channel, width);
        if (pixels)
          loops.spread_pixels(in, plans.of[n].rows, plans.of[n].columns, map);
        else
          loops.spread_planes(in, plans.of[n].rows, plans.of[n].columns, map, merged.data());
      }
    }
  });
}

template <typename S>
std::vector<PlacedRoi<S>> place_all(const RoiTable<S>& table, int64_t n) {
  std::vector<PlacedRoi<S>> placed(n);
  for (int64_t i = 0; i < n; ++i) placed[i] = table.place(i);
  return placed;
}

template <typename S>
std::vector<PlacedRoi<S>> place_rois(const Tensor& rois, int64_t images) {
  const Tensor rows = box_input(rois, scalar_type_of<S>());
  return place_all<S>(roi_table<S>(rows, images), rois.size(0));
}

template <typename S>
std::vector<PlacedRoi<S>> place_boxes(const Tensor& boxes, const std::optional<Tensor>& counts,
                                      const LevelMap<S>& map) {
  const Tensor rows = box_input(boxes, scalar_type_of<S>());
  const std::optional<Tensor> rows_in_use = contiguous(counts);
  return place_all<S>(roi_table<S>(rows, rows_in_use ? &*rows_in_use : nullptr, map),
                      boxes.size(0) * boxes.size(1));
}

// The features in a layout that the loops read: channels, or the pixels of a row, are adjacent.
Tensor readable(const Tensor& features) {
  return features.stride(1) == 1 || features.stride(3) == 1 ? features
                                                            : torch::stable::contiguous(features);
}

// A tensor for the gradient of a level: zeros in channels_last, uninitialised in NCHW.
Tensor new_sums(const Tensor& like, int64_t images, int64_t channels, int64_t height, int64_t width,
                ScalarType dtype, bool channels_last) {
  const Tensor sums =
      in_huge_pages(empty_features(like, images, channels, height, width, dtype, channels_last));
  if (channels_last) fill_zero(sums);
  return sums;
}

}  // namespace

Tensor roi_align(const Tensor& input, const Tensor& rois, double spatial_scale,
                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                 bool aligned) {
  check_roi_align("roi_align", input, rois);
  const Tensor pooled =
      in_huge_pages(empty_features(input, rois.size(0), input.size(1), pooled_height, pooled_width,
                                   input.scalar_type(), is_channels_last(input)));
  if (pooled.numel() == 0) return pooled;
  const Tensor features = readable(input);
  dispatch_floating(input.scalar_type(), [&]<typename T>() {
    pool<T>({feature_level<const T, Sum<T>>(features, spatial_scale)},
            place_rois<Sum<T>>(rois, input.size(0)), {sampling_ratio, aligned}, pooled);
  });
  return pooled;
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& rois, double spatial_scale,
                          int64_t batch, int64_t channels, int64_t height, int64_t width,
                          int64_t sampling_ratio, bool aligned, bool channels_last,
                          bool /*deterministic: always*/) {
  check_roi_align_backward("roi_align_backward", grad, rois, channels);
  return dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Tensor sums =
        new_sums(grad, batch, channels, height, width, scalar_type_of<S>(), channels_last);
    if (sums.numel() > 0)
      spread<T>(grad, place_rois<S>(rois, batch), {sampling_ratio, aligned},
                {feature_level<S, S>(sums, spatial_scale)});
    return cast(sums, grad.scalar_type());
  });
}

Tensor multiscale_roi_align(const std::vector<Tensor>& features, const Tensor& boxes,
                            const std::optional<Tensor>& counts, int64_t pooled_height,
                            int64_t pooled_width, const std::vector<double>& scales,
                            int64_t sampling_ratio, int64_t canonical_scale,
                            int64_t canonical_level, bool aligned) {
  check_multiscale_roi_align("multiscale_roi_align", arguments(features), boxes, counts,
                             scales.size());
  const Tensor& first = features[0];
  const Tensor pooled =
      in_huge_pages(empty_pooled(first, boxes.size(0), boxes.size(1), first.size(1), pooled_height,
                                 pooled_width, is_channels_last(first)));
  if (pooled.numel() == 0) return pooled;
  std::vector<Tensor> readable_features;
  for (const Tensor& level : features) readable_features.push_back(readable(level));
  dispatch_floating(first.scalar_type(), [&]<typename T>() {
    std::vector<FeatureLevel<const T, Sum<T>>> levels;
    for (size_t l = 0; l < features.size(); ++l)
      levels.push_back(feature_level<const T, Sum<T>>(readable_features[l], scales[l]));
    const auto map = level_map<Sum<T>>(scales.data(), static_cast<int64_t>(scales.size()),
                                       canonical_scale, canonical_level);
    pool<T>(levels, place_boxes(boxes, counts, map), {sampling_ratio, aligned}, pooled);
  });
  return pooled;
}

std::vector<Tensor> multiscale_roi_align_backward(
    const Tensor& grad, const Tensor& boxes, const std::optional<Tensor>& counts,
    const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
    const std::vector<double>& scales, int64_t sampling_ratio, int64_t canonical_scale,
    int64_t canonical_level, bool aligned, bool channels_last, bool /*deterministic: always*/) {
  check_multiscale_roi_align_backward("multiscale_roi_align_backward", grad, boxes, counts,
                                      heights.size(), widths.size(), scales.size());
  return dispatch_floating(grad.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    std::vector<Tensor> sums;
    std::vector<FeatureLevel<S, S>> levels;
    for (size_t l = 0; l < scales.size(); ++l) {
      sums.push_back(new_sums(grad, grad.size(0), grad.size(2), heights[l], widths[l],
                              scalar_type_of<S>(), channels_last));
      levels.push_back(feature_level<S, S>(sums[l], scales[l]));
    }
    const auto map = level_map<S>(scales.data(), static_cast<int64_t>(scales.size()),
                                  canonical_scale, canonical_level);
    if (grad.size(0) * grad.size(2) > 0)
      spread<T>(grad, place_boxes(boxes, counts, map), {sampling_ratio, aligned}, levels);
    for (Tensor& level : sums) level = cast(level, grad.scalar_type());
    return sums;
  });
}

void multiscale_roi_align_add_grad(const std::vector<Tensor>& sums, const Tensor& grad,
                                   const Tensor& boxes, const std::optional<Tensor>& counts,
                                   const std::vector<double>& scales, int64_t sampling_ratio,
                                   int64_t canonical_scale, int64_t canonical_level, bool aligned) {
  const char* op = "multiscale_roi_align_add_grad";
  check_multiscale_roi_align_add_grad(op, arguments(sums), grad, boxes, counts, scales.size());
  for (const Tensor& level : sums)
    if (!is_channels_last(level)) refuse(op, "sums", "channels_last", describe(level));
  if (grad.numel() == 0) return;
  dispatch_box(grad.scalar_type(), [&]<typename T>() {
    std::vector<FeatureLevel<T, T>> levels;
    for (size_t l = 0; l < scales.size(); ++l)
      levels.push_back(feature_level<T, T>(sums[l], scales[l]));
    const auto map = level_map<T>(scales.data(), static_cast<int64_t>(scales.size()),
                                  canonical_scale, canonical_level);
    spread<T>(grad, place_boxes(boxes, counts, map), {sampling_ratio, aligned}, levels);
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward));
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward));
  m.impl("multiscale_roi_align_add_grad", TORCH_BOX(&multiscale_roi_align_add_grad));
}

}  // namespace fastdet::cpu
