// SPDX-License-Identifier: BSD-3-Clause
// A random subset of each image's matches. One stable radix sort of all anchors by (image, positive
// before negative before the rest, key) puts the positives and the negatives of each image side by
// side in the order in which they are drawn; then each output row looks up its place, which it
// finds by bisection. No host sync; ties go to the lower anchor, since the sort is stable.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "../checks.h"
#include "launch.cuh"

namespace fastdet::cuda {

namespace {

using Key = unsigned long long;

constexpr int kKeyBits = 32, kClassBits = 2;
constexpr Key kPositive = 0, kNegative = 1, kNever = 2;

// Keys are >= 0, so their bits order as they do.
__device__ Key sort_key(int64_t image, Key match_class, unsigned key_bits) {
  return (Key(image) << kClassBits | match_class) << kKeyBits | key_bits;
}

// The position of the first of the ascending keys[begin, end) that is not below `key`.
__device__ int64_t lower_bound(const Key* keys, int64_t begin, int64_t end, Key key) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (keys[middle] < key)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// Sorts keys[0, n) into keys[n, 2n) and moves `order` along.
void sort_by_key(const Tensor& like, Key* keys, int64_t* order, int64_t n, int num_bits,
                 cudaStream_t stream) {
  const auto sort = [&](void* workspace, size_t& bytes) {
    STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(workspace, bytes, keys, keys + n, order,
                                                   order + n, n, 0, num_bits, stream));
  };
  size_t bytes = 0;
  sort(nullptr, bytes);
  const Tensor workspace = empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  sort(workspace.mutable_data_ptr(), bytes);
}

// The anchors of each image in the order in which they are drawn, and their sort keys.
struct Ranked {
  Tensor keys, order;  // (2, B * A), the second row sorted

  Ranked(const Tensor& index, const Tensor& sample_keys)
      : keys(empty(index, {2, index.numel()}, kInt64)),
        order(empty(index, {2, index.numel()}, kInt64)) {
    const int64_t num_images = index.size(0), num_anchors = index.size(1), n = index.numel();
    if (n == 0) return;
    rank(data<int64_t>(index), data<float>(sample_keys), num_anchors, n,
         kKeyBits + kClassBits + std::bit_width(static_cast<uint64_t>(num_images - 1)),
         current_stream(index));
  }

  void rank(const int64_t* match, const float* sample_key, int64_t num_anchors, int64_t n,
            int num_bits, cudaStream_t stream) {
    Key* const key = mutable_data<Key>(keys);
    int64_t* const anchor = mutable_data<int64_t>(order);
    for_each(n, stream, [=] __device__(int64_t i) {
      const Key match_class = match[i] >= 0 ? kPositive : match[i] == -1 ? kNegative : kNever;
      key[i] = sort_key(i / num_anchors, match_class, __float_as_uint(sample_key[i]));
      anchor[i] = i % num_anchors;
    });
    sort_by_key(keys, key, anchor, n, num_bits, stream);
  }
};

void draw(const Ranked& ranked, int64_t num_images, int64_t num_anchors, int64_t num,
          int64_t max_positives, const Tensor& indices, const Tensor& valid, cudaStream_t stream) {
  const int64_t n = num_images * num_anchors;
  const Key* const keys = data<Key>(ranked.keys) + n;
  const int64_t* const order = data<int64_t>(ranked.order) + n;
  int64_t* const out = mutable_data<int64_t>(indices);
  bool* const out_valid = mutable_data<bool>(valid);
  for_each(num_images * num, stream, [=] __device__(int64_t i) {
    const int64_t image = i / num, k = i % num;
    const int64_t begin = image * num_anchors, end = begin + num_anchors;
    const int64_t negatives = lower_bound(keys, begin, end, sort_key(image, kNegative, 0));
    const int64_t rest = lower_bound(keys, negatives, end, sort_key(image, kNever, 0));
    const int64_t num_positives = min_of(negatives - begin, max_positives);
    const int64_t num_negatives = min_of(rest - negatives, num - num_positives);
    out_valid[i] = k < num_positives + num_negatives;
    out[i] = k < num_positives                   ? order[begin + k]
             : k < num_positives + num_negatives ? order[negatives + k - num_positives]
                                                 : 0;
  });
}

}  // namespace

std::tuple<Tensor, Tensor> sample_matches(const Tensor& index, const Tensor& keys, int64_t num,
                                          double positive_fraction) {
  check_sample_matches(index, keys, num);
  const DeviceGuard guard(index.get_device_index());
  const Tensor indices = empty(index, {index.size(0), num}, kInt64);
  const Tensor valid = empty(index, {index.size(0), num}, kBool);
  const Ranked ranked(torch::stable::contiguous(index), torch::stable::contiguous(keys));
  draw(ranked, index.size(0), index.size(1), num, sample_positives(num, positive_fraction), indices,
       valid, current_stream(index));
  return {indices, valid};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("sample_matches", TORCH_BOX(&sample_matches));
}

}  // namespace fastdet::cuda
