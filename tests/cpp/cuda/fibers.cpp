#include "fibers.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>

namespace emulation {
namespace {

constexpr size_t kStack = 256 * 1024;  // kernel arguments alone may be 32 kB

}  // namespace

void fail(const char* what) {
  std::printf("emulated GPU: %s\n", what);
  std::fflush(stdout);
  std::abort();
}

std::vector<int> turns(int count) {
  std::vector<int> of(count);
  std::iota(of.begin(), of.end(), 0);
  if (order == Order::kReverse) std::reverse(of.begin(), of.end());
  if (order == Order::kShuffled) std::shuffle(of.begin(), of.end(), std::mt19937(count));
  return of;
}

void Block::run(int threads, const std::function<void()>& body) {
  if (threads % kWarp != 0 || threads > kMostThreads) fail("a block of so many threads");
  body_ = &body;
  size_ = threads;
  done_ = 0;
  of_turn_ = turns(threads);
  for (int turn = 0; turn < threads; ++turn) turn_of_[of_turn_[turn]] = turn;
  block_.arrived = 0;
  for (Group& warp : warps_) warp.arrived = 0;
  for (int t = 0; t < threads; ++t) {
    set_ready(t, true);
    Thread& thread = threads_[t];
    if (thread.stack == nullptr) thread.stack = std::make_unique<std::byte[]>(kStack);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, &Block::begin, 0);
    thread.context.uc_stack.ss_size = 0;  // AddressSanitizer would clear it at every switch
  }
  swapcontext(&host_, &threads_[next()].context);
}

void Block::begin() {
  (*block.body_)();
  block.set_ready(static_cast<int>(threadIdx.x), false);
  ++block.done_;
  const int other = block.next();
  setcontext(other < 0 ? &block.host_ : &block.threads_[other].context);
}

const Block::Values& Block::exchange_in_block(const char* what, uint64_t value) {
  return exchange(block_, 0, size_, what, value);
}

const Block::Values& Block::exchange_in_warp(const char* what, uint64_t value) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  return exchange(warps_[warp], warp * kWarp, kWarp, what, value);
}

const Block::Values& Block::exchange(Group& group, int first, int size, const char* what,
                                     uint64_t value) {
  if (group.arrived > 0 && std::strcmp(group.what, what) != 0) {
    fail("some threads are at one barrier or exchange, others at another");
  }
  const int self = static_cast<int>(threadIdx.x);
  group.what = what;
  group.brought[self - first] = value;
  set_ready(self, false);
  if (++group.arrived == size) {
    group.arrived = 0;
    std::copy_n(group.brought.begin(), size, group.shown.begin());
    for (int t = first; t < first + size; ++t) set_ready(t, true);
  }
  const int other = next();
  if (other != self) swapcontext(&threads_[self].context, &threads_[other].context);
  return group.shown;
}

void Block::set_ready(int thread, bool ready) {
  const int turn = turn_of_[thread];
  const uint64_t bit = uint64_t{1} << turn % 64;
  ready_[turn / 64] = ready ? ready_[turn / 64] | bit : ready_[turn / 64] & ~bit;
}

// The thread whose turn it is: the first that is ready. -1, the host, where all are done.
int Block::next() const {
  for (size_t word = 0; word < ready_.size(); ++word) {
    if (ready_[word] == 0) continue;
    const int thread = of_turn_[word * 64 + std::countr_zero(ready_[word])];
    threadIdx.x = static_cast<uint32_t>(thread);
    return thread;
  }
  if (done_ < size_) fail("threads wait for others that never come");
  return -1;
}

}  // namespace emulation
