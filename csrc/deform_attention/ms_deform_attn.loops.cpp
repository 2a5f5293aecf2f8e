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
  for (int64_t i = 0; i < n; ++i) {
    const int64_t p = first + i;
    const AxisSample<S> x = axis_sample(locations[2 * p], points.width[p]);
    const AxisSample<S> y = axis_sample(locations[2 * p + 1], points.height[p]);
    chunk.pixel[i] = points.start[p] + y.index * points.columns[p] + x.index;
    chunk.below[i] = points.columns[p];
    chunk.taps[i] = taps_inside(y, x, points.rows[p], points.columns[p]);
    chunk.down[i] = y.fraction;
    chunk.right[i] = x.fraction;
  }
}

// The weights of the pixels of the points, in the order of their bits.
template <typename S>
void find_weights(const Chunk<S>& chunk, int64_t n, const S* weights, S (*of_tap)[kChunk]) {
  for (int64_t i = 0; i < n; ++i) {
    const S below = chunk.down[i] * weights[i], above = weights[i] - below;
    of_tap[1][i] = above * chunk.right[i];
    of_tap[0][i] = above - of_tap[1][i];
    of_tap[3][i] = below * chunk.right[i];
    of_tap[2][i] = below - of_tap[3][i];
  }
}

// The distance of a pixel from the top left one.
inline int64_t offset_of(int tap, int64_t pixel_stride, int64_t below) {
  return ((tap & 1) + (tap >> 1) * below) * pixel_stride;
}

// ---- forward ------------------------------------------------------------------------------------

// Adds N vectors of the weighted pixels of a chunk to sums. `width` values exist, if N is 1.
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
    const int32_t taps = chunk.taps[i];
    const T* pixel = value + chunk.pixel[i] * stride;
    if (taps == kAllTaps) {
      const T* below = pixel + chunk.below[i] * stride;
      const S w0 = weights[0][i], w1 = weights[1][i], w2 = weights[2][i], w3 = weights[3][i];
      for (int v = 0; v < N; ++v) {
        const int64_t c = v * kStep, left = width - c;
        total[v] +=
            (w0 * load_values(pixel + c, left) + w1 * load_values(pixel + stride + c, left)) +
            (w2 * load_values(below + c, left) + w3 * load_values(below + stride + c, left));
      }
      continue;
    }
    for (int tap = 0; tap < kTaps; ++tap) {
      if (!(taps >> tap & 1)) continue;
      const T* at = pixel + offset_of(tap, stride, chunk.below[i]);
      for (int v = 0; v < N; ++v)
        total[v] += weights[tap][i] * load_values(at + v * kStep, width - v * kStep);
    }
  }
  for (int v = 0; v < N; ++v) store_values<S>(total[v], sums + v * kStep, width - v * kStep);
}

template <typename T>
void attend_head(const T* value, int64_t stride, int64_t channels,
                 const AttentionPoints<Sum<T>>& points, const Sum<T>* locations,
                 const Sum<T>* weights, Sum<T>* sums) {
  constexpr int64_t kStep = kWidth<T>;
  constexpr int kVectors = 128 / kVectorBytes;  // 32 floats: their sums stay in registers
  std::memset(sums, 0, channels * sizeof *sums);
  Chunk<Sum<T>> chunk;
  Sum<T> of_tap[kTaps][kChunk];
  for (int64_t first = 0; first < points.count; first += kChunk) {
    const int64_t n = min_of(points.count - first, kChunk);
    find_pixels(points, first, n, locations, chunk);
    find_weights(chunk, n, weights + first, of_tap);
    int64_t c = 0;
    for (; c + kVectors * kStep <= channels; c += kVectors * kStep)
      add_pixels<kVectors>(value + c, stride, chunk, n, of_tap, kVectors * kStep, sums + c);
    for (; c + kStep <= channels; c += kStep)
      add_pixels<1>(value + c, stride, chunk, n, of_tap, kStep, sums + c);
    if (c < channels) add_pixels<1>(value + c, stride, chunk, n, of_tap, channels - c, sums + c);
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

template <int bytes, typename T>
struct Folded {
  typedef T Part __attribute__((vector_size(bytes / 2)));
  Part low, high;
};

// The sum of all lanes.
template <typename S, int bytes = kVectorBytes, typename V>
inline __attribute__((always_inline)) S sum_of(const V& lanes) {
  if constexpr (bytes > 16) {
    const auto halves = __builtin_bit_cast(Folded<bytes, S>, lanes);
    return sum_of<S, bytes / 2>(halves.low + halves.high);
  } else if constexpr (sizeof(S) == 8) {
    return lanes[0] + lanes[1];
  } else {
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

// The products of a pixel with the gradient of the output, summed; and adds that gradient,
// weighted, to the pixel's own.
template <typename T>
inline __attribute__((always_inline)) Sum<T> take_pixel(const T* pixel, const Sum<T>* grad,
                                                        Sum<T> weight, int64_t channels,
                                                        Sum<T>* grad_pixel) {
  using S = Sum<T>;
  constexpr int64_t kStep = kWidth<T>;
  Lanes<S> dot = {};
  for (int64_t c = 0; c < channels; c += kStep) {
    const int64_t left = channels - c;
    const Lanes<S> g = load_values(grad + c, left);
    dot += g * load_values(pixel + c, left);
    store_values<S>(load_values(grad_pixel + c, left) + weight * g, grad_pixel + c, left);
  }
  return sum_of<S>(dot);
}

// Gradients of the locations and weights of a chunk, from the products of its pixels.
template <typename S>
void differentiate(const AttentionPoints<S>& points, int64_t first, int64_t n,
                   const Chunk<S>& chunk, const S (*dots)[kChunk], const S* weights,
                   S* grad_locations, S* grad_weights) {
  for (int64_t i = 0; i < n; ++i) {
    const S right = chunk.right[i], down = chunk.down[i];
    const S top = dots[0][i] + right * (dots[1][i] - dots[0][i]);
    const S bottom = dots[2][i] + right * (dots[3][i] - dots[2][i]);
    const S to_right =
        (dots[1][i] - dots[0][i]) + down * ((dots[3][i] - dots[2][i]) - (dots[1][i] - dots[0][i]));
    grad_weights[i] = top + down * (bottom - top);
    grad_locations[2 * i] = weights[i] * points.width[first + i] * to_right;
    grad_locations[2 * i + 1] = weights[i] * points.height[first + i] * (bottom - top);
  }
}

template <typename T>
void attend_head_backward(const T* value, const AttentionMap<const T>& map,
                          const AttentionPoints<Sum<T>>& points, const Sum<T>* locations,
                          const Sum<T>* weights, const Sum<T>* grad, Sum<T>* grad_value,
                          int64_t grad_stride, Sum<T>* grad_locations, Sum<T>* grad_weights) {
  using S = Sum<T>;
  Chunk<S> chunk;
  S of_tap[kTaps][kChunk], dots[kTaps][kChunk];
  for (int64_t first = 0; first < points.count; first += kChunk) {
    const int64_t n = min_of(points.count - first, kChunk);
    find_pixels(points, first, n, locations, chunk);
    find_weights(chunk, n, weights + first, of_tap);
    for (int64_t i = 0; i < n; ++i) {
      for (int tap = 0; tap < kTaps; ++tap) {
        if (!(chunk.taps[i] >> tap & 1)) {
          dots[tap][i] = 0;
          continue;
        }
        const int64_t pixel = chunk.pixel[i] + offset_of(tap, 1, chunk.below[i]);
        dots[tap][i] = take_pixel(value + pixel * map.pixel_stride, grad, of_tap[tap][i],
                                  map.channels, grad_value + pixel * grad_stride);
      }
    }
    differentiate(points, first, n, chunk, dots, weights + first, grad_locations + 2 * first,
                  grad_weights + first);
  }
}

template <typename T>
void attend_backward(const AttentionMap<const T>& value, const AttentionPoints<Sum<T>>& points,
                     int64_t heads, const Sum<T>* locations, const Sum<T>* weights, const T* grad,
                     const AttentionMap<Sum<T>>& grad_value, Sum<T>* grad_locations,
                     Sum<T>* grad_weights, Sum<T>* sums) {
  const int64_t channels = value.channels, n = points.count;
  for (int64_t h = 0; h < heads; ++h) {
    const T* own = grad + h * channels;
    for (int64_t c = 0; c < channels; ++c) sums[c] = static_cast<Sum<T>>(own[c]);
    attend_head_backward(value.data + h * channels, value, points, locations + h * 2 * n,
                         weights + h * n, sums, grad_value.data + h * channels,
                         grad_value.pixel_stride, grad_locations + h * 2 * n, grad_weights + h * n);
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
    .softmax_backward = softmax_backward<Sum<T>>,
};

}  // namespace

FASTDET_LOOPS(MsDeformAttnLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(MsDeformAttnLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(MsDeformAttnLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(MsDeformAttnLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
