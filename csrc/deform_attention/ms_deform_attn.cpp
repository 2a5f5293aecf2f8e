// SPDX-License-Identifier: BSD-3-Clause
// Multi-scale deformable attention, forward and backward.
//
// Forward: a thread takes queries. Backward: a thread takes a head of an image and goes over all
// queries, in order. So each sum has one order, whatever the number of threads, and the gradients
// of locations and weights come out of the same pass.
//
// The pixels of a head in (B, S, H, D) lie H * D values apart and share few sets of the caches. So,
// where a head has more points than pixels, its sums are dense, (S, D), and are copied to their
// places at the end. Half types are always summed so. Workspace: those sums, for each thread.
//
// The lower bound (2 images of 20,197 pixels, 8 heads of 32 channels, 16 points): value 41 MB; for
// 5,440 queries, locations and weights 17 MB and the output 11 MB. Each point takes four
// multiply-adds for each channel: 178 million, and backward twice as many. Backward also writes the
// 41 MB of the value's gradient, and 17 MB.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "../detections/softmax.loops.h"
#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "contract.h"
#include "ms_deform_attn.loops.h"
#include "tensors.h"

namespace fastdet::cpu {

namespace {

// AttentionPoints and what they point to.
template <typename S>
class PointLevels {
 public:
  PointLevels(const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
              int64_t points) {
    const int64_t of_level = points / static_cast<int64_t>(heights.size());
    int64_t start = 0;
    for (size_t l = 0; l < heights.size(); ++l) {
      heights_.insert(heights_.end(), of_level, static_cast<S>(heights[l]));
      widths_.insert(widths_.end(), of_level, static_cast<S>(widths[l]));
      rows_.insert(rows_.end(), of_level, static_cast<int32_t>(heights[l]));
      columns_.insert(columns_.end(), of_level, static_cast<int32_t>(widths[l]));
      starts_.insert(starts_.end(), of_level, static_cast<int32_t>(start));
      start += heights[l] * widths[l];
    }
  }

  AttentionPoints<S> points() const {
    return {static_cast<int64_t>(heights_.size()),
            heights_.data(),
            widths_.data(),
            rows_.data(),
            columns_.data(),
            starts_.data()};
  }

 private:
  std::vector<S> heights_, widths_;
  std::vector<int32_t> rows_, columns_, starts_;
};

// The tensors of a call as pointers; value (B, S, H, D).
template <typename T>
struct AttentionArrays {
  const T* value;
  const Sum<T>*locations, *weights;
  int64_t images, queries, heads, channels, pixels, points;
  bool softmax;

  AttentionArrays(const AttentionTensors& t, bool softmax)
      : value(data<T>(t.value)),
        locations(data<Sum<T>>(t.locations)),
        weights(data<Sum<T>>(t.weights)),
        images(t.images),
        queries(t.queries),
        heads(t.heads),
        channels(t.channels),
        pixels(t.pixels),
        points(t.points),
        softmax(softmax) {}

  // A map (B, S, H, D) from a head of an image on.
  template <typename U>
  AttentionMap<U> map(U* data, int64_t image, int64_t head) const {
    return {data + (image * pixels * heads + head) * channels, heads * channels, channels};
  }

  // The weights of n heads from row `row` of (B, Q, H) on: those of the call, or the softmax of
  // each head's logits, in `room` for n * points values.
  const Sum<T>* weights_of(int64_t row, int64_t n, Sum<T>* room) const {
    const Sum<T>* own = weights + row * points;
    if (!softmax) return own;
    const auto& loops = current_loops<SoftmaxLoops<Sum<T>>>();
    for (int64_t h = 0; h < n; ++h) loops.softmax(own + h * points, points, room + h * points);
    return room;
  }
};

template <typename T>
void attend(const AttentionArrays<T>& a, const AttentionPoints<Sum<T>>& points, T* out) {
  const auto& loops = current_loops<MsDeformAttnLoops<T>>();
  parallel_for(a.images * a.queries, 4, [&](int64_t begin, int64_t end) {
    std::vector<Sum<T>> probabilities(a.softmax ? a.heads * a.points : 0), sums(a.channels);
    for (int64_t query = begin; query < end; ++query) {
      const int64_t row = query * a.heads;
      loops.attend(
          a.map(a.value, query / a.queries, 0), points, a.heads, a.locations + row * 2 * a.points,
          a.weights_of(row, a.heads, probabilities.data()), out + row * a.channels, sums.data());
    }
  });
}

// The gradients: value (B, S, H, D), locations and weights.
template <typename T>
struct AttentionGradients {
  T* value;
  Sum<T>*locations, *weights;
};

// A head of an image, for all its queries. Adds to `sums`; `probabilities` is room for a head.
template <typename T>
void attend_backward(const AttentionArrays<T>& a, const AttentionPoints<Sum<T>>& points,
                     const T* grad, const AttentionGradients<T>& to, int64_t image, int64_t head,
                     const AttentionMap<Sum<T>>& sums, Sum<T>* probabilities) {
  const auto& loops = current_loops<MsDeformAttnLoops<T>>();
  const AttentionMap<const T> value = a.map(a.value, image, head);
  for (int64_t query = 0; query < a.queries; ++query) {
    const int64_t row = (image * a.queries + query) * a.heads + head, point = row * a.points;
    const Sum<T>* weights = a.weights_of(row, 1, probabilities);
    loops.attend_backward(value, points, a.locations + 2 * point, weights, grad + row * a.channels,
                          sums, to.locations + 2 * point, to.weights + point);
    if (a.softmax) loops.softmax_backward(weights, a.points, to.weights + point);
  }
}

// All heads, with sums in dense rows (S, D) of the thread's own.
template <typename T>
void attend_backward(const AttentionArrays<T>& a, const AttentionPoints<Sum<T>>& points,
                     const Tensor& grad, const AttentionGradients<T>& to) {
  using S = Sum<T>;
  const auto& loops = current_loops<MsDeformAttnLoops<T>>();
  parallel_for(a.images * a.heads, 1, [&](int64_t begin, int64_t end) {
    const int64_t values = a.pixels * a.channels;
    const Tensor room = in_huge_pages(empty(grad, {values}, scalar_type_of<S>()));
    const AttentionMap<S> sums = {mutable_data<S>(room), a.channels, a.channels};
    std::vector<S> probabilities(a.points);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / a.heads, head = i % a.heads;
      std::fill_n(sums.data, values, S(0));
      attend_backward(a, points, data<T>(grad), to, image, head, sums, probabilities.data());
      loops.store_rows(sums.data, a.pixels, a.map(to.value, image, head));
    }
  });
}

// All heads, with sums in the gradient of the value itself, which is zeros.
template <typename S>
void attend_backward_in_place(const AttentionArrays<S>& a, const AttentionPoints<S>& points,
                              const Tensor& grad, const AttentionGradients<S>& to) {
  parallel_for(a.images * a.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<S> probabilities(a.points);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / a.heads, head = i % a.heads;
      attend_backward(a, points, data<S>(grad), to, image, head, a.map(to.value, image, head),
                      probabilities.data());
    }
  });
}

}  // namespace

Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t>& heights,
                      const std::vector<int64_t>& widths, const Tensor& locations,
                      const Tensor& weights, bool softmax) {
  check_ms_deform_attn("ms_deform_attn", value, heights, widths, locations, weights);
  const Tensor out =
      in_huge_pages(empty(value, {value.size(0), locations.size(1), value.size(2) * value.size(3)},
                          value.scalar_type()));
  if (out.numel() == 0) return out;
  const AttentionTensors t(value, locations, weights);
  dispatch_floating(value.scalar_type(), [&]<typename T>() {
    const PointLevels<Sum<T>> levels(heights, widths, t.points);
    attend<T>({t, softmax}, levels.points(), mutable_data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad, const Tensor& value,
                                                           const std::vector<int64_t>& heights,
                                                           const std::vector<int64_t>& widths,
                                                           const Tensor& locations,
                                                           const Tensor& weights, bool softmax,
                                                           bool /*deterministic: always*/) {
  check_ms_deform_attn_backward("ms_deform_attn_backward", grad, value, heights, widths, locations,
                                weights);
  const AttentionTensors t(value, locations, weights);
  const auto dtype = box_dtype(value);
  const Tensor rows = torch::stable::contiguous(grad);
  const Tensor grad_value = in_huge_pages(empty_like(value, value.scalar_type()));
  const Tensor grad_locations = in_huge_pages(empty_like(locations, dtype));
  const Tensor grad_weights = in_huge_pages(empty_like(weights, dtype));
  dispatch_floating(value.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const AttentionArrays<T> arrays(t, softmax);
    const PointLevels<S> levels(heights, widths, t.points);
    const AttentionGradients<T> to = {mutable_data<T>(grad_value), mutable_data<S>(grad_locations),
                                      mutable_data<S>(grad_weights)};
    if constexpr (std::is_same_v<T, S>) {
      if (t.queries * t.points < t.pixels) {
        fill_zero(grad_value);
        return attend_backward_in_place(arrays, levels.points(), rows, to);
      }
    }
    attend_backward(arrays, levels.points(), rows, to);
  });
  return {grad_value, cast(grad_locations, locations.scalar_type()),
          cast(grad_weights, weights.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace fastdet::cpu
