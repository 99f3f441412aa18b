"""Rules of operations that work along some dimensions: pooling, norms, softmax, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sigeo.capture.samples.axis import Axis, Lost, Where
from sigeo.capture.samples.axis_rules.registry import RULES, Rule, first, mixed, rule
from sigeo.capture.samples.functions import tensors_in


def leading(place: Where, dims: int, worked: int) -> Where:
    """The rule of operations that work on the last ``worked`` dimensions and keep the others."""
    if not isinstance(place, Axis) or place.dim < dims - worked:
        return place
    return mixed("an operation along the samples")


def padded(place: Where, dims: int, widths: Sequence[int]) -> Where:
    """The rule of ``F.pad``: two widths for each dimension from the last, which may be 0."""
    if not isinstance(place, Axis):
        return place
    own = 2 * (dims - 1 - place.dim)
    return mixed("an operation along the samples") if any(widths[own : own + 2]) else place


def _leading(trailing: int | Callable[[Any], int]) -> Rule:
    def known(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
        axis = first(given)
        if any(isinstance(w, Axis) and w != axis for w in given):
            return Lost("two tensors with their samples in different places were combined")
        dims = tensors_in(*args)[0].dim()
        return leading(axis, dims, trailing(args) if callable(trailing) else trailing)

    return known


for _dims in (1, 2, 3):
    for _name in (
        "avg_pool{}d", "max_pool{}d_with_indices", "adaptive_avg_pool{}d", "_adaptive_avg_pool{}d",
        "adaptive_max_pool{}d", "mkldnn_max_pool{}d", "upsample_nearest{}d", "upsample_linear{}d",
        "upsample_bilinear{}d", "upsample_bicubic{}d", "upsample_trilinear{}d",
        "_upsample_nearest_exact{}d", "reflection_pad{}d", "replication_pad{}d",
    ):  # fmt: skip
        RULES[_name.format(_dims)] = _leading(_dims)
for _name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"):
    RULES[_name] = _leading(3)
for _name in (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "tril", "triu",
):  # fmt: skip
    RULES[_name] = _leading(2)
RULES["native_layer_norm"] = _leading(lambda args: len(args[1]))
RULES["_fused_rms_norm"] = _leading(lambda args: len(args[1]))
for _name in ("native_group_norm", "_native_batch_norm_legit_no_training"):
    RULES[_name] = _leading(lambda args: args[0].dim() - 1)


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm"
)
def _batch_norm(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """On each channel's statistics: the batch's, where a flag says so or there is none to ask."""
    axis, training = given[0], next((flag for flag in args if isinstance(flag, bool)), True)
    if not isinstance(axis, Axis) or any(isinstance(place, Axis) for place in given[1:]):
        return mixed("a batch norm by samples")
    if training and axis.dim != 1:
        return mixed("batch norm on the batch's statistics")
    if kwargs["_result"] == 0:
        return axis
    return axis.at(0) if axis.dim == 1 else None


def _along(place: int, default: int | None = None) -> Rule:
    """Of operations along the dimensions that argument ``place`` names."""

    def known(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
        axis = first(given)
        value = args[place] if len(args) > place else kwargs.get("dim", default)
        dims = [value] if isinstance(value, int) else list(value or range(args[0].dim()))
        if axis.dim in {d % args[0].dim() for d in dims}:
            return mixed("an operation along the samples")
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
    RULES[_name] = _along(1)
RULES["sort"] = _along(1, -1)
RULES["topk"] = _along(2, -1)
RULES["glu"] = _along(1, -1)
RULES["roll"] = _along(2)
RULES["unfold"] = _along(1)
for _name in ("_fft_r2c", "_fft_c2r", "_fft_c2c"):
    RULES[_name] = _along(1)


@rule("constant_pad_nd")
def _padded(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return padded(first(given), result.dim(), args[1])


@rule("gather", "scatter", "scatter_add", "scatter_reduce")
def _by_index(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """Entries along one dimension, in the places of all others: those of the index or source."""
    axis = first(given)
    if args[1] % result.dim() == axis.dim:
        return mixed("an operation along the samples")
    same = all(place == axis for place in given if isinstance(place, Axis))
    return (
        axis if same else Lost("two tensors with their samples in different places were combined")
    )


@rule("index_add", "index_copy")
def _added(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """Slices along one dimension, which a list of numbers puts there."""
    if isinstance(given[1], Axis):
        return mixed("an index by samples")
    return _by_index([given[0], given[2]], args, kwargs, result)


@rule("grid_sampler_2d", "grid_sampler_3d", "affine_grid_generator")
def _sampled(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """Images by their grids: the samples lead both."""
    leads = all(p.dim == 0 and p == first(given) for p in given if isinstance(p, Axis))
    return first(given) if leads else mixed("a grid along the samples")


@rule(
    "sum", "mean", "amax", "amin", "prod", "var", "std", "logsumexp", "max", "min", "argmax",
    "argmin", "all", "any", "var_mean", "std_mean", "median", "mode",
)  # fmt: skip
def _reduced(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    return _over(first(given), args[0], args[1] if len(args) > 1 else kwargs.get("dim"), result)


@rule("linalg_vector_norm", "norm")
def _normed(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """As `_reduced`, behind the order of the norm."""
    return _over(first(given), args[0], args[2] if len(args) > 2 else kwargs.get("dim"), result)


def _over(axis: Axis, source: Tensor, named: Any, result: Tensor) -> Where:
    """The rule of reductions over the dimensions named: a list, one number, or none for all."""
    if named is None or named == [] or isinstance(named, bool):  # std(x, unbiased)
        return mixed("a reduction over everything")
    dims = {d % source.dim() for d in ([named] if isinstance(named, int) else named)}
    if axis.dim in dims:
        return mixed("a reduction over the samples")
    kept = result.dim() == source.dim()
    return axis if kept else axis.at(axis.dim - sum(d < axis.dim for d in dims))
