// SPDX-License-Identifier: BSD-3-Clause
// Max pooling of the channels of one pixel. Floating values are compared as float32, which holds
// every bfloat16. As in torch, a NaN in bfloat16 becomes the usual NaN.
#include "max_pool.loops.h"

#include "../isa/stored_lanes.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

constexpr int64_t kLanes = kLanesOf<float>;
constexpr int kVectors = 4;
using Places = Lanes<int32_t>;

typedef uint8_t ByteLanes __attribute__((vector_size(kLanes)));

// The first n of uint8, or all if there are fewer lanes; the other lanes are 0.
__attribute__((always_inline)) inline Places load_places(const uint8_t* p, int64_t n) {
  ByteLanes bytes = {};
  if (n >= kLanes)
    __builtin_memcpy(&bytes, p, kLanes);
  else
    __builtin_memcpy(&bytes, p, n);
  // In two steps: GCC 12 has no vector instruction for the whole.
  return __builtin_convertvector(__builtin_convertvector(bytes, BFloat16Lanes), Places);
}

__attribute__((always_inline)) inline void store_places(const Places& places, uint8_t* p,
                                                        int64_t n) {
  const ByteLanes bytes = __builtin_convertvector(places, ByteLanes);
  if (n >= kLanes)
    __builtin_memcpy(p, &bytes, kLanes);
  else
    __builtin_memcpy(p, &bytes, n);
}

// Calls body.template operator()<vectors>(c, n) for the channels from c on, of which n are left.
// Several vectors at a time hide the latency of the comparisons.
template <typename Body>
__attribute__((always_inline)) inline void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kVectors * kLanes <= channels; c += kVectors * kLanes)
    body.template operator()<kVectors>(c, kLanes);
  for (; c + kLanes <= channels; c += kLanes) body.template operator()<1>(c, kLanes);
  if (c < channels) body.template operator()<1>(c, channels - c);
}

// Where x is larger than `best`, or NaN.
__attribute__((always_inline)) inline LaneMask<float> is_larger(const Lanes<float>& x,
                                                                const Lanes<float>& best) {
  return (x > best) | (x != x);
}

template <typename T>
void largest(const T* const* pixels, int64_t count, int64_t channels, T* out) {
  for_channels(channels, [&]<int kCount>(int64_t c, int64_t n) __attribute__((always_inline)) {
    Lanes<float> best[kCount];
    for (int i = 0; i < kCount; ++i) best[i] = load_first_floats(pixels[0] + c + i * kLanes, n);
    for (int64_t t = 1; t < count; ++t)
      for (int i = 0; i < kCount; ++i) {
        const Lanes<float> x = load_first_floats(pixels[t] + c + i * kLanes, n);
        best[i] = is_larger(x, best[i]) ? x : best[i];
      }
    for (int i = 0; i < kCount; ++i) store_first_floats(best[i], out + c + i * kLanes, n);
  });
}

void largest_of_bytes(const uint8_t* const* pixels, int64_t count, int64_t channels, uint8_t* out) {
  constexpr int64_t kBytes = kLanesOf<uint8_t>;
  for (int64_t c = 0; c < channels; c += kBytes) {
    const int64_t n = channels - c < kBytes ? channels - c : kBytes;
    Lanes<uint8_t> best = load_first(pixels[0] + c, n);
    for (int64_t t = 1; t < count; ++t) {
      const Lanes<uint8_t> x = load_first(pixels[t] + c, n);
      best = x > best ? x : best;
    }
    store_first<uint8_t>(best, out + c, n);
  }
}

template <typename T>
void largest_and_place(const T* const* pixels, const uint8_t* places, int64_t count,
                       int64_t channels, T* out, uint8_t* argmax) {
  for_channels(channels, [&]<int kCount>(int64_t c, int64_t n) __attribute__((always_inline)) {
    Lanes<float> best[kCount];
    Places place[kCount];
    for (int i = 0; i < kCount; ++i) {
      best[i] = load_first_floats(pixels[0] + c + i * kLanes, n);
      place[i] = all_lanes<int32_t>(places[0]);
    }
    for (int64_t t = 1; t < count; ++t)
      for (int i = 0; i < kCount; ++i) {
        const Lanes<float> x = load_first_floats(pixels[t] + c + i * kLanes, n);
        const auto larger = is_larger(x, best[i]);
        best[i] = larger ? x : best[i];
        place[i] = larger ? all_lanes<int32_t>(places[t]) : place[i];
      }
    for (int i = 0; i < kCount; ++i) {
      store_first_floats(best[i], out + c + i * kLanes, n);
      store_places(place[i], argmax + c + i * kLanes, n);
    }
  });
}

template <typename T>
void gradient(const T* const* grads, const uint8_t* const* argmax, const uint8_t* places,
              int64_t count, int64_t channels, T* out) {
  for_channels(channels, [&]<int kCount>(int64_t c, int64_t n) __attribute__((always_inline)) {
    Lanes<float> sum[kCount] = {};
    for (int64_t w = 0; w < count; ++w) {
      const Places place = all_lanes<int32_t>(places[w]);
      for (int i = 0; i < kCount; ++i) {
        const auto chosen = load_places(argmax[w] + c + i * kLanes, n) == place;
        const Lanes<float> grad = load_first_floats(grads[w] + c + i * kLanes, n);
        sum[i] = sum[i] + (chosen ? grad : Lanes<float>{});
      }
    }
    for (int i = 0; i < kCount; ++i) store_first_floats(sum[i], out + c + i * kLanes, n);
  });
}

template <typename T>
constexpr MaxPoolLoops<T> kLoops = {largest<T>, largest_and_place<T>, gradient<T>};
constexpr MaxPoolLoops<uint8_t> kLoopsOfBytes = {largest_of_bytes, nullptr, nullptr};

}  // namespace

FASTDET_LOOPS(MaxPoolLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(MaxPoolLoops<BFloat16>) { return kLoops<BFloat16>; }
FASTDET_LOOPS(MaxPoolLoops<uint8_t>) { return kLoopsOfBytes; }

}  // namespace fastdet::cpu::FASTDET_ISA
