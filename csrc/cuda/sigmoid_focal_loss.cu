// SPDX-License-Identifier: BSD-3-Clause
// Sigmoid focal loss of logits (see ../sigmoid_focal_loss.h) and its derivative by the logits. One
// thread a logit, which finds its target in its row's label, or reads it.
#include <limits>

#include "../checks.h"
#include "../repeated_grad.h"
#include "../sigmoid_focal_loss.h"
#include "launch.cuh"

namespace fastdet::cuda {

namespace {

// The target of each logit, from labels or dense.
template <typename S>
struct Targets {
  const S* dense;  // or null
  const int64_t* labels;
  int64_t num_classes;

  Targets(const Tensor& targets, const Tensor& inputs)
      : dense(nullptr), labels(nullptr), num_classes(1) {
    if (targets.scalar_type() == kInt64) {
      labels = data<int64_t>(targets);
      num_classes = inputs.size(inputs.dim() - 1);
    } else {
      dense = data<S>(targets);
    }
  }
};

// of_label(x or -x) is the loss of target 0, of_dense(x, t) that of any; either is the derivative
// in the backward, where it changes its sign together with x.
template <typename S, typename OfLabel, typename OfDense>
__device__ S at_target(const Targets<S>& targets, int64_t i, S x, const FocalWeights<S>& w,
                       S sign_of_positive, OfLabel of_label, OfDense of_dense) {
  if (targets.dense) return of_dense(x, targets.dense[i]);
  const int64_t label = targets.labels[i / targets.num_classes];
  if (label == kIgnoredLabel) return S(0);
  if (label < -1 || label >= targets.num_classes) return std::numeric_limits<S>::quiet_NaN();
  return label == i % targets.num_classes ? sign_of_positive * w.positive * of_label(-x)
                                          : w.negative * of_label(x);
}

template <bool kSquare, typename T, typename S>
void forward(int64_t n, const T* inputs, const Targets<S>& targets, const FocalWeights<S>& w,
             S* loss, cudaStream_t stream) {
  for_each(n, stream, [=] __device__(int64_t i) {
    loss[i] = at_target(
        targets, i, static_cast<S>(inputs[i]), w, S(1),
        [&](S x) { return focal_loss<kSquare>(x, w.gamma); },
        [&](S x, S t) { return dense_focal_loss<kSquare>(x, t, w); });
  });
}

template <bool kSquare, typename T, typename S>
void backward(int64_t n, const S* grad, int64_t repeat, const T* inputs, const Targets<S>& targets,
              const FocalWeights<S>& w, T* out, cudaStream_t stream) {
  for_each(n, stream, [=] __device__(int64_t i) {
    const S derivative = at_target(
        targets, i, static_cast<S>(inputs[i]), w, S(-1),
        [&](S x) { return focal_loss_backward<kSquare>(x, w.gamma); },
        [&](S x, S t) { return dense_focal_loss_backward<kSquare>(x, t, w); });
    out[i] = static_cast<T>(grad[i / repeat] * derivative);
  });
}

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

Tensor targets_input(const Tensor& targets, ScalarType dtype) {
  return torch::stable::contiguous(targets.scalar_type() == kInt64 ? targets
                                                                   : cast(targets, dtype));
}

}  // namespace

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss", inputs, targets);
  const DeviceGuard guard(inputs.get_device_index());
  const auto dtype = box_dtype(inputs);
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = targets_input(targets, dtype);
  const Tensor out = empty_like(inputs, dtype);
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto run = gamma == 2 ? forward<true, T, S> : forward<false, T, S>;
    run(inputs.numel(), data<T>(inputs_in), Targets<S>(targets_in, inputs),
        focal_weights<S>(alpha, gamma), mutable_data<S>(out), current_stream(inputs));
  });
  return out;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  check_sigmoid_focal_loss_backward("sigmoid_focal_loss_backward", grad, inputs, targets);
  const DeviceGuard guard(inputs.get_device_index());
  const Tensor inputs_in = torch::stable::contiguous(inputs);
  const Tensor targets_in = targets_input(targets, box_dtype(inputs));
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor out = empty_like(inputs, inputs.scalar_type());
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto run = gamma == 2 ? backward<true, T, S> : backward<false, T, S>;
    run(inputs.numel(), data<S>(repeated.compact), repeated.repeat, data<T>(inputs_in),
        Targets<S>(targets_in, inputs), focal_weights<S>(alpha, gamma), mutable_data<T>(out),
        current_stream(inputs));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace fastdet::cuda
