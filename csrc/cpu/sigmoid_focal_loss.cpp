// SPDX-License-Identifier: BSD-3-Clause
// Sigmoid focal loss of logits (see ../sigmoid_focal_loss.h) and its derivative by the logits, one
// pass each, no memory beside inputs and outputs. Class labels are never spread out to a target for
// each logit: all logits run through the loop of target 0, then each row's one class is put right.
#include "../sigmoid_focal_loss.h"

#include <algorithm>
#include <limits>

#include "../checks.h"
#include "grad_blocks.h"
#include "loops.h"
#include "parallel.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrainLogits = 1 << 13;

template <typename S>
S positive_loss(S x, const FocalWeights<S>& w) {
  return w.positive *
         (w.gamma == 2 ? focal_loss<true>(-x, w.gamma) : focal_loss<false>(-x, w.gamma));
}

template <typename S>
S positive_loss_backward(S x, const FocalWeights<S>& w) {
  return -w.positive * (w.gamma == 2 ? focal_loss_backward<true>(-x, w.gamma)
                                     : focal_loss_backward<false>(-x, w.gamma));
}

// Calls body(i) for the one logit of each row of [begin, end) that its label names; rows that are
// ignored become 0, rows whose label is no class NaN.
template <typename Out, typename Body>
void put_labels_right(const int64_t* labels, int64_t num_classes, int64_t begin, int64_t end,
                      Out* out, const Body& body) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t label = labels[row], first = row * num_classes;
    if (label == -1) continue;
    if (label >= 0 && label < num_classes)
      body(first + label);
    else
      std::fill_n(
          out + first, num_classes,
          static_cast<Out>(label == kIgnoredLabel ? 0.f : std::numeric_limits<float>::quiet_NaN()));
  }
}

int64_t grain_rows(int64_t num_classes) {
  return std::max<int64_t>(1, kGrainLogits / std::max<int64_t>(1, num_classes));
}

}  // namespace

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss", inputs, targets);
  const auto dtype = box_dtype(inputs);
  const bool by_label = targets.scalar_type() == kInt64;
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = torch::stable::contiguous(by_label ? targets : cast(targets, dtype));
  const Tensor out = empty_like(inputs, dtype);
  // A row is what a label stands for, or a single logit.
  const int64_t width = by_label ? inputs.size(inputs.dim() - 1) : 1;
  const int64_t num_rows = by_label ? targets.numel() : inputs.numel();
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const FocalWeights<S> weights = focal_weights<S>(alpha, gamma);
    const T* logits = data<T>(inputs_in);
    const S* dense = by_label ? nullptr : data<S>(targets_in);
    S* loss = mutable_data<S>(out);
    parallel_for(num_rows, grain_rows(width), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * width;
      feature_loops<T>().sigmoid_focal_loss(logits + first, dense ? dense + first : nullptr,
                                            (end - begin) * width, weights, loss + first);
      if (dense) return;
      put_labels_right(data<int64_t>(targets_in), width, begin, end, loss, [&](int64_t i) {
        loss[i] = positive_loss(static_cast<S>(logits[i]), weights);
      });
    });
  });
  return out;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  const char* const op = "sigmoid_focal_loss_backward";
  check_sigmoid_focal_loss_backward(op, grad, inputs, targets);
  const auto dtype = box_dtype(inputs);
  const bool by_label = targets.scalar_type() == kInt64;
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = torch::stable::contiguous(by_label ? targets : cast(targets, dtype));
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor out = empty_like(inputs, inputs.scalar_type());
  const int64_t width = by_label ? inputs.size(inputs.dim() - 1) : 1;
  const int64_t num_rows = by_label ? targets.numel() : inputs.numel();
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const FocalWeights<S> weights = focal_weights<S>(alpha, gamma);
    const T* logits = data<T>(inputs_in);
    const S* dense = by_label ? nullptr : data<S>(targets_in);
    const S* upstream = data<S>(repeated.compact);
    T* result = mutable_data<T>(out);
    parallel_for(num_rows, grain_rows(width), [&](int64_t begin, int64_t end) {
      for_grad_blocks<S>(
          repeated, begin * width, end * width, [&](int64_t i, int64_t count, const S* g) {
            feature_loops<T>().sigmoid_focal_loss_backward(logits + i, dense ? dense + i : nullptr,
                                                           count, weights, g, result + i);
          });
      if (dense) return;
      put_labels_right(data<int64_t>(targets_in), width, begin, end, result, [&](int64_t i) {
        const S derivative = positive_loss_backward(static_cast<S>(logits[i]), weights);
        result[i] = static_cast<T>(upstream[i / repeated.repeat] * derivative);
      });
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace fastdet::cpu
