// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA. Logits of any shape as one run of n.

template <bool kSquare, typename T>
void focal_loss_of(const T* inputs, const Sum<T>* __restrict__ targets, int64_t n,
                   const FocalWeights<Sum<T>>& weights, Sum<T>* __restrict__ out) {
  using S = Sum<T>;
  const FocalWeights<S> w = weights;
  if (targets)
    for (int64_t i = 0; i < n; ++i)
      out[i] = dense_focal_loss<kSquare>(static_cast<S>(inputs[i]), targets[i], w);
  else
    for (int64_t i = 0; i < n; ++i)
      out[i] = w.negative * focal_loss<kSquare>(static_cast<S>(inputs[i]), w.gamma);
}

template <typename T>
void sigmoid_focal_loss(const T* inputs, const Sum<T>* targets, int64_t n,
                        const FocalWeights<Sum<T>>& weights, Sum<T>* out) {
  if (weights.gamma == 2)
    focal_loss_of<true>(inputs, targets, n, weights, out);
  else
    focal_loss_of<false>(inputs, targets, n, weights, out);
}

template <bool kSquare, typename T>
void focal_loss_backward_of(const T* inputs, const Sum<T>* __restrict__ targets, int64_t n,
                            const FocalWeights<Sum<T>>& weights, const Sum<T>* __restrict__ grad,
                            T* __restrict__ out) {
  using S = Sum<T>;
  const FocalWeights<S> w = weights;
  if (targets)
    for (int64_t i = 0; i < n; ++i)
      out[i] = static_cast<T>(
          grad[i] * dense_focal_loss_backward<kSquare>(static_cast<S>(inputs[i]), targets[i], w));
  else
    for (int64_t i = 0; i < n; ++i)
      out[i] = static_cast<T>(grad[i] * (w.negative * focal_loss_backward<kSquare>(
                                                          static_cast<S>(inputs[i]), w.gamma)));
}

template <typename T>
void sigmoid_focal_loss_backward(const T* inputs, const Sum<T>* targets, int64_t n,
                                 const FocalWeights<Sum<T>>& weights, const Sum<T>* grad, T* out) {
  if (weights.gamma == 2)
    focal_loss_backward_of<true>(inputs, targets, n, weights, grad, out);
  else
    focal_loss_backward_of<false>(inputs, targets, n, weights, grad, out);
}
