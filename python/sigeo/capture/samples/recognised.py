"""The layer functions that are recognised, and the call that each becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples import calls, embedding, scaled
from sigeo.capture.samples.axis import Axis, Where, mark
from sigeo.capture.samples.calls import Call, Layer
from sigeo.capture.samples.mode import LINEAR
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session

Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}
"""Torch function to handler: it gets the session and the function's arguments, and returns the
output, or NotImplemented where no parameter that is measured takes part."""


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Make a function the handler of torch functions."""

    def enter(handler: Handler) -> Handler:
        for function in functions:
            HANDLERS[function] = handler
        return handler

    return enter


def _run(
    session: Session, call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, out: Where
) -> Tensor:
    """Run a call whose uses are known, and note where its output's samples are."""
    session.register(list(call.uses.values()))
    y: Tensor = Layer.apply(call, x, weight, bias)  # type: ignore[no-untyped-call]
    mark(y, out)
    return y


@handles(F.linear)
def _linear(session: Session, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    uses = session.uses(weight=weight, bias=bias)
    if "weight" not in uses or weight.dim() != 2 or input.dim() < 2:
        return NotImplemented
    if bias is not None and "bias" not in uses and bias.requires_grad:
        return NotImplemented  # a computed bias: its own operations are followed
    axis = session.where(input)
    if not isinstance(axis, Axis) or axis.dim == input.dim() - 1:
        return session.foreign(LINEAR, (input, weight, bias), {})
    return _run(session, calls.Linear(axis, uses), input, weight, bias, axis)


def _convolve(transposed: bool) -> Handler:
    def handler(
        session: Session,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *rest: Any,
        **named: Any,
    ) -> Any:
        dims = weight.dim() - 2
        defaults = {"output_padding": 0, "groups": 1, "dilation": 1}
        names = list(defaults) if transposed else ["dilation", "groups"]
        options = defaults | dict(zip(names, rest, strict=False)) | named
        uses = session.uses(weight=weight, bias=bias)
        if not uses and weight is not input and session.is_constant(weight, bias):
            axis = session.where(input)
            if isinstance(axis, Axis) and axis.dim == 0 and input.dim() == dims + 2:
                function: Any = _FUNCTIONS[dims, transposed]
                output: Tensor = function(input, weight, bias, stride, padding, *rest, **named)
                mark(output, axis)
                return output
        if "weight" not in uses or input.dim() != dims + 2:
            return NotImplemented
        if bias is not None and "bias" not in uses and bias.requires_grad:
            return NotImplemented
        axis = session.where(input)
        if not isinstance(axis, Axis) or axis.dim != 0:
            given = (input, weight, bias, stride, padding, *rest)
            return session.foreign(_FUNCTIONS[dims, transposed], given, named)
        dilation = _each(options["dilation"], dims)
        if isinstance(padding, str):
            input, padding = _padded(input, axis, padding, weight.shape[2:], dilation)
        call = calls.Convolution(
            axis,
            uses,
            _each(stride, dims),
            _each(padding, dims),
            dilation,
            options["groups"],
            transposed,
            tuple(_each(options["output_padding"], dims)) if transposed else (),
        )
        return _run(session, call, input, weight, bias, axis)

    return handler


def _each(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


def _padded(
    x: Tensor, axis: Axis, padding: str, kernel: Any, dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The input and the padding that "valid" or "same" stand for."""
    if padding == "valid":
        return x, [0] * len(dilation)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):  # one more behind, which a layer's padding cannot say
        sides = [side for t in reversed(total) for side in (0, t % 2)]
        x = F.pad(x, sides)
        mark(x, axis)
    return x, [t // 2 for t in total]


_FUNCTIONS = {
    (1, False): torch.conv1d,
    (2, False): torch.conv2d,
    (3, False): torch.conv3d,
    (1, True): torch.conv_transpose1d,
    (2, True): torch.conv_transpose2d,
    (3, True): torch.conv_transpose3d,
}
for (_, _transposed), _function in _FUNCTIONS.items():
    HANDLERS[_function] = _convolve(_transposed)


@handles(F.batch_norm)
def _batch_norm(
    session: Session,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.uses(weight=weight, bias=bias)
    coupled = training or running_mean is None or running_var is None
    if not isinstance(axis, Axis):
        return session.foreign(
            F.batch_norm,
            (input, running_mean, running_var, weight, bias, training, momentum, eps),
            {},
        )
    if axis.dim != 0:
        session.cannot([use.record.name for use in uses.values()], "batch_norm along the samples")
        return NotImplemented
    shape = (input.shape[1],)
    policy = session.batch_norm
    if coupled and policy == "refuse":
        raise InputError(
            "batch norm uses the statistics of the batch, so its samples have no gradients of "
            'their own: expected frozen statistics (batch_norm="frozen" or model.eval()), '
            'micro-batches (batch_norm="per_unit") or the decomposition of the batch\'s gradient '
            '(batch_norm="contribution"), got batch_norm="refuse"'
        )
    if coupled and policy == "frozen" and (running_mean is None or running_var is None):
        raise InputError(
            'batch_norm="frozen" needs running statistics; this batch norm tracks none '
            "(track_running_stats=False)"
        )
    if coupled and policy == "per_unit":
        return _batch_norm_of_units(session, input, weight, bias, eps, axis)
    call: Call
    if coupled and policy == "contribution":
        call = scaled.BatchNorm(axis, uses, shape, running_mean, running_var, momentum, eps)
    else:
        assert running_mean is not None and running_var is not None
        call = scaled.FrozenBatchNorm(axis, uses, shape, running_mean, running_var, eps)
    return _run(session, call, input, weight, bias, axis)


def _batch_norm_of_units(
    session: Session, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axis: Axis
) -> Any:
    """Statistics of each unit alone: a group norm over the unit's images and a channel.

    Raises:
        InputError: Units of a single value a channel, or samples that are stacked in rounds.
    """
    units, images = session.plan.units, session.plan.unit * axis.inner
    if axis.outer != 1:
        raise InputError("batch_norm=per_unit: samples that are stacked in rounds are not served")
    if session.plan.unit == 1 and axis.inner == 1 and x.dim() == 2:
        raise InputError("batch_norm=per_unit: a unit needs two values a channel, got one sample")
    parts = x.unflatten(0, (units, images)).movedim(1, 2)  # [units, C, images, ...]
    normed = F.group_norm(parts, parts.shape[1], eps=eps)
    y = normed.movedim(2, 1).flatten(0, 1)
    if weight is None and bias is None:
        mark(y, axis)
        return y
    call = _AffineOfUnits(axis, session.uses(weight=weight, bias=bias), (x.shape[1],))
    return _run(session, call, y, weight, bias, axis)


class _AffineOfUnits(scaled.ChannelNorm):
    """The scale and shift behind a norm without them."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """Scaled, shifted; a mean of 0 and a deviation of 1, as x is normalised already."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        y = x if weight is None else x * weight.view(shape)
        y = y if bias is None else y + bias.view(shape)
        return y, x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])

    def input_gradient(self, d: Tensor, x: Tensor, weight: Tensor | None, saved: Any) -> Tensor:
        """D times the scale."""
        return d if weight is None else d * weight.view(1, -1, *[1] * (x.dim() - 2))


@handles(F.layer_norm)
def _layer_norm(
    session: Session,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.uses(weight=weight, bias=bias)
    lead = input.dim() - len(normalized_shape)
    if not uses:
        return NotImplemented
    if not isinstance(axis, Axis) or axis.dim >= lead:
        return session.foreign(F.layer_norm, (input, normalized_shape, weight, bias, eps), {})
    call = scaled.LayerNorm(axis, uses, tuple(normalized_shape), eps)
    return _run(session, call, input, weight, bias, axis)


@handles(F.rms_norm)
def _rms_norm(
    session: Session,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    axis, uses = session.where(input), session.uses(weight=weight)
    lead = input.dim() - len(normalized_shape)
    if not uses:
        return NotImplemented
    if not isinstance(axis, Axis) or axis.dim >= lead:
        return session.foreign(F.rms_norm, (input, normalized_shape, weight, eps), {})
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    call = scaled.RMSNorm(axis, uses, tuple(normalized_shape), eps)
    return _run(session, call, input, weight, None, axis)


@handles(F.group_norm)
def _group_norm(
    session: Session,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.uses(weight=weight, bias=bias)
    if not uses:
        return NotImplemented
    if not isinstance(axis, Axis) or axis.dim != 0:
        return session.foreign(F.group_norm, (input, num_groups, weight, bias, eps), {})
    call = scaled.GroupNorm(axis, uses, (input.shape[1],), num_groups, eps)
    return _run(session, call, input, weight, bias, axis)


@handles(F.instance_norm)
def _instance_norm(
    session: Session,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    axis, uses = session.where(input), session.uses(weight=weight, bias=bias)
    given = (input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if not isinstance(axis, Axis) or axis.dim != 0:
        return session.foreign(F.instance_norm, given, {})
    shape = (input.shape[1],)
    if not use_input_stats:
        if running_mean is None or running_var is None:  # torch says what is wrong
            return NotImplemented
        frozen = scaled.FrozenBatchNorm(axis, uses, shape, running_mean, running_var, eps)
        return _run(session, frozen, input, weight, bias, axis)
    if running_mean is not None:  # moves the running statistics, as the layer would
        with torch.no_grad():
            F.instance_norm(
                input.detach(), running_mean, running_var, None, None, True, momentum, eps
            )
    call = scaled.GroupNorm(axis, uses, shape, input.shape[1], eps)
    return _run(session, call, input, weight, bias, axis)


@handles(F.embedding)
def _embedding(
    session: Session,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    uses = session.uses(weight=weight)
    if "weight" not in uses:
        return NotImplemented
    axis = session.where(input)
    given = (input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    part = uses["weight"].view is not None  # rows of a part are no rows of the table
    if not isinstance(axis, Axis) or scale_grad_by_freq or max_norm is not None or part:
        return session.foreign(F.embedding, given, {})
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    look_up = embedding.LookUp(axis, uses["weight"], input, padding)
    return _looked_up(session, torch.embedding, (weight, input, padding, False, sparse), look_up)


def _looked_up(
    session: Session, function: Any, given: tuple[Any, ...], look_up: embedding.LookUp
) -> Tensor:
    """The output of a look-up, with its gradient on the way to ``look_up``."""
    if not session.plan.grads:  # nobody wants the table's own gradient
        given = tuple(t.detach() if isinstance(t, Tensor) else t for t in given)
    y: Tensor = function(*given)
    y = y if y.requires_grad else y.requires_grad_()
    if session.register([look_up.use]):
        session.look_ups.append(look_up)
        y.register_hook(look_up.arrived)
    mark(y, look_up.axis)
    return y


@handles(F.embedding_bag)
def _embedding_bag(
    session: Session,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    uses = session.uses(weight=weight)
    if "weight" not in uses:
        return NotImplemented
    axis = session.where(input if offsets is None else offsets)
    given = (
        input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
        per_sample_weights, include_last_offset, padding_idx,
    )  # fmt: skip
    learned = per_sample_weights is not None and per_sample_weights.requires_grad
    odd = scale_grad_by_freq or max_norm is not None or mode == "max" or learned
    odd = odd or uses["weight"].view is not None  # rows of a part are no rows of the table
    if not isinstance(axis, Axis) or axis.dim != 0 or odd:
        return session.foreign(F.embedding_bag, given, {})
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    bags = embedding.BagLookUp(
        axis, uses["weight"], input, padding, mode=mode, offsets=offsets, weights=per_sample_weights
    )
    return _looked_up(session, F.embedding_bag, given, bags)


@handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _times(session: Session, a: Any, b: Any) -> Any:
    x, parameter = (a, b) if session.is_parameter(b) else (b, a)
    if not session.is_parameter(parameter) or not isinstance(x, Tensor):
        return NotImplemented
    return _elementwise(session, torch.mul, x, weight=parameter)


def _adds(function: Any, sign: float) -> Handler:
    def handler(session: Session, a: Any, b: Any, **named: Any) -> Any:
        for given, other in ((b, a), (a, b)):
            before = session.before_expansion(given)
            if before is not None and isinstance(other, Tensor) and other.shape == given.shape:
                a, b = (other, before) if given is b else (before, other)
                break
        x, parameter = (a, b) if session.is_parameter(b) else (b, a)
        if named or not session.is_parameter(parameter) or not isinstance(x, Tensor):
            return NotImplemented
        if sign < 0 and parameter is a:
            return NotImplemented
        return _elementwise(session, function, x, sign=sign, bias=parameter)

    return handler


for _add in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__):
    HANDLERS[_add] = _adds(torch.add, 1.0)
for _sub in (torch.sub, Tensor.sub, Tensor.__sub__):
    HANDLERS[_sub] = _adds(torch.sub, -1.0)


@handles(torch.cat)
def _cat(session: Session, tensors: Any, dim: int = 0, **named: Any) -> Any:
    """A parameter that is expanded to all samples, a class token say, becomes theirs first."""
    spread = [session.before_expansion(t) for t in tensors]
    places = [session.where(t) for t, p in zip(tensors, spread, strict=True) if p is None]
    axis = next((place for place in places if isinstance(place, Axis)), None)
    along = axis is not None and any(
        p is not None and dim % t.dim() == axis.dim for t, p in zip(tensors, spread, strict=True)
    )
    if named or axis is None or along or all(p is None for p in spread):
        return NotImplemented
    joined = []
    for tensor, parameter in zip(tensors, spread, strict=True):
        whole = tensor
        if parameter is not None:
            zeros = torch.zeros_like(tensor)
            mark(zeros, axis)
            whole = _elementwise(session, torch.add, zeros, bias=parameter)
            if whole is NotImplemented:
                return NotImplemented
        joined.append(whole)
    return session.foreign(torch.cat, (joined, dim), {})


def _elementwise(
    session: Session, function: Any, x: Tensor, sign: float = 1.0, **parameter: Tensor
) -> Any:
    (p,) = parameter.values()
    axis = session.where(x)
    spread = isinstance(axis, Axis) and (
        axis.dim < x.dim() - p.dim() or p.shape[axis.dim - x.dim() + p.dim()] == 1
    )
    # NumPy's: torch's imports a computer algebra system (35 MiB) for it.
    grown = np.broadcast_shapes(x.shape, p.shape) != x.shape
    if not spread or grown or not x.is_floating_point():
        return NotImplemented
    assert isinstance(axis, Axis)
    call = scaled.Elementwise(axis, session.uses(**parameter), sign)
    return _run(session, call, x, parameter.get("weight"), parameter.get("bias"), axis)


@handles(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(session: Session, a: Tensor, b: Tensor) -> Any:
    """``x @ W`` with a parameter is a linear layer with the weight W^T."""
    if not isinstance(b, Tensor) or b.dim() != 2 or not session.is_parameter(b) or a.dim() < 2:
        return NotImplemented
    return _linear(session, a, b.t())


@handles(F.multi_head_attention_forward)
def _attention(session: Session, *args: Any, **kwargs: Any) -> Any:
    """Seen through: its linear layers are recognised, everything between them is followed.

    Only the rows that may be added to keys and values are parameters that no linear layer takes.
    """
    output = session.seen_through(F.multi_head_attention_forward, args, kwargs)
    added = (*args[7:9], kwargs.get("bias_k"), kwargs.get("bias_v"))
    session.note_foreign(F.multi_head_attention_forward, added, {}, output)
    return output


def _recurrent(function: Any) -> Handler:
    """A recurrent layer: its module takes over; where its outputs' samples are is known here."""

    def handler(session: Session, input: Tensor, *rest: Any) -> Any:
        axis, batch_first = session.where(input), rest[-1]
        packed = not isinstance(batch_first, bool)
        if packed or not isinstance(axis, Axis) or input.dim() != 3:
            return NotImplemented
        if not axis.alone or axis.dim != (0 if batch_first else 1):
            return NotImplemented
        output = function(input, *rest)
        mark(output[0], axis)
        for hidden in output[1:]:
            mark(hidden, axis.at(1))
        session.note_foreign(function, (input, *rest), {}, output)
        return output

    return handler


for _cell in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu):
    HANDLERS[_cell] = _recurrent(_cell)
