// What the kernels use of CUDA, on the host: found in the place of CUDA's own header by tests that
// compile the .cu files as C++. See fibers.h for the threads of a block.
//
// As on a GPU, a launch copies its arguments and runs later, in synchronize(). Blocks run one after
// another. Shared memory holds NaN, as float or double, when a block begins; code that a GPU would
// not run alike (an unfinished warp at an exchange, a barrier that not all threads reach) stops the
// program.
#pragma once

#include <link.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // see emulation::shared_memory

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline dim3 gridDim, blockDim, blockIdx;

using std::max;
using std::min;

namespace emulation {

// The most blocks of a grid: below the number of items, kernels that may loop over items do.
inline int most_blocks = INT32_MAX;

inline std::vector<std::function<void()>> launched;

// The program's thread-local storage, where nothing else is.
inline std::span<std::byte> shared_memory() {
  std::span<std::byte> found;
  const auto look = [](dl_phdr_info* info, size_t, void* into) {
    for (const auto& header : std::span(info->dlpi_phdr, info->dlpi_phnum)) {
      if (header.p_type != PT_TLS) continue;
      *static_cast<std::span<std::byte>*>(into) = {static_cast<std::byte*>(info->dlpi_tls_data),
                                                   header.p_memsz};
    }
    return 1;  // the program itself is the first object; the others are libraries
  };
  dl_iterate_phdr(look, &found);
  return found;
}

inline void run_grid(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  if (grid.y * grid.z * threads.y * threads.z != 1) fail("grids and blocks have one axis here");
  gridDim = grid;
  gridDim.x = std::min<uint32_t>(grid.x, most_blocks);
  blockDim = threads;
  for (const int number : turns(static_cast<int>(gridDim.x))) {
    blockIdx.x = number;
    std::ranges::fill(shared_memory(), std::byte{0xff});
    block.run(static_cast<int>(threads.x), kernel);
  }
}

// Runs what was launched, in order.
inline void synchronize() {
  for (const auto& run : std::exchange(launched, {})) run();
}

inline void expect_whole_warp(uint32_t mask) {
  if (mask != 0xffffffffu) fail("an exchange of some lanes alone");
}

}  // namespace emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  emulation::launched.push_back([grid = config->gridDim, threads = config->blockDim, kernel,
                                 ... copies = Parameters(arguments)] {
    emulation::run_grid(grid, threads, [&] { kernel(copies...); });
  });
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

inline void __syncthreads() { emulation::block.exchange_in_block("__syncthreads", 0); }

inline int __syncthreads_count(int predicate) {
  const auto& of_thread = emulation::block.exchange_in_block("__syncthreads_count", predicate != 0);
  return std::accumulate(of_thread.begin(), of_thread.begin() + blockDim.x, 0);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  emulation::expect_whole_warp(mask);
  const auto& of_lane = emulation::block.exchange_in_warp("__ballot_sync", predicate != 0);
  uint32_t bits = 0;
  for (int lane = 0; lane < emulation::kWarp; ++lane) bits |= of_lane[lane] << lane;
  return bits;
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, uint32_t offset) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  emulation::expect_whole_warp(mask);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const auto& of_lane = emulation::block.exchange_in_warp("__shfl_down_sync", bits);
  const uint32_t lane = threadIdx.x % emulation::kWarp + offset;
  if (lane < emulation::kWarp) std::memcpy(&value, &of_lane[lane], sizeof(T));
  return value;
}

inline int __popc(uint32_t bits) { return std::popcount(bits); }
