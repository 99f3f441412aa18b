// Products of many subnets over one super-weight: which of them go through the library together.
// Free of torch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gather/slices.h"

namespace sigeo_ext::gather {

// A subnet's rows of the batch and its windows of the weight; nothing is listed.
struct Subnet {
  int64_t rows;
  Places outputs;
  Places inputs;
};

// Outputs that the first `rows` rows of a stack have.
struct Band {
  Places outputs;
  int64_t rows;
};

// Subnets whose rows lie one below another: equal inputs, outputs that begin at one place and grow
// narrower, so that each band of outputs belongs to the rows above a line.
struct Stack {
  std::vector<int64_t> members;
  int64_t rows;
  Places outputs;  // of the widest, which is the first
  Places inputs;
  std::vector<Band> bands;  // side by side, together `outputs`, each with fewer rows than the last
};

// All subnets that have rows, each in one stack. Those of many rows are alone and need no copies;
// those of few would leave the library's products at a fraction of their speed.
std::vector<Stack> stacks_of(std::span<const Subnet> subnets);

// Places in pieces of about equal length, at most `most`. They depend on nothing else, so that bits
// do not depend on the number of threads that the pieces go to.
std::vector<Places> pieces_of(const Places& places, int64_t most);

// What two windows have in common; a count of zero if nothing.
Places common(const Places& a, const Places& b);

}  // namespace sigeo_ext::gather
