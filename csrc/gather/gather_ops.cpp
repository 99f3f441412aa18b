#include "gather/gather.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "common/tensor.h"

namespace sigeo_ext {
namespace {

using torch::headeronly::ScalarType;
using Sizes = std::vector<int64_t>;

std::string sizes_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  }
  return text + "]";
}

bool wide(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double;
}

void check_blocks(const char* op, const std::string& name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 3 && wide(x), op, ": ", name,
                  " must be float32 or float64 [blocks, positions, channels], got ",
                  torch::headeronly::toString(x.scalar_type()), " ", sizes_of(x));
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

// Copies of lists of blocks, checked.
class Places {
 public:
  Places(const char* op, const char* name, int64_t blocks)
      : op_(op), name_(name), blocks_(blocks) {}

  std::span<const int64_t> add(const Tensor& places, int64_t length, size_t number) {
    const std::string name = std::string(name_) + "[" + std::to_string(number) + "]";
    STD_TORCH_CHECK(
        places.dim() == 1 && places.scalar_type() == ScalarType::Long && places.numel() == length,
        op_, ": ", name, " must be int64 [", length, "], got ",
        torch::headeronly::toString(places.scalar_type()), " ", sizes_of(places));
    kept_.push_back(torch::stable::contiguous(places));
    const std::span<const int64_t> values{static_cast<const int64_t*>(kept_.back().data_ptr()),
                                          static_cast<size_t>(length)};
    for (const int64_t place : values) {
      STD_TORCH_CHECK(place >= 0 && place < blocks_, op_, ": ", name, " must be blocks below ",
                      blocks_, ", got ", place);
    }
    return values;
  }

 private:
  const char* op_;
  const char* name_;
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

Tensors dispatch(Tensor x, Tensors index, int64_t rectified) {
  const char* op = "gather_dispatch";
  check_blocks(op, "x", x);
  STD_TORCH_CHECK(rectified >= 0 && rectified <= static_cast<int64_t>(index.size()), op,
                  ": rectified must be from 0 to ", index.size(), ", got ", rectified);
  const Tensor values = dense(x);
  const bool one = shared(x);
  const gather::Shape shape{x.size(1), x.size(2)};
  Places places(op, "index", x.size(0));
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
    gather::dispatch<T>(strided<T>(values, x.size(0)), shape, copies, torch_parallel_each);
    if (one) {
      for (size_t list = 0; list < index.size(); ++list) {
        results[list] = expanded(results[list], index[list].numel());
      }
    }
    return results;
  });
}

Tensor dispatch_backward(Tensors grads, Tensor x, Tensors index, int64_t rectified) {
  const char* op = "gather_dispatch_backward";
  check_blocks(op, "x", x);
  STD_TORCH_CHECK(grads.size() == index.size(), op, ": grads must hold one tensor a list, ",
                  index.size(), ", got ", grads.size());
  const Tensor values = dense(x);
  Places places(op, "index", x.size(0));
  Tensor into = torch::stable::new_empty(x, Sizes{x.size(0), x.size(1), x.size(2)});
  with_type_of(x, [&]<class T>(T) {
    std::vector<gather::Copies<const T>> copies;
    Tensors kept;
    for (size_t list = 0; list < index.size(); ++list) {
      const std::string name = "grads[" + std::to_string(list) + "]";
      const Tensor& grad = grads[list];
      const bool like = grad.dim() == 3 && grad.size(1) == x.size(1) && grad.size(2) == x.size(2) &&
                        grad.scalar_type() == x.scalar_type();
      STD_TORCH_CHECK(like, op, ": ", name, " must be blocks like x, ", sizes_of(x), ", got ",
                      sizes_of(grad));
      kept.push_back(torch::stable::contiguous(grad));
      copies.push_back({places.add(index[list], grad.size(0), list),
                        static_cast<const T*>(kept.back().data_ptr()),
                        static_cast<int64_t>(list) < rectified});
    }
    gather::dispatch_backward<T>(strided<T>(values, x.size(0)), x.size(0), {x.size(1), x.size(2)},
                                 copies, static_cast<T*>(into.data_ptr()), torch_parallel_each);
    return 0;
  });
  return into;
}

// The terms of a sum, checked.
template <class T>
class Terms {
 public:
  Terms(const char* op, const Tensor& like, int64_t blocks)
      : op_(op), like_(like), places_(op, "target", blocks) {}

  void add(const std::string& name, const Tensor& x, const Tensor& target) {
    check_blocks(op_, name, x);
    const bool same = x.size(1) == like_.size(1) && x.size(2) == like_.size(2) &&
                      x.scalar_type() == like_.scalar_type();
    STD_TORCH_CHECK(same, op_, ": ", name, " must be blocks like the other terms', ",
                    sizes_of(like_), ", got ", sizes_of(x));
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
    STD_TORCH_CHECK(like, op_, ": ", name, " must be [", count, ", ", like_.size(2),
                    "] like its term, got ", sizes_of(rows));
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
  Places places_;
  std::vector<Tensor> kept_;
};

void check_lengths(const char* op, size_t normed, size_t plain, const Tensors& weight,
                   const Tensors& bias, const Tensors& target) {
  STD_TORCH_CHECK(normed + plain > 0, op, ": expected at least one term, got none");
  STD_TORCH_CHECK(weight.size() == normed, op, ": weight must hold one tensor a normed term, ",
                  normed, ", got ", weight.size());
  STD_TORCH_CHECK(bias.size() == normed, op, ": bias must hold one tensor a normed term, ", normed,
                  ", got ", bias.size());
  STD_TORCH_CHECK(target.size() == normed + plain, op, ": target must hold one tensor a term, ",
                  normed + plain, ", got ", target.size());
}

std::tuple<Tensor, Tensors, Tensors> combine(Tensors normed, Tensors weight, Tensors bias,
                                             Tensors plain, Tensors target, int64_t blocks,
                                             double eps) {
  const char* op = "gather_combine";
  check_lengths(op, normed.size(), plain.size(), weight, bias, target);
  const Tensor& first = normed.empty() ? plain[0] : normed[0];
  check_blocks(op, "the first term", first);
  // One term of one block and one weight in memory: computed once.
  const bool one = normed.size() == 1 && plain.empty() && first.size(0) == blocks &&
                   shared(first) && weight[0].dim() == 2 && weight[0].size(0) == blocks &&
                   shared(weight[0]);
  const Sizes sizes{one ? 1 : blocks, first.size(1), first.size(2)};
  Tensor y = torch::stable::new_empty(first, sizes);
  Tensors means, rstds;
  with_type_of(first, [&]<class T>(T) {
    Terms<T> terms(op, first, blocks);
    for (size_t i = 0; i < normed.size(); ++i) {
      terms.add("normed[" + std::to_string(i) + "]", normed[i], target[i]);
      gather::Term<T>& term = terms.terms.back();
      term.weight = terms.rows("weight", weight[i]);
      term.bias = terms.rows("bias", bias[i]);
      const Sizes rows{normed[i].size(0), first.size(2)};
      means.push_back(torch::stable::new_empty(first, rows));
      rstds.push_back(torch::stable::new_empty(first, rows));
      term.mean = static_cast<T*>(means.back().data_ptr());
      term.rstd = static_cast<T*>(rstds.back().data_ptr());
    }
    for (size_t i = 0; i < plain.size(); ++i) {
      terms.add("plain[" + std::to_string(i) + "]", plain[i], target[normed.size() + i]);
    }
    const int64_t zero = 0;
    if (one) terms.terms[0].target = {&zero, 1};
    const gather::Shape shape{first.size(1), first.size(2)};
    gather::combine<T>(terms.terms, one ? 1 : blocks, shape, eps, static_cast<T*>(y.data_ptr()),
                       torch_parallel_each);
    if (one) {
      for (Tensors* rows : {&means, &rstds}) {
        T* data = static_cast<T*>((*rows)[0].data_ptr());
        for (int64_t block = 1; block < blocks; ++block) {
          std::copy(data, data + shape.channels, data + block * shape.channels);
        }
      }
    }
    return 0;
  });
  return {one ? expanded(y, blocks) : y, means, rstds};
}

std::tuple<Tensors, Tensors, Tensors> combine_backward(Tensor d, Tensors normed, Tensors weight,
                                                       Tensors target, Tensors mean, Tensors rstd) {
  const char* op = "gather_combine_backward";
  check_blocks(op, "d", d);
  if (normed.empty()) return {};
  check_lengths(op, normed.size(), 0, weight, weight, target);
  const Tensor gradient = torch::stable::contiguous(d);
  Tensors into_x, into_weight, into_bias, kept;
  with_type_of(d, [&]<class T>(T) {
    Terms<T> terms(op, d, d.size(0));
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
    gather::combine_backward<T>(static_cast<const T*>(gradient.data_ptr()), terms.terms, into,
                                {d.size(1), d.size(2)}, torch_parallel_each);
    return 0;
  });
  return {into_x, into_weight, into_bias};
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_dispatch", TORCH_BOX(&sigeo_ext::dispatch));
  m.impl("gather_dispatch_backward", TORCH_BOX(&sigeo_ext::dispatch_backward));
  m.impl("gather_combine", TORCH_BOX(&sigeo_ext::combine));
  m.impl("gather_combine_backward", TORCH_BOX(&sigeo_ext::combine_backward));
}
