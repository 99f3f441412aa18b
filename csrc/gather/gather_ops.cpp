#include "gather/gather.h"

#include <array>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/device.h"
#include "common/tensor.h"

namespace sigeo_ext {
namespace {

using torch::headeronly::ScalarType;

bool wide(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double;
}

void check_blocks(const char* op, const std::string& name, const Tensor& x) {
  SIGEO_CHECK(x.dim() == 3 && wide(x), op, ": ", name,
              " must be float32 or float64 [blocks, positions, channels], got ", form_text(x));
}

void check_device(const char* op, const std::string& name, const Tensor& tensor,
                  const Tensor& like) {
  SIGEO_CHECK(
      tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index(), op,
      ": ", name, " must be on the device of the other tensors");
}

// Blocks that are all one in memory.
bool shared(const Tensor& x) { return x.size(0) > 1 && x.stride(0) == 0; }

// A tensor of blocks or rows whose inner dimensions fill one run; copied where they do not.
Tensor dense(Tensor x) {
  return torch::stable::contiguous(shared(x) ? torch::stable::narrow(x, 0, 0, 1) : x);
}

template <class T>
gather::Strided<const T> strided(const Tensor& dense, int64_t count) {
  const int64_t size = dense.size(0) == 0 ? 0 : dense.numel() / dense.size(0);
  return {static_cast<const T*>(dense.data_ptr()), dense.size(0) < count ? 0 : size};
}

// Copies of lists of blocks of `like`, checked. What is in the memory of a GPU cannot be read
// without waiting for it: there the kernels see to it that no number leads out of bounds.
template <class Device>
class Places {
 public:
  Places(const char* op, const char* name, const Tensor& like, int64_t blocks)
      : op_(op), name_(name), like_(like), blocks_(blocks) {}

  std::span<const int64_t> add(const Tensor& places, int64_t length, size_t number) {
    const std::string name = std::string(name_) + "[" + std::to_string(number) + "]";
    SIGEO_CHECK(
        places.dim() == 1 && places.scalar_type() == ScalarType::Long && places.numel() == length,
        op_, ": ", name, " must be int64 [", length, "], got ", form_text(places));
    check_device(op_, name, places, like_);
    kept_.push_back(torch::stable::contiguous(places));
    const std::span<const int64_t> values{static_cast<const int64_t*>(kept_.back().data_ptr()),
                                          static_cast<size_t>(length)};
    if constexpr (Device::kHostMemory) {
      for (const int64_t place : values) {
        SIGEO_CHECK(place >= 0 && place < blocks_, op_, ": ", name, " must be blocks below ",
                    blocks_, ", got ", place);
      }
    }
    return values;
  }

 private:
  const char* op_;
  const char* name_;
  Tensor like_;
  int64_t blocks_;
  Tensors kept_;
};

template <class Run>
auto with_type_of(const Tensor& x, const Run& run) {
  return x.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

Tensor expanded(const Tensor& one, int64_t count) {
  Sizes sizes{count};
  for (int64_t d = 1; d < one.dim(); ++d) sizes.push_back(one.size(d));
  std::array<StableIValue, 3> stack{torch::stable::detail::from(one),
                                    torch::stable::detail::from(sizes),
                                    torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::expand", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

template <class Device>
Tensors dispatch(Tensor x, Tensors index, int64_t rectified) {
  const char* op = "gather_dispatch";
  check_blocks(op, "x", x);
  SIGEO_CHECK(rectified >= 0 && rectified <= static_cast<int64_t>(index.size()), op,
              ": rectified must be from 0 to ", index.size(), ", got ", rectified);
  const Tensor values = dense(x);
  const bool one = shared(x);
  const gather::Shape shape{x.size(1), x.size(2)};
  Places<Device> places(op, "index", x, x.size(0));
  return with_type_of(x, [&]<class T>(T) {
    std::vector<gather::Copies<T>> copies;
    Tensors results;
    for (size_t list = 0; list < index.size(); ++list) {
      auto blocks = places.add(index[list], index[list].numel(), list);
      const int64_t made = one ? 1 : static_cast<int64_t>(blocks.size());
      results.push_back(torch::stable::new_empty(x, Sizes{made, x.size(1), x.size(2)}));
      if (one && !blocks.empty()) blocks = blocks.first(1);
      copies.push_back({blocks, static_cast<T*>(results.back().data_ptr()),
                        static_cast<int64_t>(list) < rectified});
    }
    Device device(x);
    const auto blocks = strided<T>(values, x.size(0));
    if constexpr (Device::kHostMemory) {
      gather::dispatch<T>(blocks, shape, copies, device.place_each());
    } else {
      gather::dispatch<T>(blocks, x.size(0), shape, copies, device.place_each());
    }
    if (one) {
      for (size_t list = 0; list < index.size(); ++list) {
        results[list] = expanded(results[list], index[list].numel());
      }
    }
    return results;
  });
}

template <class Device>
Tensor dispatch_backward(Tensors grads, Tensor x, Tensors index, int64_t rectified) {
  const char* op = "gather_dispatch_backward";
  check_blocks(op, "x", x);
  SIGEO_CHECK(grads.size() == index.size(), op, ": grads must hold one tensor a list, ",
              index.size(), ", got ", grads.size());
  const Tensor values = dense(x);
  Places<Device> places(op, "index", x, x.size(0));
  Tensor into = torch::stable::new_empty(x, Sizes{x.size(0), x.size(1), x.size(2)});
  with_type_of(x, [&]<class T>(T) {
    std::vector<gather::Copies<const T>> copies;
    Tensors kept;
    for (size_t list = 0; list < index.size(); ++list) {
      const std::string name = "grads[" + std::to_string(list) + "]";
      const Tensor& grad = grads[list];
      const bool like = grad.dim() == 3 && grad.size(1) == x.size(1) && grad.size(2) == x.size(2) &&
                        grad.scalar_type() == x.scalar_type();
      SIGEO_CHECK(like, op, ": ", name, " must be blocks like x, ", form_text(x), ", got ",
                  form_text(grad));
      check_device(op, name, grad, x);
      kept.push_back(torch::stable::contiguous(grad));
      copies.push_back({places.add(index[list], grad.size(0), list),
                        static_cast<const T*>(kept.back().data_ptr()),
                        static_cast<int64_t>(list) < rectified});
    }
    Device device(x);
    gather::dispatch_backward<T>(strided<T>(values, x.size(0)), x.size(0), {x.size(1), x.size(2)},
                                 copies, static_cast<T*>(into.data_ptr()), device.place_each());
    return 0;
  });
  return into;
}

// The terms of a sum, checked.
template <class Device, class T>
class Terms {
 public:
  Terms(const char* op, const Tensor& like, int64_t blocks)
      : op_(op), like_(like), places_(op, "target", like, blocks) {}

  void add(const std::string& name, const Tensor& x, const Tensor& target) {
    check_blocks(op_, name, x);
    const bool same = x.size(1) == like_.size(1) && x.size(2) == like_.size(2) &&
                      x.scalar_type() == like_.scalar_type();
    SIGEO_CHECK(same, op_, ": ", name, " must be blocks like the other terms', ", form_text(like_),
                ", got ", form_text(x));
    check_device(op_, name, x, like_);
    gather::Term<T> term{};
    term.x = strided<T>(keep(dense(x)), x.size(0));
    term.target = places_.add(target, x.size(0), terms.size());
    terms.push_back(term);
  }

  // Rows [blocks, channels] of the term added last.
  gather::Strided<const T> rows(const char* name, const Tensor& rows) {
    const int64_t count = static_cast<int64_t>(terms.back().target.size());
    const bool like = rows.dim() == 2 && rows.size(0) == count && rows.size(1) == like_.size(2) &&
                      rows.scalar_type() == like_.scalar_type();
    SIGEO_CHECK(like, op_, ": ", name, " must be ",
                torch::headeronly::toString(like_.scalar_type()), " [", count, ", ", like_.size(2),
                "] like its term, got ", form_text(rows));
    check_device(op_, name, rows, like_);
    return strided<T>(keep(dense(rows)), count);
  }

  std::vector<gather::Term<T>> terms;

 private:
  const Tensor& keep(Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  const char* op_;
  Tensor like_;
  Places<Device> places_;
  std::vector<Tensor> kept_;
};

void check_lengths(const char* op, size_t normed, size_t plain, const Tensors& weight,
                   const Tensors& bias, const Tensors& target) {
  SIGEO_CHECK(normed + plain > 0, op, ": expected at least one term, got none");
  SIGEO_CHECK(weight.size() == normed, op, ": weight must hold one tensor a normed term, ", normed,
              ", got ", weight.size());
  SIGEO_CHECK(bias.size() == normed, op, ": bias must hold one tensor a normed term, ", normed,
              ", got ", bias.size());
  SIGEO_CHECK(target.size() == normed + plain, op, ": target must hold one tensor a term, ",
              normed + plain, ", got ", target.size());
}

template <class Device>
std::tuple<Tensor, Tensors, Tensors> combine(Tensors normed, Tensors weight, Tensors bias,
                                             Tensors plain, Tensors target, int64_t blocks,
                                             double eps) {
  const char* op = "gather_combine";
  check_lengths(op, normed.size(), plain.size(), weight, bias, target);
  const Tensor& first = normed.empty() ? plain[0] : normed[0];
  check_blocks(op, normed.empty() ? "plain[0]" : "normed[0]", first);
  // One term of one block and one norm in memory: computed once.
  const auto one_row = [&](const Tensor& rows) {
    return rows.dim() == 2 && rows.size(0) == blocks && shared(rows);
  };
  const bool one = normed.size() == 1 && plain.empty() && first.size(0) == blocks &&
                   shared(first) && one_row(weight[0]) && one_row(bias[0]);
  const int64_t made = one ? 1 : blocks;
  Tensor y = torch::stable::new_empty(first, Sizes{made, first.size(1), first.size(2)});
  Tensors means, rstds;
  with_type_of(first, [&]<class T>(T) {
    Terms<Device, T> terms(op, first, blocks);
    for (size_t i = 0; i < normed.size(); ++i) {
      terms.add("normed[" + std::to_string(i) + "]", normed[i], target[i]);
      gather::Term<T>& term = terms.terms.back();
      term.weight = terms.rows("weight", weight[i]);
      term.bias = terms.rows("bias", bias[i]);
      const Sizes rows{one ? 1 : normed[i].size(0), first.size(2)};
      means.push_back(torch::stable::new_empty(first, rows));
      rstds.push_back(torch::stable::new_empty(first, rows));
      term.mean = static_cast<T*>(means.back().data_ptr());
      term.rstd = static_cast<T*>(rstds.back().data_ptr());
    }
    for (size_t i = 0; i < plain.size(); ++i) {
      terms.add("plain[" + std::to_string(i) + "]", plain[i], target[normed.size() + i]);
    }
    Tensor zero;
    if (one) {
      zero = torch::stable::new_zeros(target[0], Sizes{1});
      terms.terms[0].target = {static_cast<const int64_t*>(zero.data_ptr()), 1};
    }
    Device device(first);
    gather::combine<T>(terms.terms, made, {first.size(1), first.size(2)}, eps,
                       static_cast<T*>(y.data_ptr()), device.place_each());
    return 0;
  });
  if (!one) return {y, means, rstds};
  means[0] = torch::stable::contiguous(expanded(means[0], blocks));
  rstds[0] = torch::stable::contiguous(expanded(rstds[0], blocks));
  return {expanded(y, blocks), means, rstds};
}

template <class Device>
std::tuple<Tensors, Tensors, Tensors> combine_backward(Tensor d, Tensors normed, Tensors weight,
                                                       Tensors target, Tensors mean, Tensors rstd) {
  const char* op = "gather_combine_backward";
  check_blocks(op, "d", d);
  if (normed.empty()) return {};
  check_lengths(op, normed.size(), 0, weight, weight, target);
  SIGEO_CHECK(mean.size() == normed.size() && rstd.size() == normed.size(), op,
              ": mean and rstd must hold one tensor a normed term, ", normed.size(), ", got ",
              mean.size(), " and ", rstd.size());
  const Tensor gradient = torch::stable::contiguous(d);
  Tensors into_x, into_weight, into_bias, kept;
  with_type_of(d, [&]<class T>(T) {
    Terms<Device, T> terms(op, d, d.size(0));
    std::vector<gather::TermGradients<T>> into;
    for (size_t i = 0; i < normed.size(); ++i) {
      terms.add("normed[" + std::to_string(i) + "]", normed[i], target[i]);
      gather::Term<T>& term = terms.terms.back();
      term.weight = term.bias = terms.rows("weight", weight[i]);
      terms.rows("mean", mean[i]);
      terms.rows("rstd", rstd[i]);
      kept.push_back(torch::stable::contiguous(mean[i]));
      term.mean = static_cast<T*>(kept.back().data_ptr());
      kept.push_back(torch::stable::contiguous(rstd[i]));
      term.rstd = static_cast<T*>(kept.back().data_ptr());
      const int64_t count = normed[i].size(0);
      into_x.push_back(torch::stable::new_empty(d, Sizes{count, d.size(1), d.size(2)}));
      into_weight.push_back(torch::stable::new_empty(d, Sizes{count, d.size(2)}));
      into_bias.push_back(torch::stable::new_empty(d, Sizes{count, d.size(2)}));
      into.push_back({static_cast<T*>(into_x.back().data_ptr()),
                      static_cast<T*>(into_weight.back().data_ptr()),
                      static_cast<T*>(into_bias.back().data_ptr())});
    }
    Device device(d);
    const auto* from = static_cast<const T*>(gradient.data_ptr());
    const gather::Shape shape{d.size(1), d.size(2)};
    if constexpr (Device::kHostMemory) {
      gather::combine_backward<T>(from, terms.terms, into, shape, device.place_each());
    } else {
      gather::combine_backward<T>(from, d.size(0), terms.terms, into, shape, device.place_each());
    }
    return 0;
  });
  return {into_x, into_weight, into_bias};
}

template <class Device>
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("gather_dispatch", TORCH_BOX(&dispatch<Device>));
  m.impl("gather_dispatch_backward", TORCH_BOX(&dispatch_backward<Device>));
  m.impl("gather_combine", TORCH_BOX(&combine<Device>));
  m.impl("gather_combine_backward", TORCH_BOX(&combine_backward<Device>));
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) { sigeo_ext::register_ops<sigeo_ext::Cpu>(m); }
#if defined(SIGEO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CUDA, m) { sigeo_ext::register_ops<sigeo_ext::Cuda>(m); }
#endif
