// SPDX-License-Identifier: BSD-3-Clause
// Sigmoid focal loss (focal_loss.h) and its gradient. A thread loads 16 bytes of logits at a time.
// Labels are never expanded to a target for each logit: the target of a logit is 1 if its column is
// its row's label. The sum of all losses writes no single loss: each block sums its own losses, and
// one more block sums the results of the blocks, in a fixed order.
//
// If the logits require a gradient, the pass that sums the losses also writes the gradient of the
// sum, as if the upstream gradient were 1. Then backward reads the upstream gradient on the device:
// if it is 1, nothing is left to do; otherwise the gradient is computed anew, in its place. This
// moves no more bytes than scaling it would, and rounds half types only once.
//
// Estimated, not measured, for 200k x 80 floats with labels on an H100: the losses, the gradient,
// or the sum with the gradient move 128 MB, 38 us at 3.35 TB/s; the sum alone 64 MB, 19 us. A logit
// takes 44 instructions for the sum and 55 with the gradient, 24 and 30 us, at the same time as the
// memory traffic. With the GPU's own 2^x and 1 / x, results differ from the CPU's in the sixth
// digit. An exponent other than 2 takes about 60 more.
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

// The losses of a pack and their derivatives. What a kernel does not use is not computed.
template <typename S, int n>
struct LossPack {
  Pack<S, n> losses, derivatives;
};

template <typename S>
struct DenseTargets {
  const S* values;

  // Where a pack begins.
  using Place = int64_t;
  __host__ __device__ Place place_of(int64_t value) const { return value; }
  __device__ void move(Place& place, Place step) const { place += step; }

  template <bool kSquare, int n>
  __device__ LossPack<S, n> apply(const Pack<S, n>& logits, Place first, int64_t count,
                                  const FocalWeights<S>& w) const {
    const Pack<S, n> targets = load_pack<n>(values + first, count);
    LossPack<S, n> out;
#pragma unroll  // without this, the pack of doubles is in local memory
    for (int k = 0; k < n; ++k) {
      const Sigmoid<S> sigmoid = fast_sigmoid_of(logits[k]);
      out.losses[k] = dense_focal_loss<kSquare>(logits[k], targets[k], sigmoid, w);
      out.derivatives[k] = dense_focal_loss_backward<kSquare>(logits[k], targets[k], sigmoid, w);
    }
    return out;
  }
};

struct RowAndColumn {
  int64_t row, column;
};

// What the labels of the rows say about each value of a pack, one bit for each value.
struct LabelBits {
  unsigned positive = 0, ignored = 0, wrong = 0;

  // For the first `count` values of a pack of n, from this place on. Comparisons are unsigned, so
  // that negative numbers are large.
  template <int n>
  static __device__ LabelBits of(const int64_t* labels, int64_t width, RowAndColumn place,
                                 int count) {
    LabelBits bits;
    auto [row, column] = place;
    if (column + n <= width) {  // the usual case: one row
      const uint64_t label = labels[row], of_pack = label - column;
      if (of_pack < n) bits.positive = 1u << of_pack;
      bits.mark_special(label, width, (1u << n) - 1);
      return bits;
    }
    for (int begin = 0, end; begin < count; begin = end, column = 0, ++row) {
      const uint64_t label = labels[row], of_row = label - column;
      end = static_cast<int>(min_of<int64_t>(count, begin + width - column));
      if (of_row < uint64_t(end - begin)) bits.positive |= 1u << (begin + of_row);
      bits.mark_special(label, width, (1u << end) - (1u << begin));
    }
    return bits;
  }

 private:
  __device__ void mark_special(uint64_t label, uint64_t width, unsigned values) {
    if (label + 1 <= width) return;  // background or a class
    (label == uint64_t(kIgnoredLabel) ? ignored : wrong) |= values;
  }
};

template <typename S>
struct LabelTargets {
  const int64_t* labels;
  int64_t width;

  // Where a pack begins. A step needs no division.
  using Place = RowAndColumn;
  __host__ __device__ Place place_of(int64_t value) const { return {value / width, value % width}; }
  __device__ void move(Place& place, const Place& step) const {
    const int64_t column = place.column + step.column;
    const bool carry = column >= width;
    place = {place.row + step.row + carry, carry ? column - width : column};
  }

  template <bool kSquare, int n>
  __device__ LossPack<S, n> apply(const Pack<S, n>& logits, const Place& place, int64_t count,
                                  const FocalWeights<S>& w) const {
    const auto bits =
        LabelBits::of<n>(labels, width, place, static_cast<int>(min_of<int64_t>(n, count)));
    LossPack<S, n> out;
    for (int k = 0; k < n; ++k) {
      // The loss of target 1 at x is that of target 0 at -x; the derivative changes its sign.
      const bool positive = (bits.positive & 1u << k) != 0;
      const S x = positive ? -logits[k] : logits[k];
      const Sigmoid<S> sigmoid = fast_sigmoid_of(x);
      out.losses[k] =
          (positive ? w.positive : w.negative) * focal_loss<kSquare>(x, sigmoid, w.gamma);
      out.derivatives[k] =
          (positive ? -w.positive : w.negative) * focal_loss_backward<kSquare>(x, sigmoid, w.gamma);
    }
    if (bits.ignored | bits.wrong) {
      for (int k = 0; k < n; ++k) {
        if (bits.ignored & 1u << k) out.losses[k] = out.derivatives[k] = S(0);
        if (bits.wrong & 1u << k)
          out.losses[k] = out.derivatives[k] = std::numeric_limits<S>::quiet_NaN();
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

// The logits with their targets, divided among threads. A thread takes `packs` packs, a block's
// width apart.
template <typename T, typename Targets>
struct Work {
  static constexpr int kWidth = kPackWidth<T>;
  static constexpr int64_t kStep = int64_t(kThreads) * kWidth;

  int64_t n;
  const T* logits;
  Targets targets;
  FocalWeights<Sum<T>> weights;
  typename Targets::Place step;
  int packs;

  Work(const Tensor& inputs, const Targets& targets, const FocalWeights<Sum<T>>& weights)
      : n(inputs.numel()),
        logits(data<T>(inputs)),
        targets(targets),
        weights(weights),
        step(n > 0 ? targets.place_of(kStep) : typename Targets::Place{}) {
    constexpr int64_t kFull = 1 << 18;  // threads
    packs = static_cast<int>(std::clamp<int64_t>(n / kWidth / kFull, 1, 16));
  }

  int64_t num_blocks() const { return (n + kStep * packs - 1) / (kStep * packs); }

  // Calls body(first, count, results) for each pack of this thread. `first` is the pack's first
  // value, and `count` the number of values from there to the end.
  template <bool kSquare, typename Body>
  __device__ void for_each_pack(Body body) const {
    int64_t first = int64_t(blockIdx.x) * packs * kStep + threadIdx.x * kWidth;
    auto place = targets.place_of(first);
    for (int i = 0; i < packs && first < n; ++i, first += kStep, targets.move(place, step)) {
      const int64_t count = n - first;
      const auto pack = widened<Sum<T>>(load_pack<kWidth>(logits + first, count));
      body(first, count, targets.template apply<kSquare>(pack, place, count, weights));
    }
  }
};

template <bool kSquare, typename T, typename Targets>
__global__ void __launch_bounds__(kThreads) loss_kernel(Work<T, Targets> work, Sum<T>* loss) {
  work.template for_each_pack<kSquare>([&](int64_t first, int64_t count, const auto& results) {
    store_pack(loss + first, results.losses, count);
  });
}

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

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

// One number on the device by which the sum is divided, or null for 1.
template <typename S>
struct Divisor {
  const S* number;

  __device__ S divide(S x) const { return number == nullptr ? x : x / *number; }
};

template <typename T, typename S, int n>
__device__ void store_grad(T* p, const Pack<S, n>& upstream, const Pack<S, n>& derivatives,
                           int64_t count) {
  Pack<T, n> grad;
  for (int k = 0; k < n; ++k) grad[k] = static_cast<T>(upstream[k] * derivatives[k]);
  store_pack(p, grad, count);
}

template <int n, typename S>
__device__ Pack<S, n> repeated(S value) {
  Pack<S, n> pack;
  for (int k = 0; k < n; ++k) pack[k] = value;
  return pack;
}

// The sum of each block's losses and, where `grad` is not nullptr, the gradient of the divided sum.
template <bool kSquare, typename T, typename Targets, typename Grad>
__global__ void __launch_bounds__(kThreads, sizeof(Sum<T>) > 4 ? 2 : 4)  // no spill in float64
    sum_kernel(Work<T, Targets> work, Divisor<Sum<T>> divisor, Sum<T>* sums, Grad grad) {
  constexpr int kWidth = kPackWidth<T>;
  const auto upstream = repeated<kWidth>(divisor.divide(Sum<T>(1)));
  Sum<T> sum = 0;
  work.template for_each_pack<kSquare>([&](int64_t first, int64_t count, const auto& results) {
    if constexpr (std::is_pointer_v<Grad>)
      store_grad(grad + first, upstream, results.derivatives, count);
    const int num = count < kWidth ? static_cast<int>(count) : kWidth;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += k < num ? results.losses[k] : Sum<T>(0);
  });
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <typename S>
__global__ void add_up_kernel(int64_t n, const S* sums, Divisor<S> divisor, S* out) {
  S sum = S(0);
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += sums[i];
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) *out = divisor.divide(sum);
}

// `grad` is a pointer to the gradient, or nullptr.
template <bool kSquare, typename T, typename Targets, typename Grad>
void sum_losses(const Tensor& out, const Work<T, Targets>& work, const Divisor<Sum<T>>& divisor,
                Grad grad) {
  using S = Sum<T>;
  const int64_t blocks = work.num_blocks();
  const Tensor storage = empty(out, {blocks}, scalar_type_of<S>());
  auto* const sums = mutable_data<S>(storage);
  const cudaStream_t stream = current_stream(out);
  launch(sum_kernel<kSquare, T, Targets, Grad>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
         0, stream, work, divisor, sums, grad);
  launch(add_up_kernel<S>, dim3(1), dim3(kThreads), 0, stream, blocks, sums, divisor,
         mutable_data<S>(out));
}

// The gradient of the losses, or of a divided sum; see RepeatedGrad.
template <typename S>
struct Upstream {
  const S* values;
  int64_t repeat;
  Divisor<S> divisor = {nullptr};  // of a sum
  bool one_is_done = false;        // nothing is left to do if the gradient of the sum is 1

  template <int n>
  __device__ Pack<S, n> load(int64_t first, int64_t count) const {
    if (repeat == 1) return load_pack<n>(values + first, count);
    const int64_t last = first + min_of<int64_t>(n, count) - 1, group = first / repeat;
    if (last < (group + 1) * repeat) return repeated<n>(values[group]);
    Pack<S, n> pack;
    for (int k = 0; k < n; ++k) pack[k] = values[min_of(first + k, last) / repeat];
    return pack;
  }
};

template <bool kSquare, typename T, typename Targets>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Work<T, Targets> work, Upstream<Sum<T>> upstream, T* out) {
  constexpr int kWidth = kPackWidth<T>;
  if (upstream.one_is_done && *upstream.values == Sum<T>(1)) return;
  const bool of_sum = upstream.repeat >= work.n;
  const auto same = repeated<kWidth>(upstream.divisor.divide(*upstream.values));
  work.template for_each_pack<kSquare>([&](int64_t first, int64_t count, const auto& results) {
    store_grad(out + first, of_sum ? same : upstream.template load<kWidth>(first, count),
               results.derivatives, count);
  });
}

Tensor targets_input(const Tensor& targets, ScalarType dtype) {
  if (targets.scalar_type() == kInt64) return torch::stable::contiguous(targets);
  return aligned(box_input(targets, dtype));
}

// Calls body<kSquare>(work).
template <typename Body>
void dispatch(const Tensor& inputs, const Tensor& targets, double alpha, double gamma,
              const Body& body) {
  const DeviceGuard guard(inputs.get_device_index());
  const Tensor inputs_in = aligned(torch::stable::contiguous(inputs));
  const Tensor targets_in = targets_input(targets, box_dtype(inputs));
  dispatch_floating(inputs.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const auto with = [&]<typename Targets>(const Targets& t) {
      const Work<T, Targets> work(inputs_in, t, focal_weights<S>(alpha, gamma));
      gamma == 2 ? body.template operator()<true>(work) : body.template operator()<false>(work);
    };
    if (targets.scalar_type() == kInt64)
      with(LabelTargets<S>{data<int64_t>(targets_in), inputs.size(inputs.dim() - 1)});
    else
      with(DenseTargets<S>{data<S>(targets_in)});
  });
}

template <bool kSquare, typename T, typename Targets>
void backward(const Tensor& out, const Work<T, Targets>& work, const Upstream<Sum<T>>& upstream) {
  launch(backward_kernel<kSquare, T, Targets>, dim3(static_cast<unsigned>(work.num_blocks())),
         dim3(kThreads), 0, current_stream(out), work, upstream, mutable_data<T>(out));
}

template <typename S>
Divisor<S> divisor_of(const std::optional<Tensor>& number) {
  return {number ? data<S>(*number) : nullptr};
}

}  // namespace

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss", inputs, targets);
  const Tensor out = empty_like(inputs, box_dtype(inputs));
  dispatch(inputs, targets, alpha, gamma,
           [&]<bool kSquare, typename T, typename Targets>(const Work<T, Targets>& work) {
             launch(loss_kernel<kSquare, T, Targets>,
                    dim3(static_cast<unsigned>(work.num_blocks())), dim3(kThreads), 0,
                    current_stream(inputs), work, mutable_data<Sum<T>>(out));
           });
  return out;
}

Tensor sigmoid_focal_loss_sum(const Tensor& inputs, const Tensor& targets, double alpha,
                              double gamma) {
  check_sigmoid_focal_loss("sigmoid_focal_loss_sum", inputs, targets);
  const Tensor out = empty(inputs, {}, box_dtype(inputs));
  dispatch(inputs, targets, alpha, gamma,
           [&]<bool kSquare, typename T, typename Targets>(const Work<T, Targets>& work) {
             sum_losses<kSquare>(out, work, Divisor<Sum<T>>{nullptr}, nullptr);
           });
  return out;
}

std::tuple<Tensor, Tensor> sigmoid_focal_loss_sum_and_grad(const Tensor& inputs,
                                                           const Tensor& targets,
                                                           const std::optional<Tensor>& divisor,
                                                           double alpha, double gamma) {
  const char* const op = "sigmoid_focal_loss_sum_and_grad";
  check_sigmoid_focal_loss(op, inputs, targets);
  if (divisor) check_number(op, "divisor", *divisor, inputs);
  const Tensor out = empty(inputs, {}, box_dtype(inputs));
  const Tensor grad = empty_like(inputs, inputs.scalar_type());
  dispatch(inputs, targets, alpha, gamma,
           [&]<bool kSquare, typename T, typename Targets>(const Work<T, Targets>& work) {
             sum_losses<kSquare>(out, work, divisor_of<Sum<T>>(divisor), mutable_data<T>(grad));
           });
  return {out, grad};
}

void sigmoid_focal_loss_correct_grad(const Tensor& written, const Tensor& grad,
                                     const Tensor& inputs, const Tensor& targets,
                                     const std::optional<Tensor>& divisor, double alpha,
                                     double gamma) {
  const char* const op = "sigmoid_focal_loss_correct_grad";
  check_sigmoid_focal_loss(op, inputs, targets);
  if (divisor) check_number(op, "divisor", *divisor, inputs);
  check_number(op, "grad", grad, inputs);
  check_written(op, written, inputs);
  expect(written.is_contiguous(), op, "written", "contiguous", written);
  dispatch(inputs, targets, alpha, gamma,
           [&]<bool kSquare, typename T, typename Targets>(const Work<T, Targets>& work) {
             using S = Sum<T>;
             backward<kSquare>(
                 written, work,
                 Upstream<S>{data<S>(grad), inputs.numel(), divisor_of<S>(divisor), true});
           });
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  check_sigmoid_focal_loss_backward("sigmoid_focal_loss_backward", grad, inputs, targets);
  const RepeatedGrad repeated = repeated_grad(grad);
  const Tensor grad_in = aligned(repeated.compact);
  const Tensor out = empty_like(inputs, inputs.scalar_type());
  dispatch(inputs, targets, alpha, gamma,
           [&]<bool kSquare, typename T, typename Targets>(const Work<T, Targets>& work) {
             using S = Sum<T>;
             backward<kSquare>(out, work, Upstream<S>{data<S>(grad_in), repeated.repeat});
           });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum));
  m.impl("sigmoid_focal_loss_sum_and_grad", TORCH_BOX(&sigmoid_focal_loss_sum_and_grad));
  m.impl("sigmoid_focal_loss_correct_grad", TORCH_BOX(&sigmoid_focal_loss_correct_grad));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace fastdet::cuda
