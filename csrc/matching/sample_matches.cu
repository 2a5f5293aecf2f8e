// SPDX-License-Identifier: BSD-3-Clause
// A random subset of each image's matches: the positives with the smallest keys, then the negatives
// with the smallest keys; ties go to the lower anchor.
//
// The selection is that of top_logits.cuh: the positives and the negatives of an image are two
// levels whose logits are the negated keys, and it selects the best `num` of each, unsorted. The
// selected ones are then ranked by counting: each is compared with all of its level, and
// neighbouring threads read the same one. These are num^2 steps, which take less than a millisecond
// even for 16k samples. Launches: 1 writes the keys to the levels, a memset and 3 find the cuts, 1
// lists the selected, 1 ranks them. The traffic is 24 bytes for each anchor: 13 MB for 2 x 267k, 4
// us at 3.35 TB/s, so the launches dominate. Memory: 8 bytes for each anchor, 32 for each sample.
// No host sync.
#include "../selection/top_logits.cuh"
#include "contract.h"
#include "sample_key.h"

namespace fastdet::cuda {

namespace {

constexpr int kLevels = 2;  // positives, negatives

// The selected keys of a batch, at most `rows` for each image, by level, then by anchor.
struct Drawn {
  float* logits;     // (B, rows)
  int64_t* anchors;  // (B, rows)
  int64_t* counts;   // (B, kLevels)
  int64_t rows;
};

// (B, kLevels, A): the negated key if its anchor belongs to the level, else NaN.
Tensor spread_keys(const Tensor& index, const Tensor& seeds, cudaStream_t stream) {
  const int64_t num_images = index.size(0), num_anchors = index.size(1);
  const Tensor levels = empty(index, {num_images, kLevels, num_anchors}, kFloat32);
  const int64_t* const match = data<int64_t>(index);
  const double* const seed = data<double>(seeds);
  float* const out = mutable_data<float>(levels);
  for_each(index.numel(), stream, [=] __device__(int64_t i) {
    constexpr float kNever = std::numeric_limits<float>::quiet_NaN();
    const int64_t image = i / num_anchors, anchor = i % num_anchors;
    const auto key = static_cast<float>(
        sample_key(SampleSeed(seed[image]), static_cast<uint32_t>(anchor)));  // exact
    float* const of_image = out + image * kLevels * num_anchors + anchor;
    of_image[0] = match[i] >= 0 ? -key : kNever;
    of_image[num_anchors] = match[i] == -1 ? -key : kNever;
  });
  return levels;
}

__global__ void __launch_bounds__(kThreads) list_kernel(LogitSegments<float> in, Drawn out) {
  const Run<float> run = in.run(take_chunk(in));
  if (run.chunk == run.first_chunk && threadIdx.x == 0)
    out.counts[run.segment] = in.segments[run.segment].cut.num_selected;
  for_each_selected(in, run, [&](int64_t row, int64_t anchor, float logit) {
    out.logits[run.image * out.rows + row] = logit;
    out.anchors[run.image * out.rows + row] = anchor;
  });
}

// The number of logits[begin, end) that are drawn before the one at `row`.
__device__ int64_t num_drawn_before(const float* logits, int64_t begin, int64_t end, int64_t row) {
  int64_t num = 0;
  for (int64_t i = begin; i < end; ++i)
    num += logits[i] > logits[row] || (logits[i] == logits[row] && i < row);
  return num;
}

// One thread for each selected row and for each row of the output.
void write_samples(const Drawn& drawn, int64_t num, int64_t max_positives, const Tensor& indices,
                   const Tensor& valid, cudaStream_t stream) {
  int64_t* const out = mutable_data<int64_t>(indices);
  bool* const out_valid = mutable_data<bool>(valid);
  const int64_t rows = std::max(drawn.rows, num);
  for_each(indices.size(0) * rows, stream, [=] __device__(int64_t i) {
    const int64_t image = i / rows, row = i % rows;
    const int64_t positives = drawn.counts[image * kLevels];
    const int64_t all = positives + drawn.counts[image * kLevels + 1];
    const int64_t num_positives = min_of(positives, max_positives);
    const int64_t num_samples = min_of(num_positives + all - positives, num);
    if (row < num) out_valid[image * num + row] = row < num_samples;
    if (row >= num_samples && row < num) out[image * num + row] = 0;
    if (row >= all) return;
    const bool positive = row < positives;
    const float* const logits = drawn.logits + image * drawn.rows;
    const int64_t rank = positive ? num_drawn_before(logits, 0, positives, row)
                                  : num_drawn_before(logits, positives, all, row) + num_positives;
    if (rank < (positive ? num_positives : num_samples))
      out[image * num + rank] = drawn.anchors[image * drawn.rows + row];
  });
}

}  // namespace

std::tuple<Tensor, Tensor> sample_matches(const Tensor& index, const Tensor& seeds, int64_t num,
                                          double positive_fraction) {
  check_sample_matches(index, seeds, num);
  const DeviceGuard guard(index.get_device_index());
  const cudaStream_t stream = current_stream(index);
  const int64_t num_images = index.size(0);
  const Tensor levels =
      spread_keys(torch::stable::contiguous(index), torch::stable::contiguous(seeds), stream);
  TopLogits<float> top({torch::stable::select(levels, 1, 0), torch::stable::select(levels, 1, 1)},
                       num, -std::numeric_limits<float>::infinity());
  const int64_t rows = top.most_selected();
  const Tensor logits = empty(levels, {num_images, rows}, ScalarType::Float);
  const Tensor anchors = empty(index, {num_images, rows}, kInt64);
  const Tensor counts = empty(index, {num_images, kLevels}, kInt64);
  const Drawn drawn = {mutable_data<float>(logits), mutable_data<int64_t>(anchors),
                       mutable_data<int64_t>(counts), rows};
  launch(list_kernel, top.grid(), dim3(kThreads), 0, stream, top.select(stream), drawn);
  const Tensor indices = empty(index, {num_images, num}, kInt64);
  const Tensor valid = empty(index, {num_images, num}, kBool);
  write_samples(drawn, num, sample_positives(num, positive_fraction), indices, valid, stream);
  return {indices, valid};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("sample_matches", TORCH_BOX(&sample_matches));
}

}  // namespace fastdet::cuda
