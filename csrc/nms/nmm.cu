// SPDX-License-Identifier: BSD-3-Clause
// Non-maximum merging for torch tensors on the GPU:
//
//   start    1 launch. Each row belongs to no group, and its merged box is the box itself.
//   order    1 or 3 launches, as for NMS (greedy_nms.cuh).
//   keep     3 or 5 launches, for the greedy rule only: NMS finds the boxes that stay.
//   claim    1 launch. One warp for each other box searches its target: of the boxes that stay
//            (greedy), or of all boxes (transitive), the first one before it that overlaps it.
//   finish   1 launch. Each row follows the targets to its group's kept row, one step for the
//            greedy rule, and enlarges that row's box by atomic minima and maxima.
//
// The target of a box does not depend on the targets of others, so nothing waits. Minima and maxima
// do not depend on the order. Memory as for NMS. No host sync.
#include <type_traits>

#include "contract.h"
#include "greedy_nms.cuh"
#include "nmm_rule.h"

namespace fastdet::cuda {

namespace {

template <typename T>
struct Merging {
  const Box<T>* boxes;  // (N,)
  int64_t* index;       // (N,) the target of each row, then its kept row
  Box<T>* merged;       // (N,)
};

struct MarkKept {
  int64_t* index;

  __device__ void operator()(int64_t, int64_t, int64_t row) const {
    if (row >= 0) index[row] = row;
  }
};

// The first of the turns of a warp.
template <typename T>
__device__ Turn<T> first_of_warp(Turn<T> turn) {
  for (int d = kWarp / 2; d > 0; d /= 2) {
    const Turn<T> other = {__shfl_xor_sync(kAllLanes, turn.key, d),
                           __shfl_xor_sync(kAllLanes, turn.row, d)};
    if (other.before(turn)) turn = other;
  }
  return turn;
}

template <OverlapMetric metric, typename T>
__global__ void __launch_bounds__(kSettleThreads, sizeof(T) > 4 ? 3 : 4)
    claim_kernel(Suppression<T> in, int64_t* index, bool transitive) {
  const BoxBundles<T> bundles = in.bundles.of(0);
  const uint32_t n = in.orders.usable[0];
  const uint32_t step = gridDim.x * (kSettleThreads / kWarp);
  const auto kept = [&](int64_t row) { return index[row] == row; };
  for (uint32_t place = blockIdx.x * (kSettleThreads / kWarp) + warp(); place < n; place += step) {
    const Turn<T> turn = bundles.turns[place];
    if (transitive ? bundles.known.state(place) == kStays : kept(turn.row)) {
      if (lane() == 0) index[turn.row] = turn.row;
      continue;
    }
    const Seeker<metric, T> seeker(load_box(bundles.boxes + place), turn,
                                   bundles.groups ? bundles.groups[place] : 0, in.filter);
    Turn<T> first = {kLeftOut<T>, turn.row};
    look_through(bundles, n, bundles.known, seeker, in.threshold,
                 [&](int64_t bundle, unsigned boxes) {
                   if (boxes >> lane() & 1) {
                     const Turn<T> other = bundles.turns[bundle * kWarp + lane()];
                     if ((transitive || kept(other.row)) && other.before(first)) first = other;
                   }
                   return true;
                 });
    first = first_of_warp(first);
    if (lane() == 0) index[turn.row] = first.row;
  }
}

// Integers of the size of T. The bits of numbers that are not negative have the order of signed
// integers; the bits of negative numbers have the reverse order of unsigned integers, and are above
// all others.
template <typename T>
using SignedBits = std::conditional_t<std::is_same_v<T, double>, long long, int>;
template <typename T>
using UnsignedBits = std::make_unsigned_t<SignedBits<T>>;

template <typename Bits, typename T>
__device__ Bits bits_as(T value) {
  Bits bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// *at becomes min(*at, value). Neither is NaN.
template <typename T>
__device__ void lower(T* at, T value) {
  value += T(0);  // -0 becomes 0
  if (value >= T(0)) {
    atomicMin(reinterpret_cast<SignedBits<T>*>(at), bits_as<SignedBits<T>>(value));
  } else {
    atomicMax(reinterpret_cast<UnsignedBits<T>*>(at), bits_as<UnsignedBits<T>>(value));
  }
}

// *at becomes max(*at, value). Neither is NaN.
template <typename T>
__device__ void raise(T* at, T value) {
  value += T(0);
  if (value >= T(0)) {
    atomicMax(reinterpret_cast<SignedBits<T>*>(at), bits_as<SignedBits<T>>(value));
  } else {
    atomicMin(reinterpret_cast<UnsignedBits<T>*>(at), bits_as<UnsignedBits<T>>(value));
  }
}

template <typename T>
struct Start {
  Merging<T> out;

  __device__ void operator()(int64_t row) const {
    out.index[row] = -1;
    out.merged[row] = out.boxes[row];
  }
};

template <typename T>
struct Finish {
  Merging<T> out;

  __device__ void operator()(int64_t row) const {
    int64_t kept = out.index[row];
    if (kept < 0 || kept == row) return;
    // Others replace targets by kept rows meanwhile, which shortens the way and does not change its
    // end.
    const volatile int64_t* const index = out.index;
    for (int64_t next = index[kept]; next != kept; next = index[kept]) kept = next;
    out.index[row] = kept;
    const Box<T> box = out.boxes[row];
    Box<T>& merged = out.merged[kept];
    lower(&merged.x1, box.x1);
    lower(&merged.y1, box.y1);
    raise(&merged.x2, box.x2);
    raise(&merged.y2, box.y2);
  }
};

template <OverlapMetric metric, typename T>
void merge(const Plan<T>& plan, const Merging<T>& out, bool transitive, cudaStream_t stream) {
  const int64_t n = plan.in.orders.n;
  for_each(n, stream, Start<T>{out});
  launch_order(plan, stream);
  if (!transitive) launch_suppression<metric>(plan, MarkKept{out.index}, stream);
  const int64_t blocks = share_of_image(plan.in, kSettleThreads / kWarp);
  launch(claim_kernel<metric, T>, blocks_of_images(plan.in, blocks), dim3(kSettleThreads), 0,
         stream, plan.in, out.index, transitive);
  for_each(n, stream, Finish<T>{out});
}

}  // namespace

std::tuple<Tensor, Tensor> nmm(const Tensor& boxes, const Tensor& scores,
                               const std::optional<Tensor>& labels, double threshold,
                               const std::string& metric, bool transitive) {
  check_labelled("nmm", boxes, scores, labels);
  const OverlapMetric overlap = parse_overlap_metric("nmm", metric);
  const DeviceGuard guard(boxes.get_device_index());
  const auto dtype = box_dtype(boxes);
  const int64_t n = boxes.size(0);
  const Tensor index = empty(boxes, {n}, kInt64), merged = empty(boxes, {n, 4}, dtype);
  const auto one_image = [](const Tensor& t) { return torch::stable::unsqueeze(t, 0); };
  const Tensor boxes_in = one_image(box_input(boxes, dtype));
  const Tensor scores_in = one_image(box_input(scores, dtype));
  const std::optional<Tensor> labels_in =
      labels ? std::optional(one_image(torch::stable::contiguous(*labels))) : std::nullopt;
  const Tensor num_kept = empty(boxes, {1}, kInt64);
  dispatch_box(dtype, [&]<typename T>() {
    const Plan<T> plan = plan_suppression<T>(boxes_in, scores_in, just_below<T>(threshold), n,
                                             labels_in, std::nullopt, num_kept);
    const Merging<T> out = {data<Box<T>>(plan.boxes), mutable_data<int64_t>(index),
                            mutable_data<Box<T>>(merged)};
    const cudaStream_t stream = current_stream(boxes);
    if (overlap == OverlapMetric::kIos) {
      merge<OverlapMetric::kIos>(plan, out, transitive, stream);
    } else {
      merge<OverlapMetric::kIou>(plan, out, transitive, stream);
    }
  });
  return {index, cast(merged, boxes.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("nmm", TORCH_BOX(&nmm)); }

}  // namespace fastdet::cuda
