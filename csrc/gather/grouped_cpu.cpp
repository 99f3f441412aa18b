#include "gather/grouped.h"

#include <algorithm>
#include <tuple>

namespace sigeo_ext::gather {
namespace {

// Rows from which a product runs at nearly full speed alone (one core, AVX-512: 45 GFLOP/s of 100
// for 8 rows, 80 for 32, 90 for 64).
constexpr int64_t kFew = 64;

// Rows of a stack; with 1024 columns a mebibyte of float32, about a second-level cache.
constexpr int64_t kMost = 256;

// Values of a cache line.
constexpr int64_t kLine = 16;

auto key(const Subnet& subnet) {
  return std::tuple(subnet.inputs.begin, subnet.inputs.count, subnet.outputs.begin);
}

bool stackable(const Subnet& subnet) {
  return subnet.rows < kFew && subnet.outputs.count > 0 && subnet.inputs.count > 0;
}

// The members are there, the widest first.
void finish(Stack& stack, std::span<const Subnet> subnets) {
  const Subnet& first = subnets[stack.members.front()];
  stack.inputs = first.inputs;
  stack.outputs = first.outputs;
  stack.rows = 0;
  for (const int64_t member : stack.members) stack.rows += subnets[member].rows;
  int64_t rows = stack.rows, begin = first.outputs.begin;
  for (auto member = stack.members.rbegin(); member != stack.members.rend(); ++member) {
    const int64_t end = first.outputs.begin + subnets[*member].outputs.count;
    if (end > begin || stack.members.size() == 1)
      stack.bands.push_back({{begin, end - begin}, rows});
    begin = end;
    rows -= subnets[*member].rows;
  }
}

}  // namespace

std::vector<Stack> stacks_of(std::span<const Subnet> subnets) {
  std::vector<int64_t> few;
  std::vector<Stack> stacks;
  for (int64_t s = 0; s < static_cast<int64_t>(subnets.size()); ++s) {
    if (subnets[s].rows == 0) continue;
    if (stackable(subnets[s])) few.push_back(s);
    else stacks.push_back({{s}, 0, {}, {}, {}});
  }
  std::stable_sort(few.begin(), few.end(), [&](int64_t a, int64_t b) {
    const auto order = [&](int64_t s) {
      return std::tuple_cat(key(subnets[s]), std::tuple(-subnets[s].outputs.count));
    };
    return order(a) < order(b);
  });
  int64_t rows = 0;
  for (size_t i = 0; i < few.size(); ++i) {
    const Subnet& subnet = subnets[few[i]];
    const bool begins =
        i == 0 || key(subnet) != key(subnets[few[i - 1]]) || rows + subnet.rows > kMost;
    if (begins) {
      stacks.push_back({{}, 0, {}, {}, {}});
      rows = 0;
    }
    stacks.back().members.push_back(few[i]);
    rows += subnet.rows;
  }
  for (Stack& stack : stacks) finish(stack, subnets);
  return stacks;
}

std::vector<Places> pieces_of(const Places& places, int64_t most) {
  std::vector<Places> pieces;
  if (places.count == 0) return pieces;
  const int64_t count = (places.count + most - 1) / most;
  const int64_t even = (places.count + count - 1) / count;
  const int64_t length = std::min(most, (even + kLine - 1) / kLine * kLine);
  for (int64_t begin = 0; begin < places.count; begin += length) {
    pieces.push_back(places.part(begin, std::min(length, places.count - begin)));
  }
  return pieces;
}

Places common(const Places& a, const Places& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  const int64_t end = std::min(a.begin + a.count, b.begin + b.count);
  return {begin, std::max<int64_t>(0, end - begin)};
}

}  // namespace sigeo_ext::gather
