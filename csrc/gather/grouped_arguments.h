// The arguments that the grouped ops share, checked.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "gather/grouped.h"
#include "gather/slices_selection.h"

namespace sigeo_ext::gather {

// The windows [begin, count] of all subnets lie end to end in `outputs` and `inputs`; x[s] must
// have the selected inputs, size = {outputs, inputs} being those of the weight.
std::vector<Subnet> subnets_of(const char* op, const Tensors& x, const Sizes& size,
                               const Sizes& outputs, const Sizes& inputs);

// d[s] must have the rows of x[s], its dtype, and the selected outputs.
void check_gradients(const char* op, const Tensors& d, const Tensors& x,
                     const std::vector<Subnet>& subnets);

}  // namespace sigeo_ext::gather
