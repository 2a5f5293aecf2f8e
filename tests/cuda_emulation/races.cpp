// SPDX-License-Identifier: BSD-3-Clause
#include "include/races.h"

#include <algorithm>
#include <sstream>

namespace cuda_emulation {

void Races::meet_in_warp(unsigned warp, unsigned mask, bool orders_memory) {
  if (!orders_memory && !talks_order_) return;
  std::array<uint64_t, 32> all{};
  for (unsigned k = 0; k < 32; ++k) {
    if (!(mask >> k & 1)) continue;
    const unsigned lane = warp * 32 + k;
    heard_[lane][k] = ++time_[lane];
    for (unsigned i = 0; i < 32; ++i) all[i] = std::max(all[i], heard_[lane][i]);
  }
  for (unsigned k = 0; k < 32; ++k)
    if (mask >> k & 1) heard_[warp * 32 + k] = all;
}

bool Races::ordered(const Mark& before, unsigned lane) const {
  if (before.epoch != epoch_ || before.lane == lane) return true;
  return before.lane / 32 == lane / 32 && heard_[lane][before.lane % 32] > before.time;
}

void Races::check(const Mark& before, const Access& access) {
  if (ordered(before, access.lane)) return;
  if (before.kind == Kind::kAtomic && access.kind == Kind::kAtomic) return;
  found_.insert({function_, before.place, before.kind, access.place, access.kind});
}

void Races::add(const Access& access, size_t offset) {
  const Mark mark = {epoch_, time_[access.lane], access.place, static_cast<uint16_t>(access.lane),
                     access.kind};
  for (unsigned i = 0; i < access.bytes; ++i) {
    Byte& byte = bytes_.at(offset + i);  // an access that is not looked at would hide a race
    check(byte.write, access);
    if (access.kind != Kind::kRead) {
      for (const Mark& read : {byte.read, byte.read_by_warp, byte.read_by_other_warp})
        check(read, access);
      byte.write = mark;
      continue;
    }
    if (byte.read.lane / 32 != mark.lane / 32) {
      byte.read_by_other_warp = byte.read;
      byte.read_by_warp = {};
    } else if (byte.read.lane != mark.lane) {
      byte.read_by_warp = byte.read;
    }
    byte.read = mark;
  }
}

std::string Races::lines(uintptr_t image) const {
  std::ostringstream out;
  for (const auto& [function, before, kind_before, after, kind_after] : found_)
    out << "race " << reinterpret_cast<uintptr_t>(function) - image << ' ' << before << ' '
        << static_cast<int>(kind_before) << ' ' << after << ' ' << static_cast<int>(kind_after)
        << '\n';
  return out.str();
}

}  // namespace cuda_emulation
