"""The rule of each aten operation: where the samples of its result are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sigeo.capture.samples.axis import Axis, Lost, Where

Rule = Callable[[list[Where], tuple[Any, ...], dict[str, Any], Any], Where]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of aten operations, by name without overload.

    It gets what is known of the tensors among the arguments (in order), the arguments, the keyword
    arguments and the first result, and says where the samples of the result are.
    """

    def enter(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
        return function

    return enter


def follow(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    of: Callable[[Tensor], Where],
) -> list[Where]:
    """Where the samples are in each result of an aten operation."""
    results = tree_leaves(result)
    given = [of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    lost = next((w for w in given if isinstance(w, Lost)), None)
    if lost is not None:
        return [lost] * len(results)
    if all(w is None for w in given):
        return [None] * len(results)
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    known = _RULES.get(name)
    if known is None and torch.Tag.pointwise in func.tags:
        known = _pointwise
    if known is None:
        return [Lost(f"no rule says where {func._schema.name} puts the samples")] * len(results)
    found: list[Where] = []
    for index, leaf in enumerate(results):
        if not isinstance(leaf, Tensor):
            found.append(None)
            continue
        place = known(given, args, {**kwargs, "_result": index}, leaf)
        if isinstance(place, Axis) and not _holds(place, leaf):
            place = Lost(f"{func._schema.name} broke the samples up")
        found.append(place)
    return found


def _holds(axis: Axis, tensor: Tensor) -> bool:
    entries = axis.outer * axis.samples * axis.inner
    return axis.dim < tensor.dim() and tensor.shape[axis.dim] == entries


def _mixed(name: str) -> Lost:
    return Lost(f"{name} mixes the samples")


def _first(given: list[Where]) -> Axis:
    return next(axis for axis in given if isinstance(axis, Axis))


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]


def pointwise(given: list[Where], dims: list[int], out_dims: int) -> Where:
    """The rule of broadcasting operations: dimensions are counted from the last."""
    found: Axis | None = None
    for axis, dim in zip(given, dims, strict=True):
        if not isinstance(axis, Axis):
            continue
        moved = axis.at(axis.dim + out_dims - dim)
        if found is not None and found != moved:
            return Lost("two tensors with their samples in different places were combined")
        found = moved
    return found


@rule("_prelu_kernel")
def _pointwise(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return pointwise(given, [len(s) for s in _shapes(args, kwargs)], result.dim())


_RULES["_prelu_kernel"] = _pointwise


@rule("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "copy", "native_dropout")
def _same(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return _first(given)


def leading(place: Where, dims: int, worked: int) -> Where:
    """The rule of operations that work on the last ``worked`` dimensions and keep the others."""
    if not isinstance(place, Axis) or place.dim < dims - worked:
        return place
    return _mixed("an operation along the samples")


def indexed(axis: Axis, dims: int, index: Any) -> Axis | None:
    """The rule of ``x[index]`` for numbers, slices and None that leave the samples alone.

    None where the index is of another kind: the aten rules find out.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (dims - taken)
    source = place = 0
    for entry in entries:
        if source > axis.dim:
            break
        if isinstance(entry, int) and not isinstance(entry, bool) and source != axis.dim:
            source += 1
        elif isinstance(entry, slice) and (source != axis.dim or entry == slice(None)):
            place += source < axis.dim
            source += 1
        elif entry is None:
            place += 1
        else:
            return None
    return axis.at(place + max(0, axis.dim - source))


def _leading(trailing: int | Callable[[Any], int]) -> Rule:
    def known(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
        axis = _first(given)
        if any(isinstance(w, Axis) and w != axis for w in given):
            return Lost("two tensors with their samples in different places were combined")
        dims = next(t for t in tree_leaves(args) if isinstance(t, Tensor)).dim()
        return leading(axis, dims, trailing(args) if callable(trailing) else trailing)

    return known


for _dims in (1, 2, 3):
    for _name in (
        "avg_pool{}d", "max_pool{}d_with_indices", "adaptive_avg_pool{}d", "_adaptive_avg_pool{}d",
        "adaptive_max_pool{}d", "mkldnn_max_pool{}d", "upsample_nearest{}d", "upsample_linear{}d",
        "upsample_bilinear{}d", "upsample_bicubic{}d", "upsample_trilinear{}d",
        "_upsample_nearest_exact{}d", "reflection_pad{}d", "replication_pad{}d",
    ):  # fmt: skip
        _RULES[_name.format(_dims)] = _leading(_dims)
for _name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col"):
    _RULES[_name] = _leading(3)
_RULES["col2im"] = _leading(2)
for _name in (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "tril", "triu",
):  # fmt: skip
    _RULES[_name] = _leading(2)
_RULES["constant_pad_nd"] = _leading(lambda args: len(args[1]) // 2)
_RULES["native_layer_norm"] = _leading(lambda args: len(args[1]))
_RULES["_fused_rms_norm"] = _leading(lambda args: len(args[1]))
for _name in (
    "native_group_norm", "native_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_with_update",
):  # fmt: skip
    _RULES[_name] = _leading(lambda args: args[0].dim() - 1)


def _along(place: int, default: int | None = None) -> Rule:
    """Of operations along the dimensions that argument ``place`` names."""

    def known(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
        axis = _first(given)
        value = args[place] if len(args) > place else kwargs.get("dim", default)
        dims = [value] if isinstance(value, int) else list(value or range(args[0].dim()))
        if axis.dim in {d % args[0].dim() for d in dims}:
            return _mixed("an operation along the samples")
        return axis

    return known


for _name in (
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "flip",
):
    _RULES[_name] = _along(1)
_RULES["sort"] = _along(1, -1)
_RULES["topk"] = _along(2, -1)
_RULES["glu"] = _along(1, -1)
_RULES["roll"] = _along(2)
_RULES["gather"] = _along(1)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def _reshaped(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, shape = _first(given), args[0].shape
    inside = axis.inner * math.prod(shape[axis.dim + 1 :])  # entries from one sample to the next
    behind = 1
    for dim in reversed(range(result.dim())):
        size = result.shape[dim]
        if inside < behind * size or (dim == 0 and inside == behind * size):
            inner, rest = divmod(inside, behind)
            outer, left = divmod(size, axis.samples * inner) if inner else (0, 1)
            if rest or left or not outer:
                return Lost("a reshape broke the samples up")
            return Axis(dim, axis.samples, outer, inner)
        behind *= size
    return Lost("a reshape broke the samples up")


@rule("permute")
def _permuted(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dims = [d % result.dim() for d in args[1]]
    return axis.at(dims.index(axis.dim))


@rule("transpose", "t")
def _transposed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dims = args[1:3] if len(args) > 1 else (0, 1)
    a, b = (d % max(1, result.dim()) for d in dims)
    return axis.at({a: b, b: a}.get(axis.dim, axis.dim))


@rule("expand")
def _expanded(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    return axis.at(axis.dim + result.dim() - args[0].dim())


@rule("unsqueeze")
def _unsqueezed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    return axis.at(axis.dim + (args[1] % result.dim() <= axis.dim))


@rule("squeeze")
def _squeezed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, shape = _first(given), args[0].shape
    named = args[1] if len(args) > 1 else range(len(shape))
    dims = {d % len(shape) for d in ([named] if isinstance(named, int) else named)}
    gone = {d for d in dims if shape[d] == 1}
    if axis.dim in gone:
        return Lost("a squeeze took the dimension of the samples away")
    return axis.at(axis.dim - sum(d < axis.dim for d in gone))


def _part(axis: Axis, begin: int, size: int) -> Where:
    """Entries [begin, begin + size) of the samples' dimension, if they are whole rounds of them."""
    of_round = axis.samples * axis.inner
    if begin % of_round or size % of_round or not size:
        return _mixed("a part of the samples")
    return Axis(axis.dim, axis.samples, size // of_round, axis.inner)


@rule("slice")
def _sliced(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dim, begin, _, step = (list(args[1:]) + [0, None, None, 1][len(args) - 1 :])[:4]
    size = args[0].shape[axis.dim]
    if dim % result.dim() != axis.dim:
        return axis
    if step != 1:
        return _mixed("a slice of the samples with steps")
    begin = 0 if begin is None else max(0, begin + size if begin < 0 else begin)
    return _part(axis, begin, result.shape[axis.dim])


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk")
def _split(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % result.dim()
    if dim != axis.dim:
        return axis
    sizes, index = args[1], kwargs["_result"]
    begin = sizes * index if isinstance(sizes, int) else sum(sizes[:index])
    return _part(axis, begin, result.shape[dim])


@rule("select", "unbind")
def _selected(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dim = (args[1] if len(args) > 1 else 0) % args[0].dim()
    if dim == axis.dim:
        return _mixed("a selection of one sample")
    return axis.at(axis.dim - (dim < axis.dim))


@rule("cat")
def _joined(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    if dim != axis.dim:
        same = all(w == axis for w in given if isinstance(w, Axis))
        return axis if same else Lost("tensors with their samples in different places were joined")
    rounds = [w for w in given if isinstance(w, Axis)]
    if len(rounds) < len(given) or any(
        w.at(0) != Axis(0, w.samples, w.outer, axis.inner) for w in rounds
    ):
        return _mixed("joining along the samples")
    return Axis(dim, axis.samples, sum(w.outer for w in rounds), axis.inner)


@rule("stack")
def _stacked(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
    if any(w != axis for w in given if isinstance(w, Axis)):
        return Lost("tensors with their samples in different places were joined")
    return axis.at(axis.dim + (dim <= axis.dim))


@rule(
    "sum", "mean", "amax", "amin", "prod", "var", "std", "logsumexp", "linalg_vector_norm", "max",
    "min", "argmax", "argmin", "all", "any", "var_mean", "std_mean", "norm", "median", "mode",
)  # fmt: skip
def _reduced(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, source = _first(given), args[0]
    # The dimensions that are left out are found from the arguments: a list, or one number.
    named = kwargs.get("dim")
    for value in args[1:]:
        if named is None and not isinstance(value, (bool, float)) and value is not None:
            named = value
    if named is None or named == []:
        return _mixed("a reduction over everything")
    dims = {d % source.dim() for d in ([named] if isinstance(named, int) else named)}
    if axis.dim in dims:
        return _mixed("a reduction over the samples")
    kept = result.dim() == source.dim()
    return axis if kept else axis.at(axis.dim - sum(d < axis.dim for d in dims))


@rule("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv")
def _product(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    tensors = [t for t in args if isinstance(t, Tensor)]
    *summand, left, right = given
    a, b = tensors[-2:]
    batch = result.dim() - 2 if a.dim() > 1 and b.dim() > 1 else 0
    places: list[Axis] = []
    if isinstance(left, Axis):
        if left.dim == a.dim() - 1:
            return _mixed("a matrix product over the samples")
        places.append(left)
    if isinstance(right, Axis):
        if right.dim == b.dim() - 2 or b.dim() == 1:
            return _mixed("a matrix product over the samples")
        places.append(right)
    if len(places) == 2 and (places[0] != places[1] or places[0].dim >= batch):
        return _mixed("a product of samples with samples")
    product = places[0] if places else None
    if not summand:
        return product
    return pointwise([summand[0], product], [tensors[0].dim(), result.dim()], result.dim())


@rule("im2col", "col2im")
def _patches(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = _first(given)
    if axis.dim != 0 or result.dim() != args[0].dim() + (1 if args[0].dim() == 3 else -1):
        return _mixed("a rearrangement of patches")
    return axis


@rule("_trilinear")
def _trilinear(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    operands, spread, summed = args[:3], args[3:6], args[6]
    whole = range(operands[0].dim() + len(spread[0]))
    places = {
        axis.at([d for d in whole if d not in dims][axis.dim])
        for axis, dims in zip(given, spread, strict=True)
        if isinstance(axis, Axis)
    }
    if len(places) != 1:
        return _mixed("a product of samples with samples")
    (axis,) = places
    if axis.dim in summed:
        return _mixed("a product over the samples")
    return axis.at(axis.dim - sum(d < axis.dim for d in summed))


@rule("convolution", "_convolution", "convolution_overrideable")
def _convolved(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    image = given[0]
    if not isinstance(image, Axis) or image.dim != 0 or any(isinstance(w, Axis) for w in given[1:]):
        return _mixed("a convolution whose weight or channels hold samples")
    return image


@rule("embedding")
def _embedded(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return given[1] if given[0] is None else _mixed("an embedding whose table holds samples")


@rule("index_select")
def _picked(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis = given[0]
    if not isinstance(axis, Axis) or isinstance(given[1], Axis):
        return _mixed("an index by samples")
    return axis if args[1] % args[0].dim() != axis.dim else _mixed("an index along the samples")


@rule("index")
def _indexed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    axis, indices = given[0], args[1]
    by_samples = any(isinstance(w, Axis) for w in given[1:])
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if not isinstance(axis, Axis) or by_samples or axis.dim in dims:
        return _mixed("an index along the samples or by them")
    if dims != list(range(dims[0], dims[0] + len(dims))):
        return Lost("an index by several tensors that do not stand together")
    shape = np.broadcast_shapes(*(indices[d].shape for d in dims))
    return axis if axis.dim < dims[0] else axis.at(axis.dim + len(shape) - len(dims))


@rule("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "bernoulli")
def _made_alike(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """New values with a place for each of the old."""
    return _first(given)


@rule("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "scalar_tensor")
def _made(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """New values in a shape: what they are does not depend on the samples."""
    return None
