// SPDX-License-Identifier: BSD-3-Clause
#include "include/block.h"

#include <link.h>

#include "include/observer.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FASTDET_SANITIZED true
#else
#define FASTDET_SANITIZED false
#endif

namespace cuda_emulation {

dim3 threadIdx, blockIdx, blockDim, gridDim;
Observer* observer = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kWarp = 32;

// Of a grid's blocks, and of a block's warps and lanes. 0: ascending, 1: descending, else: shuffled
// by this seed, anew at each barrier.
unsigned lane_order = 0;
std::mt19937 shuffler;

int64_t num_launches = 0;

// AddressSanitizer must hear of each change of stacks; `fake` keeps the left stack's bookkeeping.
void leaving([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack,
             [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}
void arrived([[maybe_unused]] void* fake, [[maybe_unused]] const void** from = nullptr,
             [[maybe_unused]] size_t* bytes = nullptr) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, from, bytes);
#endif
}

// Ascending numbers as the setting has them.
std::vector<size_t> ordered(std::vector<size_t> numbers) {
  if (lane_order == 1) std::reverse(numbers.begin(), numbers.end());
  if (lane_order > 1) std::shuffle(numbers.begin(), numbers.end(), shuffler);
  return numbers;
}

// 0 .. n - 1 as the setting has it.
std::vector<size_t> order_of(size_t n) {
  std::vector<size_t> numbers(n);
  std::iota(numbers.begin(), numbers.end(), 0);
  return ordered(std::move(numbers));
}

// ---- shared memory ------------------------------------------------------------------------------

constexpr size_t kSharedBytes = 48 << 10;  // what a kernel has without asking for more

// NaN as float16, bfloat16, float32 and float64; as an integer a number that nobody counts on.
constexpr uint16_t kPoison = 0xFFF5;

// Fills the memory with poison. Returns how many bytes were something else.
size_t poison(std::span<std::byte> memory) {
  static const auto clean = [] {
    std::array<uint16_t, 256> words;
    words.fill(kPoison);
    return words;
  }();
  size_t changed = 0;
  for (size_t at = 0; at < memory.size(); at += sizeof clean) {
    const auto part = memory.subspan(at, std::min(sizeof clean, memory.size() - at));
    if (std::memcmp(part.data(), clean.data(), part.size()) == 0) continue;
    const auto* want = reinterpret_cast<const std::byte*>(clean.data());
    for (size_t i = 0; i < part.size(); ++i) changed += part[i] != want[i];
    std::memcpy(part.data(), want, part.size());
  }
  return changed;
}

// The static shared memory of a grid's kernel: some of the variables of all kernels, which are too
// many to look at all of them after each block. Where no block of the grid has written yet is
// looked at after 1, 2, 4, 8, ... blocks and at the end.
class Variables {
 public:
  explicit Variables(std::span<std::byte> all) : all_(all), written_(all.size() / kPart + 1) {}

  // Fills them with poison. Returns how many bytes were something else, of those looked at.
  size_t poison(bool everywhere) {
    size_t changed = 0;
    for (size_t i = 0; i < written_.size(); ++i) {
      if (!everywhere && !written_[i]) continue;
      const size_t begin = i * kPart, size = std::min(kPart, all_.size() - begin);
      const size_t found = cuda_emulation::poison(all_.subspan(begin, size));
      written_[i] = written_[i] || found > 0;
      changed += found;
    }
    return changed;
  }

 private:
  static constexpr size_t kPart = 4096;

  std::span<std::byte> all_;
  std::vector<bool> written_;
};

// Lies among the static shared memory, since it is thread-local too.
thread_local std::byte in_static_shared;

}  // namespace

#ifdef __x86_64__

// Keeps the registers that a function must keep on the stack that it leaves, and that stack's
// pointer in `from`; continues on the stack `to`. ucontext's swap makes a system call besides,
// which takes longer than a lane runs between two switches.
extern "C" __attribute__((visibility("hidden"))) void cuda_emulation_switch(void** from, void* to);
asm(R"(
  .pushsection .text
  .type cuda_emulation_switch, @function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_emulation_switch, . - cuda_emulation_switch
  .popsection
)");

// What a stack that was left keeps.
class Fiber {
 public:
  // Lets the next switch to it call `enter`, which never returns, on this stack.
  void start(std::byte* stack, size_t bytes, void (*enter)()) {
    auto* top = reinterpret_cast<void**>(stack + bytes / 16 * 16);
    *--top = nullptr;  // where `enter` would return to
    *--top = reinterpret_cast<void*>(enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer_ = top;
  }
  // Leaves `from` for `to`; returns when something switches back to `from`.
  static void change(Fiber& from, Fiber& to) { cuda_emulation_switch(&from.pointer_, to.pointer_); }

 private:
  void* pointer_ = nullptr;
};

#else

class Fiber {
 public:
  void start(std::byte* stack, size_t bytes, void (*enter)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, enter, 0);
  }
  static void change(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

namespace {

size_t threads_of(dim3 block) { return size_t(block.x) * block.y * block.z; }

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kEnded };

struct Lane {
  Fiber fiber;
  std::unique_ptr<std::byte[]> stack;
  State state = State::kEnded;
  dim3 index;
  Where where;
  unsigned mask = 0;                  // of the warp barrier that it waits at
  uint64_t told = 0;                  // at that barrier
  bool orders_memory = false;         // the same
  std::array<uint64_t, kWarp> heard;  // there, from each lane of the mask
  void* fake_stack = nullptr;
};

class Block {
 public:
  void run(dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    shared_.resize(shared_bytes / sizeof(std::max_align_t) + 1);
    poison(std::as_writable_bytes(std::span(shared_)));
    if (observer) observer->start_block(shared_.data(), shared_bytes);
    start_lanes(size);
    while (num_ended_ < num_lanes_)
      if (!run_warps() && !release_block()) throw std::runtime_error(stuck());
  }

  void wait(State state) {
    Lane& lane = lanes_[current_];
    lane.state = state;
    leaving(&lane.fake_stack, scheduler_stack_, scheduler_bytes_);
    Fiber::change(lane.fiber, scheduler_);
    arrived(lane.fake_stack, &scheduler_stack_, &scheduler_bytes_);
  }

  Lane& current() { return lanes_[current_]; }
  size_t current_index() const { return current_; }
  void* shared() { return shared_.data(); }

 private:
  static void enter() { block_->run_current(); }

  // The body of a lane's fiber: runs the lane in one block after another.
  void run_current() {
    for (;;) {
      arrived(nullptr, &scheduler_stack_, &scheduler_bytes_);
      (*kernel_)();
      current().state = State::kEnded;
      ++num_ended_;
      leaving(nullptr, scheduler_stack_, scheduler_bytes_);
      Fiber::change(current().fiber, scheduler_);
    }
  }

  // Gives the lane a new fiber, which starts at `enter`.
  static void renew(Lane& lane) {
    if (!lane.stack) lane.stack = std::make_unique<std::byte[]>(kStackBytes);
    lane.fake_stack = nullptr;
    lane.fiber.start(lane.stack.get(), kStackBytes, &Block::enter);
  }

  void start_lanes(dim3 size) {
    const size_t n = threads_of(size);
    num_lanes_ = n;
    num_ended_ = 0;
    for (size_t i = 0; i < n; ++i) {
      Lane& lane = lanes_[i];
      // A lane that did not end is still inside a kernel that an error stopped.
      if (FASTDET_SANITIZED || !lane.stack || lane.state != State::kEnded) renew(lane);
      lane.index = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
      lane.state = State::kReady;
    }
  }

  void resume(size_t i) {
    current_ = i;
    threadIdx = lanes_[i].index;
    block_ = this;
    void* fake = nullptr;
    if (observer) observer->start_lane(i, lanes_[i].stack.get(), kStackBytes);
    leaving(&fake, lanes_[i].stack.get(), kStackBytes);
    Fiber::change(scheduler_, lanes_[i].fiber);
    arrived(fake);
    if (observer) observer->stop_lane();
  }

  // Runs each warp as far as it comes before the next one: so it is ahead of others, where the
  // block has no barrier. Where warps are shuffled, another warp may go on after each of its
  // barriers. False where no warp can go on.
  bool run_warps() {
    bool ran = false;
    for (size_t w : order_of((num_lanes_ + kWarp - 1) / kWarp)) {
      while (run_warp(w)) {
        ran = true;
        if (lane_order > 1) return true;
      }
    }
    return ran;
  }

  // Runs the lanes of a warp up to their next barriers; false where none can go on.
  bool run_warp(size_t w) {
    std::vector<size_t> ready;
    ready.reserve(kWarp);
    for (size_t i = w * kWarp; i < std::min<size_t>((w + 1) * kWarp, num_lanes_); ++i) {
      if (lanes_[i].state == State::kAtWarpBarrier) release_warp(i);
      if (lanes_[i].state == State::kReady) ready.push_back(i);
    }
    if (ready.empty()) return false;
    for (size_t i : ordered(std::move(ready))) resume(i);
    if (observer) observer->end_turn();
    return true;
  }

  // Lets all go on where all wait for the same; false where they do not.
  bool release_block() {
    const Lane* first = nullptr;
    for (size_t i = 0; i < num_lanes_; ++i) {
      const Lane& lane = lanes_[i];
      if (lane.state == State::kEnded) continue;
      if (lane.state != State::kAtBlockBarrier) return false;
      if (first && !same(first->where, lane.where)) return false;
      first = &lane;
    }
    for (size_t i = 0; i < num_lanes_; ++i)
      if (lanes_[i].state == State::kAtBlockBarrier) lanes_[i].state = State::kReady;
    if (observer && first) observer->meet_in_block();
    return first != nullptr;
  }

  // `i` waits at a warp barrier: lets the lanes of its mask go on where they wait at the same one.
  void release_warp(size_t i) {
    const size_t first = i / kWarp * kWarp;
    const unsigned mask = lanes_[i].mask;
    std::array<uint64_t, kWarp> told;
    told.fill(0xA5A5A5A5A5A5A5A5);  // what a lane outside the mask told is undefined
    for (unsigned k = 0; k < kWarp; ++k) {
      if (!(mask >> k & 1) || first + k >= num_lanes_) continue;
      const Lane& lane = lanes_[first + k];
      if (lane.state == State::kEnded) continue;
      if (lane.state != State::kAtWarpBarrier || lane.mask != mask ||
          !same(lane.where, lanes_[i].where))
        return;
      told[k] = lane.told;
    }
    if (observer) observer->meet_in_warp(first / kWarp, mask, lanes_[i].orders_memory);
    for (unsigned k = 0; k < kWarp; ++k) {
      if (!(mask >> k & 1) || first + k >= num_lanes_) continue;
      lanes_[first + k].heard = told;
      if (lanes_[first + k].state != State::kEnded) lanes_[first + k].state = State::kReady;
    }
  }

  static bool same(const Where& a, const Where& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           std::string_view(a.file_name()) == b.file_name();
  }

  std::string stuck() const {
    std::ostringstream message;
    message << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z
            << "): lanes wait for each other forever:";
    for (size_t i = 0, said = 0; i < num_lanes_ && said < 8; ++i) {
      if (lanes_[i].state == State::kEnded) continue;
      message << " lane " << i << " at " << lanes_[i].where.file_name() << ":"
              << lanes_[i].where.line() << ";";
      ++said;
    }
    return message.str();
  }

  static inline Block* block_ = nullptr;

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Lane> lanes_ = std::vector<Lane>(1024);
  size_t num_lanes_ = 0, num_ended_ = 0, current_ = 0;
  Fiber scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_bytes_ = 0;
  std::vector<std::max_align_t> shared_;
};

Block& the_block() {
  static Block block;
  return block;
}

void check_size(const char* what, dim3 size, dim3 most) {
  if (size.x - 1 < most.x && size.y - 1 < most.y && size.z - 1 < most.z) return;
  std::ostringstream message;
  message << what << ": expected 1 to (" << most.x << ", " << most.y << ", " << most.z << "), got ("
          << size.x << ", " << size.y << ", " << size.z << ")";
  throw std::runtime_error(message.str());
}

// `in_variables`: how many bytes of static shared memory the block wrote, at least.
void check_shared(size_t in_variables, size_t dynamic) {
  if (in_variables + dynamic <= kSharedBytes) return;
  std::ostringstream message;
  message << "shared memory: expected at most " << kSharedBytes << " bytes, got " << in_variables
          << " of variables and " << dynamic << " at launch";
  throw std::runtime_error(message.str());
}

}  // namespace

void count_memset(const void* to, size_t bytes) {
  ++num_launches;
  if (observer) observer->set_memory(to, bytes);
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel,
              const void* function) {
  ++num_launches;
  check_size("grid", grid, {INT32_MAX, 65535, 65535});
  check_size("block", block, {1024, 1024, 64});
  if (threads_of(block) > 1024) throw std::runtime_error("a block has at most 1024 threads");
  if (observer) observer->start_launch(function, grid, block);
  gridDim = grid;
  blockDim = block;
  Variables variables(static_shared());
  static bool poisoned = false;  // not before the first grid, and not after an error
  if (!poisoned) variables.poison(true);
  poisoned = false;
  size_t num_run = 0;
  for (size_t i : order_of(size_t(grid.x) * grid.y * grid.z)) {
    blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    the_block().run(block, shared_bytes, kernel);
    check_shared(variables.poison(std::has_single_bit(++num_run)), shared_bytes);
  }
  if (observer) observer->end_launch();
  if (!std::has_single_bit(num_run)) variables.poison(true);
  poisoned = true;
}

std::span<std::byte> static_shared() {
#ifdef __SANITIZE_ADDRESS__
  return {};
#endif
  // The thread-local variables of a library, of all libraries, are found by one of them.
  struct Search {
    std::byte* one;
    std::span<std::byte> all;
  } search = {&in_static_shared, {}};
  const auto look_at = [](dl_phdr_info* library, size_t, void* data) {
    auto& search = *static_cast<Search*>(data);
    auto* const begin = static_cast<std::byte*>(library->dlpi_tls_data);
    for (const auto& part : std::span(library->dlpi_phdr, library->dlpi_phnum))
      if (part.p_type == PT_TLS && begin <= search.one && search.one < begin + part.p_memsz)
        search.all = {begin, part.p_memsz};
    return 0;
  };
  dl_iterate_phdr(look_at, &search);
  return search.all;
}

void* dynamic_shared() { return the_block().shared(); }

void sync_block(Where where) {
  the_block().current().where = where;
  the_block().wait(State::kAtBlockBarrier);
}

const std::array<uint64_t, 32>& exchange(unsigned mask, uint64_t value, Where where,
                                         bool orders_memory) {
  Lane& lane = the_block().current();
  lane.where = where;
  lane.mask = mask;
  lane.told = value;
  lane.orders_memory = orders_memory;
  the_block().wait(State::kAtWarpBarrier);
  return lane.heard;
}

int lane() { return static_cast<int>(the_block().current_index() % kWarp); }

}  // namespace cuda_emulation

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void cuda_emulation_set_lane_order(unsigned order) {
  cuda_emulation::lane_order = order;
  cuda_emulation::shuffler.seed(order);
}

EXPORT int64_t cuda_emulation_num_launches() { return cuda_emulation::num_launches; }
