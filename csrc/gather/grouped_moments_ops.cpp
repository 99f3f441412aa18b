// Statistics over the gradients of many subnets, tile by tile of the super-weight: a subnet's
// gradient of a tile is a product of the library's, and is gone when the statistics have it.
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/tensor.h"
#include "gather/grouped_arguments.h"
#include "gather/grouped_moments.h"
#include "gather/products.h"

namespace sigeo_ext {
namespace {

using gather::block;
using gather::Places;
using gather::Subnet;
using torch::headeronly::ScalarType;

// Outputs and inputs of a tile: eight of them, gradient, statistics and what these need, lie in
// about a second-level cache of 2 MiB.
constexpr int64_t kOutputs = 128, kInputs = 512;

struct Tile {
  Places outputs, inputs;
};

// `results`, in the order of `want`, are zeros; norms [tiles, subnets].
template <class T>
void compute(const Tensors& x, const Tensors& d, const std::vector<Subnet>& subnets,
             const std::vector<Tile>& tiles, int64_t want, const Tensors& results,
             const Tensor& norms) {
  const int64_t count = static_cast<int64_t>(subnets.size());
  Tensors from, values;
  for (int64_t s = 0; s < count; ++s) {
    from.push_back(gather::as_rows(d[s]));
    values.push_back(gather::as_rows(x[s]));
  }
  torch_parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t t) {
    const Tile& tile = tiles[t];
    const int64_t size = tile.outputs.count * tile.inputs.count;
    gather::Moments<T> moments{{}, 0, nullptr, nullptr, tile.inputs.count};
    size_t next = 0;
    for (int s = 0; s < gather::kStatistics; ++s) {
      if ((want >> s & 1) == 0) continue;
      const Tensor& result = results[next++];
      moments.stride = result.size(1);
      moments.statistics[s] = static_cast<T*>(result.data_ptr()) +
                              tile.outputs.begin * moments.stride + tile.inputs.begin;
    }
    std::vector<T> own;  // mean and count
    if (moments.statistics[gather::kM2] != nullptr) {
      own.assign(2 * size, T{0});
      moments.mean = own.data();
      moments.count = own.data() + size;
    }
    const Tensor room = gather::room_for(values[0], Sizes{tile.outputs.count, tile.inputs.count});
    double* norm = static_cast<double*>(norms.data_ptr()) + t * count;
    for (int64_t s = 0; s < count; ++s) {
      const Subnet& subnet = subnets[s];
      const Places outputs = gather::common(subnet.outputs, tile.outputs);
      const Places inputs = gather::common(subnet.inputs, tile.inputs);
      if (subnet.rows == 0 || outputs.count == 0 || inputs.count == 0) continue;
      const Tensor g = block(room, {0, outputs.count}, {0, inputs.count});
      const Places rows{0, subnet.rows};
      const Places of_d{outputs.begin - subnet.outputs.begin, outputs.count};
      const Places of_x{inputs.begin - subnet.inputs.begin, inputs.count};
      gather::product(g, block(from[s], rows, of_d, true), block(values[s], rows, of_x));
      norm[s] = gather::add(static_cast<const T*>(g.data_ptr()), g.stride(0), outputs.count,
                            inputs.count, outputs.begin - tile.outputs.begin,
                            inputs.begin - tile.inputs.begin, moments);
    }
    gather::finish(tile.outputs.count, tile.inputs.count, count, moments);
  });
}

Tensors moments(Tensors x, Tensors d, Sizes size, Sizes outputs, Sizes inputs, int64_t want) {
  const char* op = "gather_grouped_moments";
  const bool sized = size.size() == 2 && size[0] >= 0 && size[1] >= 0;
  SIGEO_CHECK(sized, op, ": size must be that of the weight, [outputs, inputs]");
  SIGEO_CHECK(!x.empty(), op, ": x must hold at least one subnet, got none");
  const ScalarType dtype = x[0].scalar_type();
  for (size_t s = 0; s < x.size(); ++s) {
    const bool fits =
        x[s].scalar_type() == dtype && (dtype == ScalarType::Float || dtype == ScalarType::Double);
    SIGEO_CHECK(fits, op, ": x[", s, "] must be float32 or float64 and like x[0], got ",
                torch::headeronly::toString(x[s].scalar_type()));
  }
  const auto subnets = gather::subnets_of(op, x, size, outputs, inputs);
  gather::check_gradients(op, d, x, subnets);
  constexpr int64_t kSqNorm = 1 << gather::kStatistics;
  SIGEO_CHECK(want > 0 && want < 2 * kSqNorm, op, ": want must be from 1 to ", 2 * kSqNorm - 1,
              ", got ", want);
  std::vector<Tile> tiles;
  for (const Places& rows : gather::pieces_of({0, size[0]}, kOutputs)) {
    for (const Places& columns : gather::pieces_of({0, size[1]}, kInputs)) {
      tiles.push_back({rows, columns});
    }
  }
  Tensors results;
  for (int s = 0; s < gather::kStatistics; ++s) {
    if (want >> s & 1) results.push_back(torch::stable::new_zeros(x[0], size));
  }
  const Tensor norms = torch::stable::new_zeros(
      x[0], Sizes{static_cast<int64_t>(tiles.size()), static_cast<int64_t>(x.size())},
      ScalarType::Double);
  if (dtype == ScalarType::Float) compute<float>(x, d, subnets, tiles, want, results, norms);
  else compute<double>(x, d, subnets, tiles, want, results, norms);
  if (want & kSqNorm) results.push_back(torch::stable::sum(norms, Sizes{0}));
  return results;
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_grouped_moments", TORCH_BOX(&sigeo_ext::moments));
}
