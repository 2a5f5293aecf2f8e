// SPDX-License-Identifier: BSD-3-Clause
// Multi-scale deformable attention, forward and backward. No array is larger than an argument.
//
// Forward: a thread takes queries. Backward: a thread owns some heads of an image in the gradient
// of the value and goes over all queries, in order. So each sum has one order, whatever the number
// of threads, and the gradients of locations and weights come out of the same pass.
//
// The lower bound (2 images of 20,197 pixels, 8 heads of 32 channels, 16 points): value 41 MB; for
// 5,440 queries, locations and weights 17 MB and the output 11 MB. Each point takes four
// multiply-adds for each channel: 178 million, and backward twice as many. Backward also writes the
// 41 MB of the value's gradient, and 17 MB.
#include <algorithm>
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

// The weights of the heads of a query: those of the call, or the softmax of each head's logits.
template <typename S>
class HeadWeights {
 public:
  HeadWeights(const AttentionTensors& t, bool softmax)
      : data_(data<S>(t.weights)),
        points_(t.points),
        probabilities_(softmax ? t.heads * t.points : 0) {}

  // Of `heads` heads from row `row` of (B, Q, H) on; valid until the next call.
  const S* of(int64_t row, int64_t heads) {
    const S* own = data_ + row * points_;
    if (probabilities_.empty()) return own;
    const auto& loops = current_loops<SoftmaxLoops<S>>();
    for (int64_t h = 0; h < heads; ++h)
      loops.softmax(own + h * points_, points_, probabilities_.data() + h * points_);
    return probabilities_.data();
  }

 private:
  const S* data_;
  int64_t points_;
  std::vector<S> probabilities_;
};

// Head `head` of image `image` of (B, S, H, D).
template <typename T>
AttentionMap<T> map_of(T* data, const AttentionTensors& t, int64_t image, int64_t head) {
  const int64_t stride = t.heads * t.channels;
  return {data + image * t.pixels * stride + head * t.channels, stride, t.channels};
}

template <typename T>
void attend(const AttentionTensors& t, const AttentionPoints<Sum<T>>& points, bool softmax,
            const Tensor& out) {
  using S = Sum<T>;
  const auto& loops = current_loops<MsDeformAttnLoops<T>>();
  parallel_for(t.images * t.queries, 4, [&](int64_t begin, int64_t end) {
    HeadWeights<S> weights(t, softmax);
    std::vector<S> sums(t.channels);
    for (int64_t query = begin; query < end; ++query) {
      const int64_t row = query * t.heads;
      loops.attend(map_of(data<T>(t.value), t, query / t.queries, 0), points, t.heads,
                   data<S>(t.locations) + row * 2 * t.points, weights.of(row, t.heads),
                   mutable_data<T>(out) + row * t.channels, sums.data());
    }
  });
}

// The gradients, in the type of sums.
struct AttentionGradients {
  Tensor value, locations, weights;
};

// Some heads of an image, for all its queries.
template <typename T>
void attend_backward(const AttentionTensors& t, const AttentionPoints<Sum<T>>& points, bool softmax,
                     const T* grad, const AttentionGradients& to, int64_t image, int64_t head,
                     int64_t heads) {
  using S = Sum<T>;
  const auto& loops = current_loops<MsDeformAttnLoops<T>>();
  HeadWeights<S> weights(t, softmax);
  std::vector<S> sums(t.channels);
  const auto value = map_of(data<T>(t.value), t, image, head);
  const auto grad_value = map_of(mutable_data<S>(to.value), t, image, head);
  for (int64_t query = 0; query < t.queries; ++query) {
    const int64_t row = (image * t.queries + query) * t.heads + head;
    const S* own = weights.of(row, heads);
    S* const grad_weights = mutable_data<S>(to.weights) + row * t.points;
    loops.attend_backward(value, points, heads, data<S>(t.locations) + row * 2 * t.points, own,
                          grad + row * t.channels, grad_value,
                          mutable_data<S>(to.locations) + row * 2 * t.points, grad_weights,
                          sums.data());
    if (softmax)
      for (int64_t h = 0; h < heads; ++h)
        loops.softmax_backward(own + h * t.points, t.points, grad_weights + h * t.points);
  }
}

// As many heads of an image for a thread as keep all threads busy: adjacent heads share pages.
int64_t heads_of_a_task(const AttentionTensors& t) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t heads = t.heads;
  while (heads > 1 && t.images * ((t.heads + heads - 1) / heads) % threads != 0) --heads;
  return heads;
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
    attend<T>(t, levels.points(), softmax, out);
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
  const AttentionGradients to = {in_huge_pages(empty_like(value, dtype)),
                                 in_huge_pages(empty_like(locations, dtype)),
                                 in_huge_pages(empty_like(weights, dtype))};
  fill_zero(to.value);
  const Tensor rows = torch::stable::contiguous(grad);
  const int64_t heads = heads_of_a_task(t), tasks = t.heads > 0 ? (t.heads + heads - 1) / heads : 0;
  dispatch_floating(value.scalar_type(), [&]<typename T>() {
    const PointLevels<Sum<T>> levels(heights, widths, t.points);
    parallel_for(t.images * tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task % tasks * heads;
        attend_backward<T>(t, levels.points(), softmax, data<T>(rows), to, task / tasks, head,
                           std::min(heads, t.heads - head));
      }
    });
  });
  return {cast(to.value, value.scalar_type()), cast(to.locations, locations.scalar_type()),
          cast(to.weights, weights.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace fastdet::cpu
