"""Rules of matrix products and convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sigeo.capture.samples.axis import Axis, Where
from sigeo.capture.samples.axis_rules.broadcasting import pointwise
from sigeo.capture.samples.axis_rules.registry import mixed, rule


@rule("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv")
def _product(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    tensors = [t for t in args if isinstance(t, Tensor)]
    *summand, left, right = given
    a, b = tensors[-2:]
    batch = result.dim() - 2 if a.dim() > 1 and b.dim() > 1 else 0
    places: list[Axis] = []
    if isinstance(left, Axis):
        if left.dim == a.dim() - 1:
            return mixed("a matrix product over the samples")
        places.append(left)
    if isinstance(right, Axis):
        if right.dim == b.dim() - 2 or b.dim() == 1:
            return mixed("a matrix product over the samples")
        places.append(right)
    if len(places) == 2 and (places[0] != places[1] or places[0].dim >= batch):
        return mixed("a product of samples with samples")
    product = places[0] if places else None
    if not summand:
        return product
    return pointwise([summand[0], product], [tensors[0].dim(), result.dim()], result.dim())


@rule("_cdist_forward", "_euclidean_dist")
def _distances(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    """Of the rows of the first to those of the second, [..., rows, rows]."""
    left, right = given[:2]
    batch = result.dim() - 2 if args[0].dim() == args[1].dim() else 0
    if isinstance(right, Axis) and (left != right or right.dim >= batch):
        return mixed("a distance between samples")
    if isinstance(left, Axis) and left.dim == args[0].dim() - 1:
        return mixed("a distance over the samples")
    return pointwise([left], [args[0].dim()], result.dim())


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
        return mixed("a product of samples with samples")
    (axis,) = places
    if axis.dim in summed:
        return mixed("a product over the samples")
    return axis.at(axis.dim - sum(d < axis.dim for d in summed))


def _convolved_by_samples(
    image: Where, kernel: Axis, biases: list[Where], args: Any, result: Tensor
) -> Where:
    """With weights of each sample's own, on its channels alone, or on what all have."""
    transposed, groups = args[6], args[8]
    channels = result.shape[1] // (kernel.outer * kernel.samples)
    out = Axis(1, kernel.samples, kernel.outer, channels)
    if isinstance(image, Axis):  # each sample's channels are groups of their own
        inner = image.inner if transposed else channels
        apart = image.dim == 1 and image.outer == kernel.outer == 1 and kernel.inner == inner
        own = apart and groups % kernel.samples == 0
    else:
        own = not transposed and kernel.inner == channels
    same = all(place in (None, out.at(0)) for place in biases)
    if kernel.dim != 0 or not own or not same:
        return mixed("a convolution whose weight or channels hold samples")
    return out


@rule("convolution", "_convolution", "convolution_overrideable")
def _convolved(given: list[Where], args: Any, kwargs: Any, result: Tensor) -> Where:
    image, kernel = given[:2]
    if isinstance(kernel, Axis):
        return _convolved_by_samples(image, kernel, given[2:], args, result)
    if not isinstance(image, Axis) or image.dim != 0 or any(isinstance(w, Axis) for w in given[1:]):
        return mixed("a convolution whose weight or channels hold samples")
    return image
