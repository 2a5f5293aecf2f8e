// SPDX-License-Identifier: BSD-3-Clause
// Max pooling of maps in channels_last, and its gradient. Time goes to memory: forward reads the
// input and writes the output once; with the argmax, which is one byte for each output and not the
// 8 of torch's indices, it writes 5/4 of that in float32. Backward writes the gradient of the input
// once: each of its pixels collects from the windows that contain it, in their order, so there are
// no zeros to write first, and the sum is the same for any number of threads.
#include <algorithm>
#include <vector>

#include "../host/channels_last.h"
#include "../host/parallel.h"
#include "contract.h"
#include "max_pool.loops.h"

namespace fastdet::cpu {

namespace {

struct Span {
  int64_t first, past;
};

// A window along one side of the map.
struct Window {
  Window(int64_t size, int64_t kernel, int64_t stride, int64_t padding)
      : size(size),
        kernel(kernel),
        stride(stride),
        padding(padding),
        outputs(pooled_size(size, kernel, stride, padding)) {}

  // The first position of window i, which may be in the padding.
  int64_t start(int64_t i) const { return i * stride - padding; }
  int64_t begin(int64_t i) const { return std::max<int64_t>(start(i), 0); }
  int64_t end(int64_t i) const { return std::min(start(i) + kernel, size); }

  // The windows that contain a position.
  Span around(int64_t position) const {
    const int64_t before = position + padding - kernel;  // a window that starts here ends too early
    return {before < 0 ? 0 : before / stride + 1,
            std::min((position + padding) / stride + 1, outputs)};
  }

  int64_t size, kernel, stride, padding, outputs;
};

struct Windows {
  Windows(int64_t height, int64_t width, const PoolGeometry& geometry)
      : rows(height, geometry.kernel[0], geometry.stride[0], geometry.padding[0]),
        columns(width, geometry.kernel[1], geometry.stride[1], geometry.padding[1]) {}

  // The place of a pixel in a window, counted row by row.
  uint8_t place(int64_t i, int64_t j, int64_t y, int64_t x) const {
    return static_cast<uint8_t>((y - rows.start(i)) * columns.kernel + x - columns.start(j));
  }

  Window rows, columns;
};

// The channels of a pixel of a map in channels_last.
template <typename T>
struct Pixels {
  Pixels(T* data, const Tensor& map)
      : data(data), image(map.stride(0)), row(map.stride(2)), pixel(map.stride(3)) {}
  T* at(int64_t b, int64_t y, int64_t x) const { return data + b * image + y * row + x * pixel; }

  T* data;
  int64_t image, row, pixel;
};

// Writes the argmax if there is a tensor for it.
template <typename T>
void pool(const Tensor& input, const Windows& windows, const Tensor& output, const Tensor* argmax) {
  const auto& loops = current_loops<MaxPoolLoops<T>>();
  const Pixels<const T> from(data<T>(input), input);
  const Pixels<T> to(mutable_data<T>(output), output);
  const Pixels<uint8_t> places_to(argmax ? mutable_data<uint8_t>(*argmax) : nullptr, output);
  const Window &rows = windows.rows, &columns = windows.columns;
  const int64_t channels = input.size(1);
  parallel_for(input.size(0) * rows.outputs, 1, [&](int64_t begin, int64_t end) {
    std::vector<const T*> pixels(rows.kernel * columns.kernel);
    std::vector<uint8_t> places(pixels.size());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / rows.outputs, i = row % rows.outputs;
      for (int64_t j = 0; j < columns.outputs; ++j) {
        int64_t count = 0;
        for (int64_t y = rows.begin(i); y < rows.end(i); ++y)
          for (int64_t x = columns.begin(j); x < columns.end(j); ++x, ++count) {
            pixels[count] = from.at(b, y, x);
            places[count] = windows.place(i, j, y, x);
          }
        T* out = to.at(b, i, j);
        if (argmax)
          loops.largest_and_place(pixels.data(), places.data(), count, channels, out,
                                  places_to.at(b, i, j));
        else
          loops.largest(pixels.data(), count, channels, out);
      }
    }
  });
}

template <typename T>
void collect(const Tensor& grad, const Tensor& argmax, const Windows& windows,
             const Tensor& output) {
  const auto& loops = current_loops<MaxPoolLoops<T>>();
  const Pixels<const T> from(data<T>(grad), grad);
  const Pixels<const uint8_t> chosen(data<uint8_t>(argmax), argmax);
  const Pixels<T> to(mutable_data<T>(output), output);
  const Window &rows = windows.rows, &columns = windows.columns;
  const int64_t channels = grad.size(1);
  std::vector<Span> across(columns.size);  // divisions take longer than the sums
  for (int64_t x = 0; x < columns.size; ++x) across[x] = columns.around(x);
  parallel_for(grad.size(0) * rows.size, 1, [&](int64_t begin, int64_t end) {
    const auto most = [](const Window& side) { return (side.kernel - 1) / side.stride + 1; };
    std::vector<const T*> grads(most(rows) * most(columns));
    std::vector<const uint8_t*> places_of(grads.size());
    std::vector<uint8_t> places(grads.size());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / rows.size, y = row % rows.size;
      const Span down = rows.around(y);
      for (int64_t x = 0; x < columns.size; ++x) {
        int64_t count = 0;
        for (int64_t i = down.first; i < down.past; ++i)
          for (int64_t j = across[x].first; j < across[x].past; ++j, ++count) {
            grads[count] = from.at(b, i, j);
            places_of[count] = chosen.at(b, i, j);
            places[count] = windows.place(i, j, y, x);
          }
        loops.gradient(grads.data(), places_of.data(), places.data(), count, channels,
                       to.at(b, y, x));
      }
    }
  });
}

Tensor empty_output(const Tensor& input, const Windows& windows, ScalarType dtype) {
  return empty_in_channels_last(input.size(0), input.size(1), windows.rows.outputs,
                                windows.columns.outputs, dtype);
}

void pool_any(const Tensor& input, const Windows& windows, const Tensor& output,
              const Tensor* argmax) {
  if (output.numel() == 0) return;
  const Tensor readable = in_channels_last(input);
  const auto dtype = input.scalar_type();
  if (dtype == ScalarType::Byte) return pool<uint8_t>(readable, windows, output, argmax);
  (dtype == ScalarType::BFloat16 ? pool<BFloat16> : pool<float>)(readable, windows, output, argmax);
}

}  // namespace

Tensor max_pool2d(const Tensor& input, const std::vector<int64_t>& kernel,
                  const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  const auto geometry = checked_pool_geometry("max_pool2d", kernel, stride, padding);
  check_max_pool2d("max_pool2d", input, geometry, true);
  const Windows windows(input.size(2), input.size(3), geometry);
  const Tensor output = empty_output(input, windows, input.scalar_type());
  pool_any(input, windows, output, nullptr);
  return output;
}

std::tuple<Tensor, Tensor> max_pool2d_with_argmax(const Tensor& input,
                                                  const std::vector<int64_t>& kernel,
                                                  const std::vector<int64_t>& stride,
                                                  const std::vector<int64_t>& padding) {
  const char* op = "max_pool2d_with_argmax";
  const auto geometry = checked_pool_geometry(op, kernel, stride, padding);
  check_max_pool2d(op, input, geometry, false);
  const Windows windows(input.size(2), input.size(3), geometry);
  const Tensor output = empty_output(input, windows, input.scalar_type());
  const Tensor argmax = empty_output(input, windows, ScalarType::Byte);
  pool_any(input, windows, output, &argmax);
  return {output, argmax};
}

Tensor max_pool2d_backward(const Tensor& grad, const Tensor& argmax, int64_t height, int64_t width,
                           const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                           const std::vector<int64_t>& padding) {
  const char* op = "max_pool2d_backward";
  const auto geometry = checked_pool_geometry(op, kernel, stride, padding);
  check_max_pool2d_backward(op, grad, argmax, height, width, geometry);
  const Tensor output =
      empty_in_channels_last(grad.size(0), grad.size(1), height, width, grad.scalar_type());
  if (output.numel() == 0) return output;
  const Windows windows(height, width, geometry);
  const bool halves = grad.scalar_type() == ScalarType::BFloat16;
  (halves ? collect<BFloat16> : collect<float>)(in_channels_last(grad), in_channels_last(argmax),
                                                windows, output);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_with_argmax", TORCH_BOX(&max_pool2d_with_argmax));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
}

}  // namespace fastdet::cpu
