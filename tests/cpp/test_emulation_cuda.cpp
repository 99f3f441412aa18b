// The emulated GPU finds what it is there for: kernels that are wrong in one way each.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdint>
#include <vector>

#include "check.h"
#include "common/cuda.cuh"
#include "gpu.h"

using sigeo_ext::kThreads;
using sigeo_ext::Queue;

namespace {

// Each thread passes its number to the thread before it.
template <bool kBarrier>
__global__ void pass(double* out) {
  __shared__ double number[kThreads];
  number[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = number[(threadIdx.x + 1) % kThreads];
}

// The last block wins.
__global__ void depend_on_block_order(double* out) { out[threadIdx.x] = blockIdx.x; }

__global__ void read_unwritten(double* out) {
  __shared__ double number[kThreads];
  out[threadIdx.x] = number[threadIdx.x];
  number[threadIdx.x] = 1;
}

__global__ void part_at_a_barrier(double*) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void part_of_a_warp(double* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0, 1);
}

__global__ void at_two_barriers(double* out) {
  if (threadIdx.x < 32) __syncthreads();
  else out[threadIdx.x] = __syncthreads_count(1);
}

using Kernel = void (*)(double*);

std::vector<double> result(Kernel kernel, int64_t blocks) {
  return emulation::result_of([&](const Queue& queue) {
    std::vector<double> out(kThreads, -1);
    sigeo_ext::launch("test", kernel, blocks, queue, out.data());
    return out;
  });
}

bool same_in_every_order(Kernel kernel, int64_t blocks) {
  emulation::order = emulation::Order::kForward;
  const std::vector<double> found = result(kernel, blocks);
  for (const auto other : {emulation::Order::kReverse, emulation::Order::kShuffled}) {
    emulation::order = other;
    if (!emulation::same_bits(found, result(kernel, blocks))) return false;
  }
  return true;
}

// In a process of its own, as it is stopped.
bool stopped(Kernel kernel) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    std::fclose(stdout);
    result(kernel, 1);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

}  // namespace

int main() {
  CHECK(same_in_every_order(pass<true>, 3));
  CHECK(result(pass<true>, 1)[7] == 8);
  CHECK(!same_in_every_order(pass<false>, 1));
  CHECK(!same_in_every_order(depend_on_block_order, 3));
  for (const double value : result(read_unwritten, 2)) CHECK(std::isnan(value));
  CHECK(stopped(part_at_a_barrier));
  CHECK(stopped(part_of_a_warp));
  CHECK(stopped(at_two_barriers));
  return exit_status();
}
