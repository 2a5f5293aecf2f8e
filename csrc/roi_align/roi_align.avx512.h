// SPDX-License-Identifier: BSD-3-Clause
// RoIAlign's loops over planes (NCHW) in AVX-512 registers, for roi_align.loops.cpp. Forward merges
// a bin's rows into at most 8 vectors; then a permutation picks the columns of 8 bins, 2 taps at a
// time. Backward distributes 8 bins over the columns and adds the columns to the rows, so that no
// tap needs its own load or store.
#pragma once

#ifdef __AVX512F__

#include "../geometry/box.h"
#include "../isa/lanes.h"
#include "roi_align.loops.h"

namespace fastdet::cpu::FASTDET_ISA {

inline __m512 load_lanes(const float* from, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, from);
}
inline __m512 load_lanes(const Half* from, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}
inline __m512 load_lanes(const BFloat16* from, __mmask16 mask) {
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

constexpr int64_t kWidestSpan = 8 * 16;

// Calls body<number of vectors of the span>(). False if the span is wider than 8 vectors.
template <typename Body>
bool with_vectors(int64_t span, const Body& body) {
  const auto matches = [&]<int kVectors>() {
    if (span > 16 * kVectors) return false;
    body.template operator()<kVectors>();
    return true;
  };
  return matches.template operator()<1>() || matches.template operator()<2>() ||
         matches.template operator()<3>() || matches.template operator()<4>() ||
         matches.template operator()<5>() || matches.template operator()<6>() ||
         matches.template operator()<7>() || matches.template operator()<8>();
}

// The lanes of a merged row that go into each of 8 bins.
struct ColumnPicks {
  // A group is 2 taps of each bin; a pair is 32 columns.
  static constexpr int64_t kBins = 8, kGroups = 8, kPairs = kWidestSpan / 32;

  // For the bins [first, first + 8). False if the span is too wide or a bin has too many taps.
  bool build(const Taps<float>& columns, int64_t first) {
    if (columns.span > kWidestSpan) return false;
    bins = static_cast<int>(min_of(columns.bins - first, kBins));
    groups = 0;
    for (int64_t pw = 0; pw < bins; ++pw) {
      const int64_t begin = columns.begin[first + pw];
      const int64_t taps = columns.begin[first + pw + 1] - begin;
      if (taps > 2 * kGroups) return false;
      for (; 2 * groups < taps; ++groups) clear(groups);
      for (int64_t j = 0; j < taps; ++j) {
        const int64_t lane = j % 2 * kBins + pw, x = columns.index[begin + j] - columns.low;
        index[j / 2][lane] = static_cast<int32_t>(x);
        weight[j / 2][lane] = columns.weight[begin + j];
        mask[j / 2][x / 32] |= static_cast<__mmask16>(1u << lane);
      }
    }
    return true;
  }

  void clear(int group) {
    _mm512_store_si512(index[group], _mm512_setzero_si512());
    _mm512_store_ps(weight[group], _mm512_setzero_ps());
    for (auto& lanes : mask[group]) lanes = 0;
  }

  // The bins of one merged row, which is kVectors vectors.
  template <int kVectors>
  inline __attribute__((always_inline)) __m256 of(const __m512* merged) const {
    __m512 sum = _mm512_setzero_ps();
    for (int g = 0; g < groups; ++g) {
      const __m512i lanes = _mm512_load_si512(index[g]);
      __m512 picked = _mm512_setzero_ps();
      for (int v = 0; v < kVectors; v += 2)
        picked = _mm512_mask_mov_ps(
            picked, mask[g][v / 2],
            _mm512_permutex2var_ps(merged[v], lanes, merged[v + 1 < kVectors ? v + 1 : v]));
      sum = _mm512_fmadd_ps(picked, _mm512_load_ps(weight[g]), sum);
    }
    const __m512 upper = _mm512_shuffle_f32x4(sum, sum, 0xee);
    return _mm512_castps512_ps256(_mm512_add_ps(sum, upper));
  }

  alignas(64) int32_t index[kGroups][16];
  alignas(64) float weight[kGroups][16];
  __mmask16 mask[kGroups][kPairs];
  int bins, groups;
};

template <typename T>
void store_bins(__m256 values, int bins, T* out, int64_t pixel_stride) {
  if constexpr (std::is_same_v<T, float>) {
    if (pixel_stride == 1) {
      _mm256_mask_storeu_ps(out, static_cast<__mmask8>((1u << bins) - 1), values);
      return;
    }
  }
  float each[ColumnPicks::kBins];
  _mm256_storeu_ps(each, values);
  for (int pw = 0; pw < bins; ++pw) out[pw * pixel_stride] = static_cast<T>(each[pw]);
}

template <int kVectors, typename T>
void pool_vectors(const FeatureMap<const T>& map, const Taps<float>& rows,
                  const Taps<float>& columns, const FeatureMap<T>& pooled, const ColumnPicks* picks,
                  int64_t num_picks) {
  const __mmask16 last = static_cast<__mmask16>(0xffffu >> (16 * kVectors - columns.span));
  for (int64_t c = 0; c < map.channels; ++c) {
    const T* plane = map.data + c * map.channel_stride + columns.low;
    for (int64_t ph = 0; ph < rows.bins; ++ph) {
      __m512 merged[kVectors];
      for (auto& vector : merged) vector = _mm512_setzero_ps();
      for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
        const T* row = plane + rows.index[i] * map.row_stride;
        const __m512 weight = _mm512_set1_ps(rows.weight[i]);
        for (int v = 0; v < kVectors; ++v)
          merged[v] = _mm512_fmadd_ps(
              weight, load_lanes(row + 16 * v, v + 1 < kVectors ? 0xffff : last), merged[v]);
      }
      T* out = pooled.data + c * pooled.channel_stride + ph * pooled.row_stride;
      for (int64_t k = 0; k < num_picks; ++k)
        store_bins(picks[k].of<kVectors>(merged), picks[k].bins,
                   out + k * ColumnPicks::kBins * pooled.pixel_stride, pooled.pixel_stride);
    }
  }
}

// Returns false, without any work done, if the RoI is too wide or has too many bins or taps.
template <typename T>
bool pool_planes_by_permutation(const FeatureMap<const T>& map, const Taps<float>& rows,
                                const Taps<float>& columns, const FeatureMap<T>& pooled) {
  constexpr int64_t kMostPicks = 2;
  ColumnPicks picks[kMostPicks];
  const int64_t num_picks = (columns.bins + ColumnPicks::kBins - 1) / ColumnPicks::kBins;
  if (num_picks > kMostPicks) return false;
  for (int64_t k = 0; k < num_picks; ++k)
    if (!picks[k].build(columns, k * ColumnPicks::kBins)) return false;
  return with_vectors(columns.span, [&]<int kVectors>() {
    pool_vectors<kVectors>(map, rows, columns, pooled, picks, num_picks);
  });
}

// The bins that go into each lane of a row: the transpose of ColumnPicks.
struct ColumnDeals {
  // A layer holds one bin for each column.
  static constexpr int64_t kLayers = 4, kVectors = kWidestSpan / 16;

  // False if the RoI has more than 8 bins, too wide a span, or a column in too many bins.
  bool build(const Taps<float>& columns) {
    if (columns.bins > ColumnPicks::kBins || columns.span > kWidestSpan) return false;
    uint8_t used[kWidestSpan] = {};
    layers = 0;
    for (int64_t pw = 0; pw < columns.bins; ++pw) {
      for (int64_t j = columns.begin[pw]; j < columns.begin[pw + 1]; ++j) {
        const int64_t x = columns.index[j] - columns.low, layer = used[x]++;
        if (layer == kLayers) return false;
        for (; layers <= layer; ++layers) clear(layers);
        index[layer][x] = static_cast<int32_t>(pw);
        weight[layer][x] = columns.weight[j];
        mask[layer][x / 16] |= static_cast<__mmask16>(1u << x % 16);
      }
    }
    return true;
  }

  void clear(int layer) {
    for (int64_t v = 0; v < kVectors; ++v) {
      _mm512_store_si512(&index[layer][16 * v], _mm512_setzero_si512());
      _mm512_store_ps(&weight[layer][16 * v], _mm512_setzero_ps());
      mask[layer][v] = 0;
    }
  }

  // Columns [16 v, 16 v + 16) of the distributed bins.
  __m512 of(__m512 bins, int v) const {
    __m512 sum = _mm512_setzero_ps();
    for (int layer = 0; layer < layers; ++layer) {
      const __m512 dealt = _mm512_maskz_permutexvar_ps(
          mask[layer][v], _mm512_load_si512(&index[layer][16 * v]), bins);
      sum = _mm512_fmadd_ps(dealt, _mm512_load_ps(&weight[layer][16 * v]), sum);
    }
    return sum;
  }

  alignas(64) int32_t index[kLayers][kWidestSpan];
  alignas(64) float weight[kLayers][kWidestSpan];
  __mmask16 mask[kLayers][kVectors];
  int layers;
};

template <typename T>
__m512 load_bins(const T* from, int64_t bins, int64_t pixel_stride) {
  if (pixel_stride == 1) return load_lanes(from, static_cast<__mmask16>((1u << bins) - 1));
  alignas(64) float each[16] = {};
  for (int64_t pw = 0; pw < bins; ++pw) each[pw] = static_cast<float>(from[pw * pixel_stride]);
  return _mm512_load_ps(each);
}

template <int kVectors, typename T>
void spread_vectors(const FeatureMap<const T>& grad, const Taps<float>& rows,
                    const Taps<float>& columns, const FeatureMap<float>& map,
                    const ColumnDeals& deals) {
  const __mmask16 last = static_cast<__mmask16>(0xffffu >> (16 * kVectors - columns.span));
  for (int64_t c = 0; c < map.channels; ++c) {
    float* plane = map.data + c * map.channel_stride + columns.low;
    for (int64_t ph = 0; ph < rows.bins; ++ph) {
      const __m512 bins = load_bins(grad.data + c * grad.channel_stride + ph * grad.row_stride,
                                    columns.bins, grad.pixel_stride);
      __m512 dealt[kVectors];
      for (int v = 0; v < kVectors; ++v) dealt[v] = deals.of(bins, v);
      for (int64_t i = rows.begin[ph]; i < rows.begin[ph + 1]; ++i) {
        float* row = plane + rows.index[i] * map.row_stride;
        const __m512 weight = _mm512_set1_ps(rows.weight[i]);
        for (int v = 0; v + 1 < kVectors; ++v)
          _mm512_storeu_ps(row + 16 * v,
                           _mm512_fmadd_ps(weight, dealt[v], _mm512_loadu_ps(row + 16 * v)));
        float* end = row + 16 * (kVectors - 1);
        const __m512 sum =
            _mm512_fmadd_ps(weight, dealt[kVectors - 1], _mm512_maskz_loadu_ps(last, end));
        _mm512_mask_storeu_ps(end, last, sum);
      }
    }
  }
}

// Returns false, without any work done, if the RoI is too wide or has too many bins.
template <typename T>
bool spread_planes_by_permutation(const FeatureMap<const T>& grad, const Taps<float>& rows,
                                  const Taps<float>& columns, const FeatureMap<float>& map) {
  if (columns.span == 0) return true;
  ColumnDeals deals;
  if (!deals.build(columns)) return false;
  return with_vectors(columns.span, [&]<int kVectors>() {
    spread_vectors<kVectors>(grad, rows, columns, map, deals);
  });
}

}  // namespace fastdet::cpu::FASTDET_ISA

#endif
