// SPDX-License-Identifier: BSD-3-Clause
// Rounds a map to 8-bit integers, as ONNX's QuantizeLinear: one pass that reads 4 or 2 bytes for
// each byte that it writes.
#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "quantize_map.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrain = 1 << 15;

template <typename T>
void quantize(const Tensor& readable, double scale, int64_t zero_point, const Tensor& output) {
  const auto& loops = current_loops<QuantizeLoops<T>>();
  const T* from = data<T>(readable);
  uint8_t* to = mutable_data<uint8_t>(output);
  parallel_for(readable.numel(), kGrain, [&](int64_t begin, int64_t end) {
    loops.quantize(from + begin, end - begin, static_cast<float>(scale), zero_point, to + begin);
  });
}

// Dense: a map in channels_last, any other tensor in the usual order.
Tensor dense(const Tensor& input) {
  if (input.dim() != 4) return torch::stable::contiguous(input);
  return channels_to_front(torch::stable::contiguous(channels_to_back(input)));
}

}  // namespace

Tensor quantize_map(const Tensor& input, double scale, int64_t zero_point) {
  check_quantize_map("quantize_map", input, scale, zero_point);
  const Tensor readable = dense(input);
  const Tensor output = input.dim() == 4
                            ? empty_in_channels_last(input.size(0), input.size(1), input.size(2),
                                                     input.size(3), ScalarType::Byte)
                            : in_huge_pages(empty_like(input, ScalarType::Byte));
  if (input.scalar_type() == ScalarType::BFloat16)
    quantize<BFloat16>(readable, scale, zero_point, output);
  else
    quantize<float>(readable, scale, zero_point, output);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("quantize_map", TORCH_BOX(&quantize_map)); }

}  // namespace fastdet::cpu
