// sigeo_ext._host: build and CPU information, and the moments cores on NumPy buffers. No tensors.
// sigeo_ext/moments/host.py is its public face and says what the functions compute.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "common/array.h"
#include "common/parallel.h"
#include "moments/moments.h"

namespace py = pybind11;

namespace sigeo_ext {
namespace {

using NumpyList = std::vector<py::array>;
using Matrix = py::array_t<double>;

// One Array for each NumPy array, after checks that keep the cores from reading past an end.
std::vector<Array> gather(const char* name, const NumpyList& list, const NumpyList& like,
                          bool written = false) {
  const auto check = [&](bool holds, size_t i, const char* expectation) {
    if (!holds) {
      throw py::value_error(std::string(name) + "[" + std::to_string(i) + "] must " + expectation);
    }
  };
  std::vector<Array> arrays;
  for (size_t i = 0; i < list.size(); ++i) {
    const py::array& array = list[i];
    check((array.flags() & py::array::c_style) != 0, i, "be C-contiguous");
    check((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, i, "be aligned");
    check(!written || array.writeable(), i, "be writeable");
    check(array.size() == like[i % like.size()].size(), i, "have as many values as its layer");
    // By value: the dtype of an array that was unpickled is an object of its own.
    const bool single = array.dtype().equal(py::dtype::of<float>());
    const bool half = array.dtype().equal(py::dtype("float16"));
    check(single || array.dtype().equal(py::dtype::of<double>()) || (half && !written), i,
          written ? "be float32 or float64" : "be float16, float32 or float64");
    const DType dtype = half ? DType::kFloat16 : single ? DType::kFloat32 : DType::kFloat64;
    check(!written || arrays.empty() || dtype == arrays[0].dtype, i, "have the first one's dtype");
    arrays.push_back({const_cast<void*>(array.data()), dtype, array.size()});
  }
  return arrays;
}

void check_lengths(const NumpyList& mean, std::initializer_list<const NumpyList*> lists) {
  for (const NumpyList* list : lists) {
    if (list->size() != mean.size()) throw py::value_error("lists must hold one array a layer");
  }
}

Matrix new_summary(size_t layers) {
  return Matrix({static_cast<py::ssize_t>(layers), static_cast<py::ssize_t>(moments::kColumns)});
}

void update(const NumpyList& abs_sum, const NumpyList& mean, const NumpyList& m2,
            const NumpyList& grads, int64_t count) {
  check_lengths(mean, {&abs_sum, &m2, &grads});
  const auto a = gather("abs_sum", abs_sum, mean, true);
  const auto mu = gather("mean", mean, mean, true);
  const auto q = gather("m2", m2, mean, true);
  const auto g = gather("grads", grads, mean);
  if (!mu.empty() && (a[0].dtype != mu[0].dtype || q[0].dtype != mu[0].dtype)) {
    throw py::value_error("abs_sum, mean and m2 must have one dtype");
  }
  const py::gil_scoped_release release;
  moments::update(a, mu, q, g, count, serial);
}

Matrix summary(const NumpyList& abs_sum, const NumpyList& mean, const NumpyList& m2,
               const NumpyList& weights, int64_t count, int64_t ddof) {
  check_lengths(mean, {&abs_sum, &m2});
  if (!weights.empty()) check_lengths(mean, {&weights});
  const auto a = gather("abs_sum", abs_sum, mean);
  const auto mu = gather("mean", mean, mean);
  const auto q = gather("m2", m2, mean);
  const auto w = gather("weights", weights, mean);
  Matrix out = new_summary(mean.size());
  double* to = out.mutable_data();
  const py::gil_scoped_release release;
  moments::summarize(a, mu, q, {}, w, count, ddof, to, serial);
  return out;
}

// `rows` holds the units end to end, each with one array a layer.
Matrix rows_summary(const NumpyList& rows, const NumpyList& weights, int64_t count, int64_t ddof) {
  if (count < 1 || count > moments::kMaxRows || rows.size() % count != 0) {
    throw py::value_error("rows must hold 1 to " + std::to_string(moments::kMaxRows) +
                          " units of one array a layer");
  }
  const NumpyList layers(rows.begin(), rows.begin() + static_cast<ptrdiff_t>(rows.size() / count));
  if (!weights.empty()) check_lengths(layers, {&weights});
  const auto r = gather("rows", rows, layers);
  const auto w = gather("weights", weights, layers);
  Matrix out = new_summary(layers.size());
  double* to = out.mutable_data();
  const py::gil_scoped_release release;
  moments::summarize_rows(r, w, count, ddof, to, serial);
  return out;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = std::string(__VERSION__);
  info["cplusplus"] = static_cast<int64_t>(__cplusplus);
#if defined(SIGEO_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

py::dict cpu_info() {
  py::dict info;
  std::string level = "generic";
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) level = "x86-64-v4";
  else if (__builtin_cpu_supports("x86-64-v3")) level = "x86-64-v3";
  else level = "x86-64";
#endif
  info["vector_level"] = level;  // the one that SIGEO_MULTIVERSION functions run at
  info["hardware_threads"] = std::thread::hardware_concurrency();
  return info;
}

SIGEO_MULTIVERSION void stream_range(float* a, float* b, float* c, const float* g, int64_t from,
                                     int64_t to) {
  for (int64_t i = from; i < to; ++i) {
    a[i] += g[i];
    b[i] += g[i];
    c[i] += g[i];
  }
}

using Floats = py::array_t<float, py::array::c_style>;

// The yardstick of a streaming update: the same 16 bytes read and 12 written for each float32
// coordinate, and as little arithmetic as can be.
void stream(Floats a, Floats b, Floats c, const Floats& g, int64_t threads) {
  const int64_t n = g.size();
  if (a.size() != n || b.size() != n || c.size() != n || threads < 1) {
    throw py::value_error("stream: needs four arrays of one size and at least one thread");
  }
  float *pa = a.mutable_data(), *pb = b.mutable_data(), *pc = c.mutable_data();
  const float* pg = g.data();
  const py::gil_scoped_release release;
  std::vector<std::thread> others;
  const int64_t share = (n + threads - 1) / threads;
  for (int64_t t = 1; t < threads; ++t) {
    others.emplace_back(stream_range, pa, pb, pc, pg, std::min(n, t * share),
                        std::min(n, (t + 1) * share));
  }
  stream_range(pa, pb, pc, pg, 0, std::min(n, share));
  for (std::thread& other : others) other.join();
}

SIGEO_MULTIVERSION void read_range(const float* a, const float* b, int64_t from, int64_t to,
                                   double* out) {
  constexpr int64_t kWide = 64;  // sums in the making, so that no addition waits for another
  float sums[kWide] = {};
  for (int64_t i = from; i + kWide <= to; i += kWide) {
    for (int64_t k = 0; k < kWide; ++k) sums[k] += a[i + k] + b[i + k];
  }
  for (const float sum : sums) *out += sum;
}

// The yardstick of a reduction: the same 8 bytes read for each pair of float32 coordinates, and as
// little arithmetic as can be. Returns a sum, so that nothing is left out.
double read_pairs(const Floats& a, const Floats& b, int64_t threads) {
  const int64_t n = a.size();
  if (b.size() != n || threads < 1) {
    throw py::value_error("read_pairs: needs two arrays of one size and at least one thread");
  }
  const float *pa = a.data(), *pb = b.data();
  const py::gil_scoped_release release;
  std::vector<double> sums(threads);
  std::vector<std::thread> others;
  const int64_t share = (n + threads - 1) / threads;
  for (int64_t t = 1; t < threads; ++t) {
    others.emplace_back(read_range, pa, pb, std::min(n, t * share), std::min(n, (t + 1) * share),
                        &sums[t]);
  }
  read_range(pa, pb, 0, std::min(n, share), sums.data());
  for (std::thread& other : others) other.join();
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace
}  // namespace sigeo_ext

PYBIND11_MODULE(_host, m) {
  namespace se = sigeo_ext;
  m.doc() = "Build and CPU information, and the moments cores on NumPy buffers.";
  m.def("build_info", &se::build_info);
  m.def("cpu_info", &se::cpu_info);
  m.def("moments_update_", &se::update, py::arg("abs_sum"), py::arg("mean"), py::arg("m2"),
        py::arg("grads"), py::arg("count"));
  m.def("moments_summary", &se::summary, py::arg("abs_sum"), py::arg("mean"), py::arg("m2"),
        py::arg("weights"), py::arg("count"), py::arg("ddof"));
  m.def("moments_rows_summary", &se::rows_summary, py::arg("rows"), py::arg("weights"),
        py::arg("count"), py::arg("ddof"));
  m.def("stream", &se::stream, py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("c").noconvert(), py::arg("g").noconvert(), py::arg("threads"));
  m.def("read_pairs", &se::read_pairs, py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("threads"));
}
