// Tells sigeo_ext/_load.py which schemas this library was compiled for.
#include <torch/csrc/stable/library.h>

namespace {
int64_t schema_version() { return 11; }
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sigeo_ext, m) { m.def("schema_version() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CompositeExplicitAutograd, m) {
  m.impl("schema_version", TORCH_BOX(&schema_version));
}
