// SPDX-License-Identifier: BSD-3-Clause
// Nearest-neighbour resize of a feature map in channels_last. Output pixel i is input pixel
// floor(i * from / to), in float32 as in torch. Writing the output is the lower bound of the time.
// For a pyramid level of tens of megabytes, torch's operator spends several times the cost of the
// copy on the page faults of small pages; so the output is in huge pages.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"

namespace fastdet::cpu {

namespace {

// For each of `to` pixels along a side, the nearest of `from` pixels.
std::vector<int64_t> nearest_pixels(int64_t from, int64_t to) {
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  std::vector<int64_t> nearest(to);
  for (int64_t i = 0; i < to; ++i)
    nearest[i] = std::min(static_cast<int64_t>(static_cast<float>(i) * scale), from - 1);
  return nearest;
}

}  // namespace

Tensor upsample_nearest(const Tensor& input, int64_t height, int64_t width) {
  check_upsample_nearest("upsample_nearest", input, height, width);
  const Tensor readable = in_channels_last(input);
  const int64_t images = input.size(0), channels = input.size(1);
  const Tensor output =
      empty_in_channels_last(images, channels, height, width, input.scalar_type());
  if (output.numel() == 0) return output;  // an empty tensor may have no memory to point to
  const auto bytes = static_cast<int64_t>(input.element_size());
  const int64_t pixel = channels * bytes, image_stride = readable.stride(0) * bytes,
                row_stride = readable.stride(2) * bytes, pixel_stride = readable.stride(3) * bytes;
  const auto rows = nearest_pixels(input.size(2), height);
  const auto columns = nearest_pixels(input.size(3), width);
  const char* from = data<char>(readable);
  char* to = mutable_data<char>(output);
  parallel_for(images * height, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* row = from + i / height * image_stride + rows[i % height] * row_stride;
      char* out = to + i * width * pixel;
      for (int64_t x = 0; x < width; ++x)
        std::memcpy(out + x * pixel, row + columns[x] * pixel_stride, pixel);
    }
  });
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("upsample_nearest", TORCH_BOX(&upsample_nearest));
}

}  // namespace fastdet::cpu
