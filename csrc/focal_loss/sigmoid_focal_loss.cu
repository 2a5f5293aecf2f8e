// SPDX-License-Identifier: BSD-3-Clause
// Sigmoid focal loss (focal_loss.h) and its gradient: one pass each. A thread takes as many logits
// as one load of 16 bytes holds. Labels are never expanded to a target for each logit: the target
// of a logit is 1 if its column is its row's label. The sum of all losses writes no single loss:
// each block sums its own losses, and one more block sums the results of the blocks, in a fixed
// order.
//
// For 200k x 80 floats each pass moves 128 MB, 38 us at 3.35 TB/s. A logit takes about 50
// instructions for the loss and 60 for the gradient, half of them for the label and the addresses:
// 27 and 32 us, at the same time as the memory traffic. Without the GPU's own 2^x and 1 / x they
// would be twice as many; with these instructions, results differ from the CPU's in the sixth
// digit. An exponent other than 2 takes about 60 more. The sum reads 64 MB, 19 us, so its
// instructions are the limit. The sum and its gradient together move 192 MB.
#include <limits>

#include "../device/packs.cuh"
#include "../tensors/repeated_grad.h"
#include "contract.h"
#include "focal_loss.h"

namespace fastdet::cuda {

namespace {

// One instruction each, with an error of at most 2 ulp. Subnormal numbers count as 0.
__device__ inline float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

__device__ inline float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

__device__ inline Sigmoid<double> fast_sigmoid_of(double x) { return sigmoid_of(x); }

__device__ inline Sigmoid<float> fast_sigmoid_of(float x) {
  const float e = exp2_of(-fabsf(x) * 1.44269504f);
  const float larger = reciprocal(1 + e), smaller = e * larger;
  // log(1 + e) = 2 artanh(e / (e + 2)), with the polynomial of maths.h.
  const float s = e * reciprocal(e + 2), z = s * s;
  float p = fmaf(0.281783343f, z, 0.279606029f);
  p = fmaf(p, z, 0.400249103f);
  p = fmaf(p, z, 0.666663147f);
  return {x < 0 ? smaller : larger, x < 0 ? larger : smaller, s * fmaf(p, z, 2.f)};
}

// The loss of target 0, or its derivative, without a weight.
template <bool kBackward, bool kSquare, typename S>
__device__ S of_target_zero(S x, S gamma) {
  const Sigmoid<S> sigmoid = fast_sigmoid_of(x);
  if constexpr (kBackward) return focal_loss_backward<kSquare>(x, sigmoid, gamma);
  return focal_loss<kSquare>(x, sigmoid, gamma);
}

template <typename S>
struct DenseTargets {
  const S* values;

  template <bool kBackward, bool kSquare, int n>
  __device__ Pack<S, n> apply(const Pack<S, n>& logits, int64_t first, int64_t count,
                              const FocalWeights<S>& w) const {
    const Pack<S, n> targets = load_pack<n>(values + first, count);
    Pack<S, n> out;
    for (int k = 0; k < n; ++k) {
      const Sigmoid<S> sigmoid = fast_sigmoid_of(logits[k]);
      if constexpr (kBackward)
        out[k] = dense_focal_loss_backward<kSquare>(logits[k], targets[k], sigmoid, w);
      else
        out[k] = dense_focal_loss<kSquare>(logits[k], targets[k], sigmoid, w);
    }
    return out;
  }
};

// What the labels of the rows say about each value of a pack, one bit for each value.
struct LabelBits {
  unsigned positive = 0, ignored = 0, wrong = 0;

  // For values [first, first + count) of rows of `width`. A pack touches few rows, usually one.
  __device__ LabelBits(const int64_t* labels, int64_t width, int64_t first, int count) {
    int64_t row = first / width, column = first - row * width;
    for (int begin = 0, end; begin < count; begin = end, column = 0, ++row) {
      const int64_t label = labels[row];
      end = static_cast<int>(min_of<int64_t>(count, begin + width - column));
      const unsigned all = (1u << end) - (1u << begin);
      // The comparison is unsigned, so that negative numbers are large.
      if (uint64_t(label - column) < uint64_t(end - begin))
        positive |= 1u << (begin + static_cast<int>(label - column));
      if (label == kIgnoredLabel) ignored |= all;
      if (uint64_t(label + 2) >= uint64_t(width + 2)) wrong |= all;
    }
  }
};

template <typename S>
struct LabelTargets {
  const int64_t* labels;
  int64_t width;

  template <bool kBackward, bool kSquare, int n>
  __device__ Pack<S, n> apply(const Pack<S, n>& logits, int64_t first, int64_t count,
                              const FocalWeights<S>& w) const {
    // The loss of target 1 at x is that of target 0 at -x; the derivative changes its sign.
    const S weight_of_positive = kBackward ? -w.positive : w.positive;
    const LabelBits bits(labels, width, first, static_cast<int>(min_of<int64_t>(n, count)));
    Pack<S, n> out;
    for (int k = 0; k < n; ++k) {
      const bool positive = (bits.positive & 1u << k) != 0;
      const S x = positive ? -logits[k] : logits[k];
      out[k] = (positive ? weight_of_positive : w.negative) *
               of_target_zero<kBackward, kSquare>(x, w.gamma);
    }
    if (bits.ignored | bits.wrong) {
      for (int k = 0; k < n; ++k) {
        if (bits.ignored & 1u << k) out[k] = S(0);
        if (bits.wrong & 1u << k) out[k] = std::numeric_limits<S>::quiet_NaN();
      }
    }
    return out;
  }
};

template <typename S, typename T, int n>
__device__ Pack<S, n> widened(const Pack<T, n>& pack) {
  Pack<S, n> wide;
  for (int k = 0; k < n; ++k) wide[k] = static_cast<S>(pack[k]);
  return wide;
}

// The gradients of a pack; see RepeatedGrad.
template <int n, typename S>
__device__ Pack<S, n> load_grad(const S* grad, int64_t repeat, int64_t first, int64_t count) {
  if (repeat == 1) return load_pack<n>(grad + first, count);
  const int64_t last = first + min_of<int64_t>(n, count) - 1,
                group = first < repeat ? 0 : first / repeat;
  Pack<S, n> pack;
  if (last < (group + 1) * repeat) {
    const S value = grad[group];
    for (int k = 0; k < n; ++k) pack[k] = value;
  } else {
    for (int k = 0; k < n; ++k) pack[k] = grad[min_of(first + k, last) / repeat];
  }
  return pack;
}

template <bool kSquare, typename T, typename Targets>
void forward(int64_t n, const T* inputs, const Targets& targets, const FocalWeights<Sum<T>>& w,
             Sum<T>* loss, cudaStream_t stream) {
  constexpr int kWidth = kPackWidth<T>;
  for_each((n + kWidth - 1) / kWidth, stream, [=] __device__(int64_t i) {
    const int64_t first = i * kWidth, count = n - first;
    const auto logits = widened<Sum<T>>(load_pack<kWidth>(inputs + first, count));
    store_pack(loss + first, targets.template apply<false, kSquare>(logits, first, count, w),
               count);
  });
}

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;
constexpr int kPacksPerThread = 16;  // that are summed

// The sum over all threads of a block, valid in thread 0.
template <typename S>
__device__ S sum_of_block(S value) {
  __shared__ S of_warps[kThreads / kWarp];
  for (int d = kWarp / 2; d > 0; d /= 2) value += __shfl_xor_sync(kAllLanes, value, d);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  S sum = S(0);
  for (const S of_warp : of_warps) sum += of_warp;
  return sum;
}

template <bool kSquare, typename T, typename Targets>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(int64_t n, const T* inputs, Targets targets, FocalWeights<Sum<T>> w, Sum<T>* sums) {
  constexpr int kWidth = kPackWidth<T>;
  Sum<T> sum = 0;
  for (int i = 0; i < kPacksPerThread; ++i) {
    const int64_t pack = (int64_t(blockIdx.x) * kPacksPerThread + i) * kThreads + threadIdx.x;
    const int64_t first = pack * kWidth, count = n - first;
    if (count <= 0) break;
    const auto logits = widened<Sum<T>>(load_pack<kWidth>(inputs + first, count));
    const auto losses = targets.template apply<false, kSquare>(logits, first, count, w);
    for (int k = 0; k < kWidth; ++k)
      if (k < count) sum += losses[k];
  }
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <typename S>
__global__ void add_up_kernel(int64_t n, const S* sums, S* out) {
  S sum = S(0);
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += sums[i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *out = sum;
}

template <bool kSquare, typename T, typename Targets>
void sum_losses(const Tensor& inputs, const Targets& targets, const FocalWeights<Sum<T>>& w,
                Sum<T>* out) {
  const int64_t n = inputs.numel(), of_block = kPackWidth<T> * kPacksPerThread * kThreads;
  const int64_t blocks = (n + of_block - 1) / of_block;
  const Tensor storage = empty(inputs, {blocks}, scalar_type_of<Sum<T>>());
  auto* const sums = mutable_data<Sum<T>>(storage);
  const cudaStream_t stream = current_stream(inputs);
  launch(sum_kernel<kSquare, T, Targets>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         stream, n, data<T>(inputs), targets, w, sums);
  launch(add_up_kernel<Sum<T>>, dim3(1), dim3(kThreads), 0, stream, blocks, sums, out);
}

template <bool kSquare, typename T, typename Targets>
void backward(int64_t n, const Sum<T>* grad, int64_t repeat, const T* inputs,
              const Targets& targets, const FocalWeights<Sum<T>>& w, T* out, cudaStream_t stream) {
  constexpr int kWidth = kPackWidth<T>;
  for_each((n + kWidth - 1) / kWidth, stream, [=] __device__(int64_t i) {
    const int64_t first = i * kWidth, count = n - first;
    const auto logits = widened<Sum<T>>(load_pack<kWidth>(inputs + first, count));
    const auto derivatives = targets.template apply<true, kSquare>(logits, first, count, w);
    const auto upstream = load_grad<kWidth>(grad, repeat, first, count);
    Pack<T, kWidth> result;
    for (int k = 0; k < kWidth; ++k) result[k] = static_cast<T>(upstream[k] * derivatives[k]);
    store_pack(out + first, result, count);
  });
}

// Calls body<kSquare>(targets).
template <typename S, typename Body>
void dispatch(const Tensor& targets, const Tensor& inputs, double gamma, const Body& body) {
  const auto with = [&](const auto& t) {
    gamma == 2 ? body.template operator()<true>(t) : body.template operator()<false>(t);
  };
  if (targets.scalar_type() == kInt64)
    with(LabelTargets<S>{data<int64_t>(targets), inputs.size(inputs.dim() - 1)});
  else
    with(DenseTargets<S>{data<S>(targets)});
}

Tensor targets_input(const Tensor& targets, ScalarType dtype) {
  if (targets.scalar_type() == kInt64) return torch::stable::contiguous(targets);
  return aligned(box_input(targets, dtype));
}

}  // namespace

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss", inputs, targets);
  const DeviceGuard guard(inputs.get_device_index());
  const auto dtype = box_dtype(inputs);
  const Tensor inputs_in = aligned(torch::stable::contiguous(inputs));
  const Tensor targets_in = targets_input(targets, dtype);
  const Tensor out = empty_like(inputs, dtype);
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    dispatch<S>(targets_in, inputs, gamma, [&]<bool kSquare>(const auto& t) {
      forward<kSquare>(inputs.numel(), data<T>(inputs_in), t, focal_weights<S>(alpha, gamma),
                       mutable_data<S>(out), current_stream(inputs));
    });
  });
  return out;
}

Tensor sigmoid_focal_loss_sum(const Tensor& inputs, const Tensor& targets, double alpha,
                              double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss_sum", inputs, targets);
  const DeviceGuard guard(inputs.get_device_index());
  const auto dtype = box_dtype(inputs);
  const Tensor inputs_in = aligned(torch::stable::contiguous(inputs));
  const Tensor targets_in = targets_input(targets, dtype);
  const Tensor out = empty(inputs, {}, dtype);
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    dispatch<S>(targets_in, inputs, gamma, [&]<bool kSquare>(const auto& t) {
      sum_losses<kSquare, T>(inputs_in, t, focal_weights<S>(alpha, gamma), mutable_data<S>(out));
    });
  });
  return out;
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  check_sigmoid_focal_loss_backward("sigmoid_focal_loss_backward", grad, inputs, targets);
  const DeviceGuard guard(inputs.get_device_index());
  const Tensor inputs_in = aligned(torch::stable::contiguous(inputs));
  const Tensor targets_in = targets_input(targets, box_dtype(inputs));
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor grad_in = aligned(repeated.compact);
  const Tensor out = empty_like(inputs, inputs.scalar_type());
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    dispatch<S>(targets_in, inputs, gamma, [&]<bool kSquare>(const auto& t) {
      backward<kSquare>(inputs.numel(), data<S>(grad_in), repeated.repeat, data<T>(inputs_in), t,
                        focal_weights<S>(alpha, gamma), mutable_data<T>(out),
                        current_stream(inputs));
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace fastdet::cuda
