// SPDX-License-Identifier: BSD-3-Clause
// The matrices of Winograd's F(2x2, 3x3): B^T d B of a tile's inputs d, A^T m A of the products m.
// Products of bytes are those of AVX-512 VNNI or AVX-VNNI where the processor has them.
#include "winograd_int8.loops.h"

#include "../isa/byte_products.h"
#include "../isa/panel_product.h"
#include "../isa/stored_lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

using Words = Lanes<int16_t>;
using Ints = Lanes<int32_t>;
using Floats = Lanes<float>;
typedef uint8_t BytesOfWords __attribute__((vector_size(kVectorBytes / 2)));
typedef uint8_t BytesOfInts __attribute__((vector_size(kVectorBytes / 4)));
constexpr int64_t kWords = kLanesOf<int16_t>, kInts = kLanesOf<int32_t>;
constexpr int64_t kFloats = kLanesOf<float>;
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer

__attribute__((always_inline)) inline void input_of(const Words* d, Words* out) {
  out[0] = d[0] - d[2];
  out[1] = d[1] + d[2];
  out[2] = d[2] - d[1];
  out[3] = d[1] - d[3];
}

// x * y / 2^15, rounded to the nearest integer, ties upwards.
__attribute__((always_inline)) inline Words multiply_high(const Words& x, const Words& y) {
#if defined(__AVX512F__)
  return __builtin_bit_cast(
      Words, _mm512_mulhrs_epi16(__builtin_bit_cast(__m512i, x), __builtin_bit_cast(__m512i, y)));
#elif defined(__AVX2__)
  return __builtin_bit_cast(
      Words, _mm256_mulhrs_epi16(__builtin_bit_cast(__m256i, x), __builtin_bit_cast(__m256i, y)));
#else
  typedef int32_t Wide __attribute__((vector_size(2 * kVectorBytes)));
  const Wide product = __builtin_convertvector(x, Wide) * __builtin_convertvector(y, Wide);
  return __builtin_convertvector((product + (1 << 14)) >> 15, Words);
#endif
}

__attribute__((always_inline)) inline BytesOfWords rounded(const Words& x,
                                                           const Int8Rounding& how) {
  // |x - offset| <= 1020: 32 times that fits.
  const Words scaled = (x - all_lanes<int16_t>(how.offset)) << 5;
  const Words byte =
      multiply_high(scaled, all_lanes<int16_t>(how.multiplier)) + all_lanes<int16_t>(how.middle);
  const Words least = {}, most = all_lanes<int16_t>(255);
  const Words above = byte > least ? byte : least;
  return __builtin_convertvector(above < most ? above : most, BytesOfWords);
}

void int8_input(const uint8_t* const* pixels, int64_t channels, const Int8Rounding* roundings,
                uint8_t* out, int64_t position_stride) {
  const auto transform = [&](int64_t x, const auto& load) __attribute__((always_inline)) {
    Words rows[4][4];
    for (int j = 0; j < 4; ++j) {
      Words column[4], of_column[4];
      for (int i = 0; i < 4; ++i) column[i] = load(pixels[i * 4 + j] + x);
      input_of(column, of_column);
      for (int i = 0; i < 4; ++i) rows[i][j] = of_column[i];
    }
    uint8_t* to = out + x;
    for (int i = 0; i < 4; ++i) {
      Words of_row[4];
      input_of(rows[i], of_row);
      for (int j = 0; j < 4; ++j, to += position_stride) {
        const BytesOfWords bytes = rounded(of_row[j], roundings[4 * i + j]);
        __builtin_memcpy(to, &bytes, sizeof bytes);
      }
    }
  };
  const auto widened = [](const uint8_t* p) __attribute__((always_inline)) {
    BytesOfWords bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Words);
  };
  int64_t x = 0;
  for (; x + kWords <= channels; x += kWords) transform(x, widened);
  const int64_t rest = channels - x;
  if (rest > 0)
    transform(x, [&](const uint8_t* p) {
      uint8_t some[kWords] = {};
      __builtin_memcpy(some, p, rest);
      return widened(some);
    });
}

#if defined(__AVX512F__)
#define FASTDET_VNNI __attribute__((target("avx512vnni")))
#elif defined(__AVX2__)
#define FASTDET_VNNI __attribute__((target("avxvnni")))
#else
#define FASTDET_VNNI
#endif

// Adds the products of four bytes with the four signed bytes of each lane.
FASTDET_VNNI __attribute__((always_inline)) inline Ints add_products(const Ints& sum,
                                                                     const uint8_t* bytes,
                                                                     const Ints& signed_bytes) {
#if defined(__AVX2__)
  int32_t four;
  __builtin_memcpy(&four, bytes, sizeof four);
#endif
#if defined(__AVX512F__)
  return __builtin_bit_cast(
      Ints, _mm512_dpbusd_epi32(__builtin_bit_cast(__m512i, sum), _mm512_set1_epi32(four),
                                __builtin_bit_cast(__m512i, signed_bytes)));
#elif defined(__AVX2__)
  return __builtin_bit_cast(
      Ints, _mm256_dpbusd_avx_epi32(__builtin_bit_cast(__m256i, sum), _mm256_set1_epi32(four),
                                    __builtin_bit_cast(__m256i, signed_bytes)));
#else
  Ints total = sum;
  for (int i = 0; i < 4; ++i)
    total += (signed_bytes << (24 - 8 * i) >> 24) * static_cast<int32_t>(bytes[i]);
  return total;
#endif
}

// `rows` is at most kRows.
template <int kRows>
FASTDET_VNNI void multiply_at_most(const uint8_t* left, int64_t left_stride, int64_t rows,
                                   const int8_t* panel, int64_t quads, const int32_t* start,
                                   int32_t* out) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return multiply_at_most<kRows - 1>(left, left_stride, rows, panel, quads, start, out);
  for (int64_t column = 0; column < kWinogradPanel; column += 2 * kInts) {
    const Ints start0 = load_lanes(start + column), start1 = load_lanes(start + column + kInts);
    Ints sum[kRows][2];
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = start0;
      sum[i][1] = start1;
    }
    const uint8_t* bytes = left;
    const int8_t* right = panel + 4 * column;
    for (int64_t k = 0; k < quads; ++k, bytes += 4, right += 4 * kWinogradPanel) {
      Ints b0, b1;
      __builtin_memcpy(&b0, right, sizeof b0);
      __builtin_memcpy(&b1, right + sizeof b0, sizeof b1);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        sum[i][0] = add_products(sum[i][0], bytes + i * left_stride, b0);
        sum[i][1] = add_products(sum[i][1], bytes + i * left_stride, b1);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      int32_t* to = out + i * kWinogradPanel + column;
      store_lanes<int32_t>(sum[i][0], to);
      store_lanes<int32_t>(sum[i][1], to + kInts);
    }
  }
}

// The rows are divided evenly: of few rows, the products would wait for each other.
void int8_multiply(const uint8_t* left, int64_t left_stride, int64_t rows, const int8_t* panel,
                   int64_t quads, const int32_t* start, int32_t* out) {
  for (int64_t groups = round_up(rows, kProductRows) / kProductRows; groups > 0; --groups) {
    const int64_t some = round_up(rows, groups) / groups;
    multiply_at_most<kProductRows>(left, left_stride, some, panel, quads, start, out);
    rows -= some;
    left += some * left_stride;
    out += some * kWinogradPanel;
  }
}

__attribute__((always_inline)) inline void output_of(const Floats* m, Floats* out) {
  out[0] = m[0] + m[1] + m[2];
  out[1] = m[1] - m[2] - m[3];
}

template <typename T>
__attribute__((always_inline)) inline void store_result(const Floats& y, int32_t, T* p, int64_t n) {
  store_first_floats(y, p, n);
}

__attribute__((always_inline)) inline void store_result(const Floats& y, int32_t zero_point,
                                                        uint8_t* p, int64_t n) {
  const Ints rounded = __builtin_convertvector((y + kRounder) - kRounder, Ints) + zero_point;
  const auto bytes = __builtin_convertvector(rounded, BytesOfInts);
  if (n >= kFloats)
    __builtin_memcpy(p, &bytes, sizeof bytes);
  else
    __builtin_memcpy(p, &bytes, n);
}

__attribute__((always_inline)) inline Floats floats_of(const uint8_t* p, int64_t n) {
  BytesOfInts bytes = {};
  if (n >= kFloats)
    __builtin_memcpy(&bytes, p, sizeof bytes);
  else
    __builtin_memcpy(&bytes, p, n);
  return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
}

template <typename T>
void int8_output(const int32_t* products, int64_t position_stride, const Int8Result& result,
                 const uint8_t* const* summands, int64_t first, int64_t channels,
                 T* const* pixels) {
  const Floats least = all_lanes(result.least), most = all_lanes(result.most);
  for (int64_t x = 0; x < channels; x += kFloats) {
    const int64_t n = channels - x;
    const float* factors = result.factors + first + x;
    Floats rows[2][4];
    for (int j = 0; j < 4; ++j) {
      Floats column[4], of_column[2];
      for (int i = 0; i < 4; ++i) {
        const int64_t q = 4 * i + j;
        const Ints product = load_lanes(products + x + q * position_stride);
        column[i] = __builtin_convertvector(product, Floats) *
                    load_lanes(factors + q * result.factor_stride);
      }
      output_of(column, of_column);
      for (int i = 0; i < 2; ++i) rows[i][j] = of_column[i];
    }
    const Floats bias = load_lanes(result.bias + first + x);
    for (int i = 0; i < 2; ++i) {
      Floats of_row[2];
      output_of(rows[i], of_row);
      for (int j = 0; j < 2; ++j) {
        T* to = pixels[2 * i + j];
        if (!to) continue;
        Floats y = of_row[j] + bias;
        if (summands)
          y += (floats_of(summands[2 * i + j] + first + x, n) -
                static_cast<float>(result.summand_zero_point)) *
               result.summand_scale;
        y = y > least ? y : least;
        y = y < most ? y : most;
        store_result(y, result.zero_point, to + first + x, n);
      }
    }
  }
}

constexpr WinogradInt8Loops kLoops = {.input = int8_input, .multiply = int8_multiply};

template <typename T>
constexpr WinogradInt8ResultLoops<T> kResultLoops = {.output = int8_output<T>};

}  // namespace

FASTDET_LOOPS(WinogradInt8Loops) {
#if defined(__AVX512F__)
  if (!has_byte_products(Isa::kAvx512)) return avx2::loops<WinogradInt8Loops>();
#elif defined(__AVX2__)
  if (!has_byte_products(Isa::kAvx2)) return baseline::loops<WinogradInt8Loops>();
#endif
  return kLoops;
}
FASTDET_LOOPS(WinogradInt8ResultLoops<uint8_t>) { return kResultLoops<uint8_t>; }
FASTDET_LOOPS(WinogradInt8ResultLoops<float>) { return kResultLoops<float>; }
FASTDET_LOOPS(WinogradInt8ResultLoops<BFloat16>) { return kResultLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
