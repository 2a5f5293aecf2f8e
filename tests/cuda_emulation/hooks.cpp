// SPDX-License-Identifier: BSD-3-Clause
// What the compiler calls at each access of memory where it compiles for ThreadSanitizer
// (-fsanitize=thread), without ThreadSanitizer: here the accesses of lanes are told to Requests or
// Races. Only accesses that the host's compiler leaves are seen: what it keeps in a register is no
// access, as on a GPU, though the two compilers need not agree on each.
//
// Which memory it is, is told by the address: a lane's stack is its registers and local memory,
// `static_shared()` is shared memory, the other data of this library constants, the launching stack
// holds the kernel's parameters. Everything else is global.
#include <algorithm>
#include <memory>
#include <string>

#include "include/observer.h"
#include "include/races.h"
#include "include/requests.h"

// By the linker: this library.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[], _end[];

namespace cuda_emulation {

namespace {

struct Range {
  uintptr_t begin = 0;
  size_t bytes = 0;

  Range() = default;
  Range(const void* at, size_t bytes) : begin(reinterpret_cast<uintptr_t>(at)), bytes(bytes) {}
  bool has(uintptr_t address) const { return address - begin < bytes; }
};

constexpr size_t kHostStackBytes = 1 << 20;  // of it a launch's callers use less
constexpr size_t kDynamicBytes = 48 << 10;   // of a block's dynamic shared memory, at most

const Range image(__ehdr_start, _end - __ehdr_start);
Range host_stack, lane_stack, statics, dynamic;
bool lane_runs = false;
unsigned current_lane = 0;
std::unique_ptr<Requests> requests;
std::unique_ptr<Races> races;

class Hooks : public Observer {
 public:
  void start_launch(const void* function, dim3 grid, dim3 block) override {
    host_stack = Range(__builtin_frame_address(0), kHostStackBytes);
    statics = Range(static_shared().data(), static_shared().size());
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    const uint64_t warps = (block.x * block.y * block.z + 31) / 32;
    if (requests) requests->start_launch(function, blocks, blocks * warps);
    if (races) races->start_launch(function);
  }
  void end_launch() override {
    if (requests) requests->end_launch();
  }
  void set_memory(const void* to, size_t bytes) override {
    if (requests) requests->set_memory(to, bytes);
  }
  void start_block(const void* shared, size_t shared_bytes) override {
    dynamic = Range(shared, std::min(shared_bytes, kDynamicBytes));
    if (requests) requests->start_block();
    if (races) races->start_block();
  }
  void start_lane(unsigned index, const void* stack, size_t stack_bytes) override {
    lane_stack = Range(stack, stack_bytes);
    current_lane = index;
    if (requests) requests->start_lane();
    lane_runs = true;
  }
  void stop_lane() override { lane_runs = false; }
  void end_turn() override {
    if (requests) requests->end_turn();
  }
  void meet_in_warp(unsigned warp, unsigned mask, bool orders_memory) override {
    if (requests && !orders_memory) requests->add_talk();
    if (races) races->meet_in_warp(warp, mask, orders_memory);
  }
  void meet_in_block() override {
    if (races) races->meet_in_block();
  }
} hooks;

void tell(const void* caller, uintptr_t address, unsigned bytes, Kind kind) {
  const bool is_static = statics.has(address), is_dynamic = dynamic.has(address);
  const Space space = is_static || is_dynamic ? Space::kShared : Space::kGlobal;
  if (space == Space::kGlobal && (image.has(address) || host_stack.has(address))) return;
  const auto place = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(caller) - image.begin);
  const Access access = {place, space, kind, address, bytes, current_lane};
  if (requests) requests->add(access);
  if (!races || space == Space::kGlobal) return;
  races->add(access, is_static ? address - statics.begin : statics.bytes + address - dynamic.begin);
}

inline void access(const void* caller, const void* at, unsigned bytes, Kind kind) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  if (lane_runs && !lane_stack.has(address)) tell(caller, address, bytes, kind);
}

// A copy of a structure that is no pack: word by word.
void access_range(const void* caller, const void* at, size_t bytes, Kind kind) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  unsigned word = bytes > 16 ? 8 : 4;
  while ((address | bytes) % word) word /= 2;
  for (size_t i = 0; i < bytes; i += word)
    access(caller, static_cast<const char*>(at) + i, word, kind);
}

}  // namespace

void count_atomic(const void* caller, const void* at, size_t bytes) {
  access(caller, at, bytes, Kind::kAtomic);
}

}  // namespace cuda_emulation

using namespace cuda_emulation;

#define HOOK extern "C" __attribute__((visibility("hidden"))) void
#define ACCESS(name, bytes, ...)                                 \
  HOOK __tsan_##name##bytes(void* at) {                          \
    access(__builtin_return_address(0), at, bytes, __VA_ARGS__); \
  }
#define ACCESSES(name, ...)    \
  ACCESS(name, 1, __VA_ARGS__) \
  ACCESS(name, 2, __VA_ARGS__) \
  ACCESS(name, 4, __VA_ARGS__) \
  ACCESS(name, 8, __VA_ARGS__) \
  ACCESS(name, 16, __VA_ARGS__)

ACCESSES(read, Kind::kRead)
ACCESSES(write, Kind::kWrite)
ACCESSES(unaligned_read, Kind::kRead)
ACCESSES(unaligned_write, Kind::kWrite)
HOOK __tsan_read_range(void* at, size_t bytes) {
  access_range(__builtin_return_address(0), at, bytes, Kind::kRead);
}
HOOK __tsan_write_range(void* at, size_t bytes) {
  access_range(__builtin_return_address(0), at, bytes, Kind::kWrite);
}
HOOK __tsan_vptr_update(void**, void*) {}
HOOK __tsan_init() {}

// Reference counts of torch's tensors, on the host.
extern "C" __attribute__((visibility("hidden"))) int __tsan_atomic32_fetch_add(volatile int* at,
                                                                               int value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}

#define EXPORT extern "C" __attribute__((visibility("default")))

// Starts counting, of grids `scale` times as large as they are.
EXPORT void cuda_count_requests(double scale) {
  requests = std::make_unique<Requests>(scale);
  races = nullptr;
  observer = &hooks;
}

// Starts looking for races.
EXPORT void cuda_find_races(bool talks_order) {
  statics = Range(static_shared().data(), static_shared().size());  // as large in each launch
  races = std::make_unique<Races>(statics.bytes + kDynamicBytes, talks_order);
  requests = nullptr;
  observer = &hooks;
}

EXPORT void cuda_count_input(const void* at, size_t bytes, uint64_t weight) {
  requests->add_input(at, bytes, weight);
}
EXPORT void cuda_count_output(const void* at, size_t bytes) { requests->add_output(at, bytes); }

// Ends it and returns what was found, which stays until the next call.
EXPORT const char* cuda_count_end() {
  static std::string lines;
  lines = requests ? requests->lines(image.begin) : races->lines(image.begin);
  observer = nullptr;
  requests = nullptr;
  races = nullptr;
  return lines.c_str();
}
