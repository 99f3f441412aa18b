// The threads of one block of a GPU, on one thread of the host: each is a fiber that runs until it
// waits for others, at a barrier of its block or at an exchange within its warp.
//
// Of the threads that could go on, the first in order does, until it waits: where a kernel lacks a
// barrier, some order has a thread read what another has not written yet, or write what another has
// not read yet.
#pragma once

#include <ucontext.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
};
inline dim3 threadIdx;  // of the running thread

namespace emulation {

constexpr int kWarp = 32;
constexpr int kMostThreads = 256;

// Prints what a GPU would not have done alike, and stops the program.
[[noreturn]] void fail(const char* what);

// In which order blocks, and the threads of a block that could go on, take their turns.
enum class Order { kForward, kReverse, kShuffled };
inline Order order = Order::kForward;

// The numbers below `count` in that order.
std::vector<int> turns(int count);

class Block {
 public:
  // Runs body() on `threads` threads.
  void run(int threads, const std::function<void()>& body);

  using Values = std::array<uint64_t, kMostThreads>;

  // Waits until all threads of the block, or of the warp, have come to `what`, each with a value;
  // gives the values of all. They stay until the next exchange of these threads.
  const Values& exchange_in_block(const char* what, uint64_t value);
  const Values& exchange_in_warp(const char* what, uint64_t value);

 private:
  struct Thread {
    ucontext_t context;
    std::unique_ptr<std::byte[]> stack;
  };
  struct Group {
    const char* what = nullptr;
    int arrived = 0;
    Values brought, shown;
  };

  const Values& exchange(Group& group, int first, int size, const char* what, uint64_t value);
  void set_ready(int thread, bool ready);
  int next() const;
  static void begin();

  const std::function<void()>* body_ = nullptr;
  int size_ = 0, done_ = 0;
  std::vector<int> of_turn_;
  std::array<int, kMostThreads> turn_of_;
  std::array<uint64_t, kMostThreads / 64> ready_{};  // a bit a turn
  std::array<Thread, kMostThreads> threads_;
  Group block_;
  std::array<Group, kMostThreads / kWarp> warps_;
  ucontext_t host_;
};

inline Block block;

}  // namespace emulation
