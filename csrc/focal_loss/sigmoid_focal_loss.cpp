// SPDX-License-Identifier: BSD-3-Clause
// Sigmoid focal loss (focal_loss.h) and its gradient with respect to the logits: one pass each.
// Beside inputs and outputs, only the sum needs memory: a block of losses for each thread, and one
// number for each block. Class labels are never expanded to a target for each logit: a block of
// rows goes through the loop of target 0. Then the logit of each row's label goes through the same
// loop again, as -x.
#include <algorithm>
#include <iterator>
#include <limits>
#include <vector>

#include "../host/grad_blocks.h"
#include "../host/huge_pages.h"
#include "../host/parallel.h"
#include "contract.h"
#include "focal_loss.h"
#include "sigmoid_focal_loss.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrainLogits = 1 << 13;
constexpr int64_t kBlockLogits = 1 << 12;  // the results of a block stay in the L1 cache
constexpr int64_t kBlockRows = 256;

// Targets of both kinds: a row has one label, or a row is a single logit with a dense target.
template <typename S>
struct Targets {
  const S* dense;  // or null
  const int64_t* labels;
  int64_t width, num_rows;

  Targets(const Tensor& targets, const Tensor& inputs) : dense(nullptr), labels(nullptr) {
    if (targets.scalar_type() == kInt64) {
      labels = data<int64_t>(targets);
      width = inputs.size(inputs.dim() - 1);
      num_rows = targets.numel();
    } else {
      dense = data<S>(targets);
      width = 1;
      num_rows = inputs.numel();
    }
  }

  int64_t block_rows() const {
    return std::clamp<int64_t>(kBlockLogits / std::max<int64_t>(1, width), 1, kBlockRows);
  }
  int64_t grain_rows() const {
    return std::max<int64_t>(1, kGrainLogits / std::max<int64_t>(1, width));
  }

  // Calls body(begin, end) over rows: all rows of a thread, or blocks of them if there are labels.
  template <typename Body>
  void for_each_block(const Body& body) const {
    const int64_t rows = dense ? num_rows : block_rows();
    parallel_for(num_rows, grain_rows(), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; row += rows) body(row, std::min(row + rows, last));
    });
  }
};

// The logits of a block of rows at the labels of the rows, negated. Places count from the block's
// first logit, where `inputs` begins.
template <typename T>
struct Positives {
  int64_t count = 0;
  int64_t place[kBlockRows];
  T logits[kBlockRows];

  Positives(const Targets<Sum<T>>& targets, const T* inputs, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t label = targets.labels[row];
      if (label < 0 || label >= targets.width) continue;
      place[count] = (row - begin) * targets.width + label;
      logits[count] = static_cast<T>(-static_cast<Sum<T>>(inputs[place[count]]));
      ++count;
    }
  }
};

// Sets ignored rows to 0, and rows whose label is not a class to NaN. `out` begins with row
// `begin`.
template <typename S, typename Out>
void overwrite_special_rows(const Targets<S>& targets, int64_t begin, int64_t end, Out* out) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t label = targets.labels[row];
    if (label >= -1 && label < targets.width) continue;
    const float value = label == kIgnoredLabel ? 0.f : std::numeric_limits<float>::quiet_NaN();
    std::fill_n(out + (row - begin) * targets.width, targets.width, static_cast<Out>(value));
  }
}

// The weights with which the loop of target 0 at -x gives the loss of target 1 at x.
template <typename S>
FocalWeights<S> mirrored(const FocalWeights<S>& w) {
  return {w.negative, w.positive, w.gamma};
}

// Writes the losses of rows [begin, end).
template <typename T>
void losses_of(const Targets<Sum<T>>& targets, const T* inputs, const FocalWeights<Sum<T>>& weights,
               int64_t begin, int64_t end, Sum<T>* loss) {
  const auto run = current_loops<FocalLossLoops<T>>().sigmoid_focal_loss;
  const int64_t first = begin * targets.width;
  run(inputs + first, targets.dense ? targets.dense + first : nullptr,
      (end - begin) * targets.width, weights, loss);
  if (targets.dense) return;
  const Positives<T> positives(targets, inputs + first, begin, end);
  Sum<T> results[kBlockRows];
  run(positives.logits, nullptr, positives.count, mirrored(weights), results);
  for (int64_t k = 0; k < positives.count; ++k) loss[positives.place[k]] = results[k];
  overwrite_special_rows(targets, begin, end, loss);
}

// Sums in 16 partial sums, an order that vectors of any width can keep.
template <typename S>
S sum_of(const S* values, int64_t n) {
  constexpr int64_t kLanes = 16;
  S lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += values[i + l];
  for (; i < n; ++i) lanes[i % kLanes] += values[i];
  S sum = S(0);
  for (const S lane : lanes) sum += lane;
  return sum;
}

Tensor targets_input(const Tensor& targets, ScalarType dtype) {
  return torch::stable::contiguous(targets.scalar_type() == kInt64 ? targets
                                                                   : cast(targets, dtype));
}

}  // namespace

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss", inputs, targets);
  const auto dtype = box_dtype(inputs);
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = targets_input(targets, dtype);
  const Tensor out = in_huge_pages(empty_like(inputs, dtype));
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Targets<S> t(targets_in, inputs);
    const FocalWeights<S> weights = focal_weights<S>(alpha, gamma);
    const T* logits = data<T>(inputs_in);
    S* loss = mutable_data<S>(out);
    t.for_each_block([&](int64_t begin, int64_t end) {
      losses_of<T>(t, logits, weights, begin, end, loss + begin * t.width);
    });
  });
  return out;
}

Tensor sigmoid_focal_loss_sum(const Tensor& inputs, const Tensor& targets, double alpha,
                              double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss_sum", inputs, targets);
  const auto dtype = box_dtype(inputs);
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = targets_input(targets, dtype);
  const Tensor out = empty(inputs, {}, dtype);
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Targets<S> t(targets_in, inputs);
    const FocalWeights<S> weights = focal_weights<S>(alpha, gamma);
    const int64_t rows = t.dense ? kBlockLogits : t.block_rows();
    std::vector<S> sums((t.num_rows + rows - 1) / rows);
    const int64_t grain = std::max<int64_t>(1, t.grain_rows() / rows);
    parallel_for(std::ssize(sums), grain, [&](int64_t first, int64_t last) {
      std::vector<S> losses(rows * t.width);
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i * rows, end = std::min(begin + rows, t.num_rows);
        losses_of<T>(t, data<T>(inputs_in), weights, begin, end, losses.data());
        sums[i] = sum_of(losses.data(), (end - begin) * t.width);
      }
    });
    *mutable_data<S>(out) = sum_of(sums.data(), std::ssize(sums));
  });
  return out;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  const char* const op = "sigmoid_focal_loss_backward";
  check_sigmoid_focal_loss_backward(op, grad, inputs, targets);
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = targets_input(targets, box_dtype(inputs));
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor out = in_huge_pages(empty_like(inputs, inputs.scalar_type()));
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const Targets<S> t(targets_in, inputs);
    const FocalWeights<S> weights = focal_weights<S>(alpha, gamma);
    const T* logits = data<T>(inputs_in);
    const S* upstream = data<S>(repeated.compact);
    T* result = mutable_data<T>(out);
    const auto run = current_loops<FocalLossLoops<T>>().sigmoid_focal_loss_backward;
    t.for_each_block([&](int64_t begin, int64_t end) {
      for_grad_blocks<S>(
          repeated, begin * t.width, end * t.width, [&](int64_t i, int64_t count, const S* g) {
            run(logits + i, t.dense ? t.dense + i : nullptr, count, weights, g, result + i);
          });
      if (t.dense) return;
      const int64_t first_logit = begin * t.width;
      const Positives<T> positives(t, logits + first_logit, begin, end);
      S grads[kBlockRows];
      T results[kBlockRows];
      for (int64_t k = 0; k < positives.count; ++k)
        grads[k] = -upstream[(first_logit + positives.place[k]) / repeated.repeat];
      run(positives.logits, nullptr, positives.count, mirrored(weights), grads, results);
      for (int64_t k = 0; k < positives.count; ++k)
        result[first_logit + positives.place[k]] = results[k];
      overwrite_special_rows(t, begin, end, result + first_logit);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace fastdet::cpu
