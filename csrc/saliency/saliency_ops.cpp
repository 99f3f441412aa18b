#include "saliency/saliency.h"

#include "common/check.h"
#include "common/device.h"
#include "common/tensor.h"

namespace sigeo_ext {
namespace {

template <class Device>
Tensor sums(Tensors weights, OptionalTensors gradients, int64_t want) {
  const char* op = "saliency_sums";
  SIGEO_CHECK(want > 0 && want < 1 << saliency::kColumns, op,
              ": want must be a set of columns, 1 to ", (1 << saliency::kColumns) - 1, ", got ",
              want);
  const auto columns = static_cast<saliency::Columns>(want);
  Lists lists(op);
  const auto w = lists.inputs("weights", weights);
  std::vector<Array> g;
  if (!gradients.empty() || saliency::needs_gradients(columns)) {
    g = lists.inputs("gradients", gradients);
  }
  Tensor out = lists.new_float64({static_cast<int64_t>(w.size()), saliency::width(columns)});
  Device device(lists);
  saliency::sums(w, g, columns, static_cast<double*>(out.data_ptr()), device.place());
  return out;
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("saliency_sums", TORCH_BOX(&sigeo_ext::sums<sigeo_ext::Cpu>));
}
#if defined(SIGEO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CUDA, m) {
  m.impl("saliency_sums", TORCH_BOX(&sigeo_ext::sums<sigeo_ext::Cuda>));
}
#endif
