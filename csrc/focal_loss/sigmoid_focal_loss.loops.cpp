// SPDX-License-Identifier: BSD-3-Clause
// The focal loss of n adjacent logits. float16 is converted to float32 block by block, because GCC
// does not vectorise a loop that converts each value on its own.
#include "sigmoid_focal_loss.loops.h"

#include <type_traits>

#include "../isa/lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr int64_t kHalfBlock = 256;

// widen is exact; narrow rounds once, to nearest.
static void widen(const Half* from, int64_t n, float* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

static void narrow(const float* from, int64_t n, Half* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) to[i] = static_cast<Half>(from[i]);
}

template <bool kSquare, typename T>
void focal_loss_of(const T* inputs, const Sum<T>* __restrict__ targets, int64_t n,
                   const FocalWeights<Sum<T>>& weights, Sum<T>* __restrict__ out) {
  using S = Sum<T>;
  const FocalWeights<S> w = weights;
  for (int64_t i = 0; targets && i < n; ++i) {
    const S x = static_cast<S>(inputs[i]);
    out[i] = dense_focal_loss<kSquare>(x, targets[i], sigmoid_of(x), w);
  }
  for (int64_t i = 0; !targets && i < n; ++i) {
    const S x = static_cast<S>(inputs[i]);
    out[i] = w.negative * focal_loss<kSquare>(x, sigmoid_of(x), w.gamma);
  }
}

template <typename T>
void sigmoid_focal_loss(const T* inputs, const Sum<T>* targets, int64_t n,
                        const FocalWeights<Sum<T>>& weights, Sum<T>* out) {
  if constexpr (std::is_same_v<T, Half>) {
    float logits[kHalfBlock];
    for (int64_t i = 0; i < n; i += kHalfBlock) {
      const int64_t count = min_of(kHalfBlock, n - i);
      widen(inputs + i, count, logits);
      sigmoid_focal_loss<float>(logits, targets ? targets + i : nullptr, count, weights, out + i);
    }
  } else if (weights.gamma == 2) {
    focal_loss_of<true>(inputs, targets, n, weights, out);
  } else {
    focal_loss_of<false>(inputs, targets, n, weights, out);
  }
}

template <bool kSquare, typename T>
void focal_loss_backward_of(const T* inputs, const Sum<T>* __restrict__ targets, int64_t n,
                            const FocalWeights<Sum<T>>& weights, const Sum<T>* __restrict__ grad,
                            T* __restrict__ out) {
  using S = Sum<T>;
  const FocalWeights<S> w = weights;
  for (int64_t i = 0; targets && i < n; ++i) {
    const S x = static_cast<S>(inputs[i]);
    out[i] = static_cast<T>(grad[i] *
                            dense_focal_loss_backward<kSquare>(x, targets[i], sigmoid_of(x), w));
  }
  for (int64_t i = 0; !targets && i < n; ++i) {
    const S x = static_cast<S>(inputs[i]);
    out[i] = static_cast<T>(grad[i] *
                            (w.negative * focal_loss_backward<kSquare>(x, sigmoid_of(x), w.gamma)));
  }
}

template <typename T>
void sigmoid_focal_loss_backward(const T* inputs, const Sum<T>* targets, int64_t n,
                                 const FocalWeights<Sum<T>>& weights, const Sum<T>* grad, T* out) {
  if constexpr (std::is_same_v<T, Half>) {
    float logits[kHalfBlock], results[kHalfBlock];
    for (int64_t i = 0; i < n; i += kHalfBlock) {
      const int64_t count = min_of(kHalfBlock, n - i);
      widen(inputs + i, count, logits);
      sigmoid_focal_loss_backward<float>(logits, targets ? targets + i : nullptr, count, weights,
                                         grad + i, results);
      narrow(results, count, out + i);
    }
  } else if (weights.gamma == 2) {
    focal_loss_backward_of<true>(inputs, targets, n, weights, grad, out);
  } else {
    focal_loss_backward_of<false>(inputs, targets, n, weights, grad, out);
  }
}

template <typename T>
constexpr FocalLossLoops<T> kLoops = {
    .sigmoid_focal_loss = sigmoid_focal_loss<T>,
    .sigmoid_focal_loss_backward = sigmoid_focal_loss_backward<T>,
};

}  // namespace

FASTDET_LOOPS(FocalLossLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(FocalLossLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(FocalLossLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(FocalLossLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
