// SPDX-License-Identifier: BSD-3-Clause
// Deformable attention of one query. For a few points of a head at a time, vectors over the points
// compute the pixels and their weights. Then vectors over the channels read the pixels. Most points
// lie inside their level and take all four pixels without a test.
#include "ms_deform_attn.loops.h"

#include <cstring>
#include <type_traits>

#include "../geometry/box.h"
#include "../isa/lanes.h"
#include "sampling.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr int64_t kChunk = 16;  // points whose pixels are computed together
constexpr int kTaps = 4;

// ---- channels -----------------------------------------------------------------------------------

template <typename T>
constexpr int64_t kWidth = kLanesOf<Sum<T>>;

// Values of type T as a vector of the type of sums.
template <typename T>
inline __attribute__((always_inline)) Lanes<Sum<T>> load_values(const T* p) {
  if constexpr (std::is_same_v<T, Sum<T>>) {
    return load_lanes(p);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));
    Narrow bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return __builtin_bit_cast(Lanes<float>, __builtin_convertvector(bits, Lanes<uint32_t>) << 16);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Lanes<float> lanes;
    for (int64_t i = 0; i < kWidth<T>; ++i) lanes[i] = static_cast<float>(p[i]);
    return lanes;
#endif
  }
}

// The first n values; the other lanes are 0.
template <typename T>
inline __attribute__((always_inline)) Lanes<Sum<T>> load_values(const T* p, int64_t n) {
  if (n >= kWidth<T>) return load_values(p);
  alignas(kVectorBytes) unsigned char part[kWidth<T> * sizeof(T)] = {};
  std::memcpy(part, p, n * sizeof(T));
  return load_values(reinterpret_cast<const T*>(part));
}

template <typename S>
inline __attribute__((always_inline)) void store_values(const Lanes<S>& lanes, S* p, int64_t n) {
  if (n >= kLanesOf<S>) return store_lanes<S>(lanes, p);
  std::memcpy(p, &lanes, n * sizeof(S));
}

// ---- points -------------------------------------------------------------------------------------

// The pixels of up to kChunk points of a head.
template <typename S>
struct Chunk {
  int32_t pixel[kChunk];          // the top left one; it may be outside the level
  int32_t below[kChunk];          // pixels from a row to the next one
  int32_t taps[kChunk];           // the pixels inside the level, as in sampling.h
  S down[kChunk], right[kChunk];  // the fractions of sampling.h
};

template <typename S>
void find_pixels(const AttentionPoints<S>& points, int64_t first, int64_t n, const S* locations,
                 Chunk<S>& chunk) {
  const S *const heights = points.height + first, *const widths = points.width + first;
  const int32_t *const rows = points.rows + first, *const columns = points.columns + first;
  const int32_t* const starts = points.start + first;
  S along_x[kChunk], along_y[kChunk];
  for (int64_t i = 0; i < n; ++i) {
    along_x[i] = locations[2 * (first + i)];
    along_y[i] = locations[2 * (first + i) + 1];
  }
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const AxisSample<S> x = axis_sample(along_x[i], widths[i]);
    const AxisSample<S> y = axis_sample(along_y[i], heights[i]);
    chunk.pixel[i] = starts[i] + y.index * columns[i] + x.index;
    chunk.below[i] = columns[i];
    chunk.taps[i] = taps_inside(y, x, rows[i], columns[i]);
    chunk.down[i] = y.fraction;
    chunk.right[i] = x.fraction;
  }
}

// The weights of the pixels of the points, in the order of their bits.
template <typename S>
void find_weights(const Chunk<S>& chunk, int64_t n, const S* weights, S (*of_tap)[kChunk]) {
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const S below = chunk.down[i] * weights[i], above = weights[i] - below;
    of_tap[1][i] = above * chunk.right[i];
    of_tap[0][i] = above - of_tap[1][i];
    of_tap[3][i] = below * chunk.right[i];
    of_tap[2][i] = below - of_tap[3][i];
  }
}

// Calls visit.operator()<N>(c, width) for blocks of N vectors that cover the channels: `width`
// channels from c on. It is less than N vectors only for the last block, whose N is 1.
template <typename S, typename Visit>
inline __attribute__((always_inline)) void for_channel_blocks(int64_t channels,
                                                              const Visit& visit) {
  constexpr int kVectors = 128 / kVectorBytes;  // 32 floats: their sums stay in registers
  constexpr int64_t kStep = kLanesOf<S>;
  int64_t c = 0;
  for (; c + kVectors * kStep <= channels; c += kVectors * kStep)
    visit.template operator()<kVectors>(c, kVectors * kStep);
  for (; c + kStep <= channels; c += kStep) visit.template operator()<1>(c, kStep);
  if (c < channels) visit.template operator()<1>(c, channels - c);
}

// Calls visit(i, tap, pixel) for the pixels of point i that are inside the level.
template <typename S, typename Visit>
inline __attribute__((always_inline)) void for_each_tap(const Chunk<S>& chunk, int64_t i,
                                                        const Visit& visit) {
  const int64_t first = chunk.pixel[i], below = first + chunk.below[i];
  if (chunk.taps[i] == kAllTaps) {
    visit(0, first);
    visit(1, first + 1);
    visit(2, below);
    visit(3, below + 1);
    return;
  }
  if (chunk.taps[i] & kTopLeft) visit(0, first);
  if (chunk.taps[i] & kTopRight) visit(1, first + 1);
  if (chunk.taps[i] & kBottomLeft) visit(2, below);
  if (chunk.taps[i] & kBottomRight) visit(3, below + 1);
}

// ---- forward ------------------------------------------------------------------------------------

// Adds N vectors of the weighted pixels of a chunk to sums.
template <int N, typename T>
inline __attribute__((always_inline)) void add_pixels(const T* value, int64_t stride,
                                                      const Chunk<Sum<T>>& chunk, int64_t n,
                                                      const Sum<T> (*weights)[kChunk],
                                                      int64_t width, Sum<T>* sums) {
  using S = Sum<T>;
  constexpr int64_t kStep = kWidth<T>;
  Lanes<S> total[N];
  for (int v = 0; v < N; ++v) total[v] = load_values(sums + v * kStep, width - v * kStep);
  for (int64_t i = 0; i < n; ++i) {
    Lanes<S> sample[N] = {};
    for_each_tap(chunk, i, [&](int tap, int64_t pixel) {
      const T* at = value + pixel * stride;
      const S weight = weights[tap][i];
      for (int v = 0; v < N; ++v)
        sample[v] += weight * load_values(at + v * kStep, width - v * kStep);
    });
    for (int v = 0; v < N; ++v) total[v] += sample[v];
  }
  for (int v = 0; v < N; ++v) store_values<S>(total[v], sums + v * kStep, width - v * kStep);
}

template <typename T>
void attend_head(const T* value, int64_t stride, int64_t channels,
                 const AttentionPoints<Sum<T>>& points, const Sum<T>* locations,
                 const Sum<T>* weights, Sum<T>* sums) {
  std::memset(sums, 0, channels * sizeof *sums);
  Chunk<Sum<T>> chunk;
  Sum<T> of_tap[kTaps][kChunk];
  for (int64_t first = 0; first < points.count; first += kChunk) {
    const int64_t n = min_of(points.count - first, kChunk);
    find_pixels(points, first, n, locations, chunk);
    find_weights(chunk, n, weights + first, of_tap);
    for_channel_blocks<Sum<T>>(channels, [&]<int N>(int64_t c, int64_t width) {
      add_pixels<N>(value + c, stride, chunk, n, of_tap, width, sums + c);
    });
  }
}

template <typename T>
void attend(const AttentionMap<const T>& value, const AttentionPoints<Sum<T>>& points,
            int64_t heads, const Sum<T>* locations, const Sum<T>* weights, T* out, Sum<T>* sums) {
  const int64_t channels = value.channels;
  for (int64_t h = 0; h < heads; ++h) {
    attend_head(value.data + h * channels, value.pixel_stride, channels, points,
                locations + h * 2 * points.count, weights + h * points.count, sums);
    for (int64_t c = 0; c < channels; ++c) out[h * channels + c] = static_cast<T>(sums[c]);
  }
}

// ---- backward -----------------------------------------------------------------------------------

// Of N vectors of channels: adds the products of each pixel with the gradient of the output to
// dots, and that gradient, weighted, to the gradient of the pixel.
template <int N, typename T>
inline __attribute__((always_inline)) void take_pixels(const T* value, int64_t stride,
                                                       const Chunk<Sum<T>>& chunk, int64_t n,
                                                       const Sum<T> (*weights)[kChunk],
                                                       int64_t width, const T* grad,
                                                       Sum<T>* grad_value, int64_t grad_stride,
                                                       Sum<T> (*dots)[kTaps]) {
  using S = Sum<T>;
  constexpr int64_t kStep = kWidth<T>;
  Lanes<S> own[N];
  for (int v = 0; v < N; ++v) own[v] = load_values(grad + v * kStep, width - v * kStep);
  for (int64_t i = 0; i < n; ++i) {
    Lanes<S> dot[kTaps] = {};
    for_each_tap(chunk, i, [&](int tap, int64_t pixel) {
      const T* at = value + pixel * stride;
      S* to = grad_value + pixel * grad_stride;
      const S weight = weights[tap][i];
      for (int v = 0; v < N; ++v) {
        const int64_t c = v * kStep, left = width - c;
        dot[tap] += own[v] * load_values(at + c, left);
        store_values<S>(load_values(to + c, left) + weight * own[v], to + c, left);
      }
    });
    S sums[kTaps];
    sum_lanes(dot, sums);
    for (int tap = 0; tap < kTaps; ++tap) dots[i][tap] += sums[tap];
  }
}

// Gradients of the locations and weights of a chunk, from the products of its pixels.
template <typename S>
void differentiate(const AttentionPoints<S>& points, int64_t first, int64_t n,
                   const Chunk<S>& chunk, const S (*dots)[kTaps], const S* weights,
                   S* grad_locations, S* grad_weights) {
  const S *const heights = points.height + first, *const widths = points.width + first;
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    const S right = chunk.right[i], down = chunk.down[i];
    const S top = dots[i][0] + right * (dots[i][1] - dots[i][0]);
    const S bottom = dots[i][2] + right * (dots[i][3] - dots[i][2]);
    const S to_right =
        (dots[i][1] - dots[i][0]) + down * ((dots[i][3] - dots[i][2]) - (dots[i][1] - dots[i][0]));
    grad_weights[i] = top + down * (bottom - top);
    grad_locations[2 * i] = weights[i] * widths[i] * to_right;
    grad_locations[2 * i + 1] = weights[i] * heights[i] * (bottom - top);
  }
}

template <typename T>
void attend_backward(const AttentionMap<const T>& value, const AttentionPoints<Sum<T>>& points,
                     const Sum<T>* locations, const Sum<T>* weights, const T* grad,
                     const AttentionMap<Sum<T>>& grad_value, Sum<T>* grad_locations,
                     Sum<T>* grad_weights) {
  using S = Sum<T>;
  const int64_t channels = value.channels;
  Chunk<S> chunk;
  S of_tap[kTaps][kChunk];
  for (int64_t first = 0; first < points.count; first += kChunk) {
    const int64_t n = min_of(points.count - first, kChunk);
    find_pixels(points, first, n, locations, chunk);
    find_weights(chunk, n, weights + first, of_tap);
    S dots[kChunk][kTaps] = {};
    for_channel_blocks<S>(channels, [&]<int N>(int64_t c, int64_t width) {
      take_pixels<N>(value.data + c, value.pixel_stride, chunk, n, of_tap, width, grad + c,
                     grad_value.data + c, grad_value.pixel_stride, dots);
    });
    differentiate(points, first, n, chunk, dots, weights + first, grad_locations + 2 * first,
                  grad_weights + first);
  }
}

template <typename T>
void store_rows(const Sum<T>* rows, int64_t n, const AttentionMap<T>& to) {
  for (int64_t i = 0; i < n; ++i) {
    const Sum<T>* from = rows + i * to.channels;
    T* row = to.data + i * to.pixel_stride;
    if constexpr (std::is_same_v<T, Sum<T>>)
      std::memcpy(row, from, to.channels * sizeof *row);
    else
      for (int64_t c = 0; c < to.channels; ++c) row[c] = static_cast<T>(from[c]);
  }
}

template <typename S>
void softmax_backward(const S* probabilities, int64_t n, S* grad) {
  S mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += probabilities[i] * grad[i];
  for (int64_t i = 0; i < n; ++i) grad[i] = probabilities[i] * (grad[i] - mean);
}

template <typename T>
constexpr MsDeformAttnLoops<T> kLoops = {
    .attend = attend<T>,
    .attend_backward = attend_backward<T>,
    .store_rows = store_rows<T>,
    .softmax_backward = softmax_backward<Sum<T>>,
};

}  // namespace

FASTDET_LOOPS(MsDeformAttnLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(MsDeformAttnLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(MsDeformAttnLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(MsDeformAttnLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
