// SPDX-License-Identifier: BSD-3-Clause
#include "include/requests.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <sstream>

namespace cuda_emulation {

namespace {

uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

uint64_t key_of(const Access& access) {
  return uint64_t(access.place) << 3 | uint64_t(access.space == Space::kShared) << 2 |
         static_cast<uint64_t>(access.kind);
}

// The addresses of the lanes of a request among `lanes`, ascending, each once; returns their
// number.
size_t distinct(const std::array<uintptr_t, 32>& at, uint32_t lanes, uintptr_t* out) {
  size_t n = 0;
  bool sorted = true;
  for (; lanes; lanes &= lanes - 1) {
    const uintptr_t address = at[std::countr_zero(lanes)];
    if (n && address == out[n - 1]) continue;
    sorted &= !n || address > out[n - 1];
    out[n++] = address;
  }
  if (sorted) return n;
  std::sort(out, out + n);
  return std::unique(out, out + n) - out;
}

// The number of lanes at the address that most of them have.
uint64_t most_at_one(const std::array<uintptr_t, 32>& at, uint32_t lanes) {
  std::array<uintptr_t, 32> sorted;
  size_t n = 0;
  for (; lanes; lanes &= lanes - 1) sorted[n++] = at[std::countr_zero(lanes)];
  std::sort(sorted.begin(), sorted.begin() + n);
  uint64_t most = 0;
  for (size_t i = 0, first = 0; i < n; ++i) {
    if (sorted[i] != sorted[first]) first = i;
    most = std::max<uint64_t>(most, i - first + 1);
  }
  return most;
}

}  // namespace

void Requests::start_launch(const void* function, uint64_t blocks, uint64_t warps) {
  const auto found = std::find(functions_.begin(), functions_.end(), function);
  kernel_number_ = found - functions_.begin() + 1;
  if (found == functions_.end()) {
    functions_.push_back(function);
    kernels_.emplace_back();
  }
  kernel_ = &kernels_[kernel_number_ - 1];
  ++kernel_->launches;
  kernel_->blocks += blocks;
  kernel_->warps += warps;
  blocks_of_an_sm_ = std::max<uint64_t>(1, std::ceil(scale_ * blocks / kMultiprocessors));
}

Requests::Site& Requests::site_of(const Access& access) {
  const uint64_t key = key_of(access);
  if (key >= number_of_place_.size()) number_of_place_.resize(key + (1 << 16));
  uint32_t& number = number_of_place_[key];
  if (!number) {
    sites_.push_back({key, {}});
    number = sites_.size();
    sites_.back().second.space = access.space;
    sites_.back().second.kind = access.kind;
  }
  return sites_[number - 1].second;
}

void Requests::add(const Access& access) {
  Site& site = site_of(access);
  if (site.turn != turn_) {
    site.turn = turn_;
    site.next = 0;
  }
  if (site.next == site.num_open) {
    if (!site.num_open++) in_turn_.push_back(number_of_place_[key_of(access)] - 1);
    if (site.open.size() < site.num_open) site.open.emplace_back();
    site.open[site.next].lanes = 0;
  }
  Request& request = site.open[site.next++];
  request.lanes |= 1u << access.lane % 32;
  request.bytes = access.bytes;
  request.at[access.lane % 32] = access.address;
}

void Requests::end_turn() {
  for (const uint32_t number : in_turn_) {
    Site& site = sites_[number].second;
    for (size_t i = 0; i < site.num_open; ++i) count(site, site.open[i]);
    site.num_open = 0;
  }
  in_turn_.clear();
}

void Requests::count(Site& site, const Request& request) {
  Totals& totals = site.totals;
  const uint64_t lanes = std::popcount(request.lanes);
  ++totals.requests;
  totals.lanes += lanes;
  totals.asked += lanes * request.bytes;
  site.bytes = std::max(site.bytes, request.bytes);
  if (site.kind == Kind::kAtomic) totals.same += most_at_one(request.at, request.lanes);
  site.space == Space::kGlobal ? count_global(site, request) : count_shared(site, request);
}

void Requests::count_global(Site& site, const Request& request) {
  std::array<uintptr_t, 32> at;
  const size_t n = distinct(request.at, request.lanes, at.data());
  uint64_t sectors = 0, bytes = 0;
  uintptr_t end = 0, next_sector = 0;
  for (size_t i = 0; i < n; ++i) {
    const uintptr_t stop = at[i] + request.bytes, last = (stop - 1) / kSectorBytes;
    bytes += stop - std::max(at[i], end);
    end = stop;
    for (uintptr_t s = std::max(at[i] / kSectorBytes, next_sector); s <= last; ++s) {
      ++sectors;
      touch(s, site.kind);
    }
    next_sector = std::max(next_sector, last + 1);
  }
  site.totals.sectors += sectors;
  site.totals.ideal += ceil_div(bytes, kSectorBytes);
  site.totals.cycles += ceil_div(bytes, kDataBytes);
  // Writes and atomics pass the first cache.
  if (site.kind != Kind::kRead) kernel_->l2_sectors += sectors;
}

// Of 8 bytes a half of the warp passes at a time, of 16 a quarter. A bank gives one word in a pass,
// to all lanes that want this word.
void Requests::count_shared(Site& site, const Request& request) {
  const unsigned words = ceil_div(request.bytes, kBankBytes), group = 32 / words;
  for (unsigned first = 0; first < 32; first += group) {
    const uint32_t lanes = request.lanes & ((group == 32 ? ~0u : (1u << group) - 1) << first);
    if (!lanes) continue;
    std::array<uintptr_t, 32> at;
    const size_t n = distinct(request.at, lanes, at.data());
    std::array<unsigned, 32> of_bank{};
    uint64_t passes = 1, all = 0;
    uintptr_t next_word = 0;
    for (size_t i = 0; i < n; ++i) {
      const uintptr_t last = (at[i] + request.bytes - 1) / kBankBytes;
      for (uintptr_t w = std::max(at[i] / kBankBytes, next_word); w <= last; ++w, ++all)
        passes = std::max<uint64_t>(passes, ++of_bank[w % 32]);
      next_word = std::max(next_word, last + 1);
    }
    site.totals.sectors += passes;
    site.totals.ideal += ceil_div(all, 32);
    site.totals.cycles += passes;
  }
}

Requests::Sector& Requests::sector_of(uintptr_t number) {
  if (number / 128 != last_page_number_) {
    last_page_number_ = number / 128;
    last_page_ = &pages_[last_page_number_];
  }
  return (*last_page_)[number % 128];
}

uint64_t Requests::weight_of(uintptr_t sector) const {
  for (const Input& input : inputs_)
    if (input.first <= sector && sector < input.end) return input.weight;
  return 0;
}

void Requests::touch(uintptr_t number, Kind kind) {
  Sector& sector = sector_of(number);
  if (!sector.touched && kind != Kind::kWrite) kernel_->read += weight_of(number);
  sector.touched = true;
  if (kind != Kind::kRead) sector.writer = kernel_number_;
  if (kind != Kind::kRead || sector.read_block == block_) return;
  sector.read_block = block_;
  // The blocks of a multiprocessor may share what its cache holds: at best all that it is given.
  kernel_->l2_sectors += 1.0 / blocks_of_an_sm_;
}

void Requests::end_launch() {
  for (auto& [key, site] : sites_) {
    number_of_place_[key] = 0;
    Site& sum = finished_[{kernel_number_, key}];
    sum.space = site.space;
    sum.kind = site.kind;
    sum.bytes = std::max(sum.bytes, site.bytes);
    sum.totals.requests += site.totals.requests;
    sum.totals.lanes += site.totals.lanes;
    sum.totals.asked += site.totals.asked;
    sum.totals.sectors += site.totals.sectors;
    sum.totals.ideal += site.totals.ideal;
    sum.totals.cycles += site.totals.cycles;
    sum.totals.same += site.totals.same;
  }
  sites_.clear();
}

void Requests::set_memory(const void* to, size_t bytes) {
  start_launch(nullptr, 0, 0);
  start_block();
  const uintptr_t first = reinterpret_cast<uintptr_t>(to);
  if (!bytes) return;
  for (uintptr_t s = first / kSectorBytes; s <= (first + bytes - 1) / kSectorBytes; ++s) {
    touch(s, Kind::kWrite);
    ++kernel_->l2_sectors;
  }
}

void Requests::add_input(const void* at, size_t bytes, uint64_t weight) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(at);
  if (bytes)
    inputs_.push_back({first / kSectorBytes, ceil_div(first + bytes, kSectorBytes), weight});
}

void Requests::add_output(const void* at, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(at);
  if (!bytes) return;
  for (uintptr_t s = first / kSectorBytes; s <= (first + bytes - 1) / kSectorBytes; ++s) {
    Sector& sector = sector_of(s);
    if (sector.writer) ++kernels_[sector.writer - 1].written;
    sector.writer = 0;  // an output that is given twice counts once
  }
}

std::string Requests::lines(uintptr_t image) const {
  std::ostringstream out;
  for (size_t i = 0; i < kernels_.size(); ++i) {
    const KernelTotals& k = kernels_[i];
    const auto function = reinterpret_cast<uintptr_t>(functions_[i]);
    out << "kernel " << i << ' ' << (function ? function - image : 0) << ' ' << k.launches << ' '
        << k.blocks << ' ' << k.warps << ' ' << k.talks << ' ' << std::llround(k.l2_sectors) << ' '
        << k.read << ' ' << k.written << '\n';
  }
  for (const auto& [key, site] : finished_) {
    const Totals& t = site.totals;
    out << "site " << key.first - 1 << ' ' << (key.second >> 3) << ' '
        << static_cast<int>(site.space) << ' ' << static_cast<int>(site.kind) << ' ' << site.bytes
        << ' ' << t.requests << ' ' << t.lanes << ' ' << t.asked << ' ' << t.sectors << ' '
        << t.ideal << ' ' << t.cycles << ' ' << t.same << '\n';
  }
  return out.str();
}

}  // namespace cuda_emulation
