#include <tuple>

#include "common/check.h"
#include "common/device.h"
#include "common/tensor.h"
#include "moments/moments.h"

namespace sigeo_ext {
namespace {

using State = std::tuple<Tensors, Tensors, Tensors>;

void check_count(const char* op, int64_t count, int64_t ddof) {
  SIGEO_CHECK(count > 0, op, ": count must be at least 1, got ", count);
  SIGEO_CHECK(ddof >= 0 && ddof < count, op, ": ddof must be at least 0 and below the ", count,
              " units, got ", ddof);
}

double* data(Tensor& tensor) { return static_cast<double*>(tensor.data_ptr()); }

template <class Device>
void update_into(const char* op, const Tensors& abs_sum, const Tensors& mean, const Tensors& m2,
                 const OptionalTensors& grads, int64_t count) {
  SIGEO_CHECK(count >= 0, op, ": count must be at least 0, got ", count);
  Lists lists(op);
  const auto a = lists.state("abs_sum", abs_sum);
  const auto mu = lists.state("mean", mean);
  const auto q = lists.state("m2", m2);
  const auto g = lists.inputs("grads", grads);
  Device device(lists);
  moments::update(a, mu, q, g, count, device.place());
}

template <class Device>
void update_(Tensors abs_sum, Tensors mean, Tensors m2, OptionalTensors grads, int64_t count) {
  update_into<Device>("moments_update_", abs_sum, mean, m2, grads, count);
}

// The new state has the memory order of the old A1, whatever the orders of the old mean and M2.
template <class Device>
State update(Tensors abs_sum, Tensors mean, Tensors m2, OptionalTensors grads, int64_t count) {
  const char* op = "moments_update";
  Lists lists(op);
  lists.inputs("abs_sum", abs_sum);
  lists.inputs("mean", mean);
  lists.inputs("m2", m2);
  for (size_t i = 0; i < abs_sum.size(); ++i) {
    abs_sum[i] = torch::stable::clone(abs_sum[i]);
    mean[i] = reordered(mean[i], abs_sum[i]);
    m2[i] = reordered(m2[i], abs_sum[i]);
  }
  update_into<Device>(op, abs_sum, mean, m2, grads, count);
  return {abs_sum, mean, m2};
}

template <class Device>
void fold_rows_(Tensors first, Tensors second, Tensors third) {
  Lists lists("moments_fold_rows_");
  const auto a = lists.state("first", first);
  const auto b = lists.state("second", second);
  const auto c = lists.state("third", third);
  Device device(lists);
  moments::fold_rows(a, b, c, device.place());
}

template <class Device>
Tensor summary(Tensors abs_sum, Tensors mean, Tensors m2, OptionalTensors grads, Tensors weights,
               int64_t count, int64_t ddof) {
  const char* op = "moments_summary";
  check_count(op, count + (grads.empty() ? 0 : 1), ddof);
  Lists lists(op);
  const auto a = lists.inputs("abs_sum", abs_sum);
  const auto mu = lists.inputs("mean", mean);
  const auto q = lists.inputs("m2", m2);
  std::vector<Array> g, w;
  if (!grads.empty()) g = lists.inputs("grads", grads);
  if (!weights.empty()) w = lists.inputs("weights", weights);
  Tensor out = lists.new_float64({static_cast<int64_t>(mean.size()), moments::kColumns});
  Device device(lists);
  if (!g.empty() && count <= 1) {  // a state of one unit is that unit
    std::vector<Array> rows;
    if (count == 1) rows = mu;
    rows.insert(rows.end(), g.begin(), g.end());
    moments::summarize_rows(rows, w, count + 1, ddof, data(out), device.place());
  } else {
    moments::summarize(a, mu, q, g, w, count, ddof, data(out), device.place());
  }
  return out;
}

template <class Device>
Tensor rows_summary(OptionalTensors rows, Tensors weights, int64_t count, int64_t ddof) {
  const char* op = "moments_rows_summary";
  check_count(op, count, ddof);
  SIGEO_CHECK(count <= moments::kMaxRows, op, ": count must be at most ", moments::kMaxRows,
              ", got ", count);
  SIGEO_CHECK(rows.size() % count == 0, op, ": rows must hold ", count, " tensors a layer, got ",
              rows.size(), " tensors");
  const size_t layers = rows.size() / count;
  Lists lists(op, layers);
  std::vector<Array> w;
  if (!weights.empty()) w = lists.inputs("weights", weights);
  const auto r = lists.rows("rows", rows);
  Tensor out = lists.new_float64({static_cast<int64_t>(layers), moments::kColumns});
  Device device(lists);
  moments::summarize_rows(r, w, count, ddof, data(out), device.place());
  return out;
}

template <class Device>
Tensor dot(Tensors a, Tensors b) {
  Lists lists("moments_dot");
  const auto x = lists.inputs("a", a);
  const auto y = lists.inputs("b", b);
  Tensor out = lists.new_float64({static_cast<int64_t>(a.size())});
  Device device(lists);
  moments::dot(x, y, data(out), device.place());
  return out;
}

// Whether the rows (dimension 0) of a dense tensor come one after another.
bool rows_lie_apart(const Tensor& tensor) {
  const int64_t rows = tensor.size(0);
  return rows < 2 || tensor.stride(0) * rows == tensor.numel();
}

template <class Device>
Tensor row_dots(Tensor a, Tensor b) {
  const char* op = "moments_row_dots";
  SIGEO_CHECK(a.dim() > 0, op, ": a must be [rows, ...], got a number");
  const int64_t rows = a.size(0);
  Lists lists(op);
  const auto split = [rows](const Array& all) {
    const int64_t each = rows == 0 ? 0 : all.numel / rows;
    const int64_t bytes = each * size_of(all.dtype);
    std::vector<Array> parts;
    for (int64_t row = 0; row < rows; ++row) {
      parts.push_back({static_cast<char*>(all.data) + row * bytes, all.dtype, each});
    }
    return parts;
  };
  if (!rows_lie_apart(a)) a = torch::stable::contiguous(a);
  const auto x = split(lists.inputs("a", Tensors{a})[0]);
  const auto y = split(lists.inputs("b", Tensors{b})[0]);
  Tensor out = lists.new_float64({rows});
  Device device(lists);
  moments::dot(x, y, data(out), device.place());
  return out;
}

template <class Device>
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("moments_update_", TORCH_BOX(&update_<Device>));
  m.impl("moments_update", TORCH_BOX(&update<Device>));
  m.impl("moments_fold_rows_", TORCH_BOX(&fold_rows_<Device>));
  m.impl("moments_summary", TORCH_BOX(&summary<Device>));
  m.impl("moments_rows_summary", TORCH_BOX(&rows_summary<Device>));
  m.impl("moments_dot", TORCH_BOX(&dot<Device>));
  m.impl("moments_row_dots", TORCH_BOX(&row_dots<Device>));
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) { sigeo_ext::register_ops<sigeo_ext::Cpu>(m); }
#if defined(SIGEO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CUDA, m) { sigeo_ext::register_ops<sigeo_ext::Cuda>(m); }
#endif
