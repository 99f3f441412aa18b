"""Batch norm of blocks: each subnet by statistics of its own, current or running."""

from __future__ import annotations

import torch
from torch import Tensor

from sigeo_ext import _check
from sigeo_ext._kinds import named_arguments
from sigeo_ext.gather import op

_OP = "gather.batch_norm"


@named_arguments("gather.batch_norm")
def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    groups: int = 1,
) -> Tensor:
    """Batch norm of each block with its own statistics, scale and shift. Differentiable.

    Equivalent to ``F.batch_norm`` on each ``x[k].T[None]`` with ``weight[k]`` and so on; scale and
    shift that all subnets share are one row expanded to all, and get a gradient a row.

    Args:
        x: Blocks [n, positions, channels], float32 or float64.
        weight: Scales [n, channels]; None for 1.
        bias: Shifts [n, channels]; None for 0.
        running_mean: [n, channels], updated in place in training; None for none.
        running_var: The same of variances, which are the unbiased ones; with ``running_mean``.
        training: Whether to normalise by the block's own statistics; else by the running ones.
        momentum: Weight of the new in the running statistics.
        eps: Added to variances.
        groups: Parts of equal length that each block's positions fall into, as micro-batches are,
            each with statistics of its own. Running statistics take them one after another.

    Returns:
        [n, positions, channels].

    Raises:
        RuntimeError: Tensors that do not fit together; running statistics that are missing, or are
            one in memory for several blocks; a negative eps.
    """
    _check.require(x.dim() == 3, _OP, f"x must be [n, positions, channels], got {list(x.shape)}")
    n, positions, channels = x.shape
    message = f"groups must divide the {positions} positions, got {groups}"
    _check.require(groups >= 1 and positions % groups == 0, _OP, message)
    _check.eps(_OP, eps)
    running = _running(x, running_mean, running_var, training=training)
    scale = x.new_ones(()).expand(n, channels) if weight is None else weight
    shift = x.new_zeros(()).expand(n, channels) if bias is None else bias
    for name, value in (("weight", scale), ("bias", shift)):
        message = f"{name} must be {[n, channels]} like x, got {list(value.shape)}"
        _check.require(value.shape == (n, channels), _OP, message)
    if not training:
        assert running is not None
        mean, var = running
        factor = scale * (var + eps).rsqrt()
        return torch.addcmul((shift - mean * factor)[:, None], x, factor[:, None])
    length = positions // groups
    message = f"a running variance needs two values a channel, got {length}"
    _check.require(running is None or length > 1, _OP, message)
    blocks = x.reshape(n * groups, length, channels)
    rows = [v[:, None].expand(n, groups, channels).flatten(0, 1) for v in (scale, shift)]
    everyone = torch.arange(n * groups, device=x.device)
    y, means, rstds = op.gather_combine(
        [blocks], [rows[0]], [rows[1]], [], [everyone], len(blocks), eps
    )
    if running is not None:
        _update(*running, means[0].detach(), rstds[0].detach(), (n, groups, length), momentum, eps)
    normed: Tensor = y.reshape(x.shape)
    return normed


def _running(
    x: Tensor, mean: Tensor | None, var: Tensor | None, *, training: bool
) -> tuple[Tensor, Tensor] | None:
    """The running statistics, checked."""
    _check.require(
        (mean is None) == (var is None), _OP, "running_mean and running_var belong together"
    )
    if mean is None or var is None:
        _check.require(training, _OP, "running_mean and running_var are needed where not training")
        return None
    for name, value in (("running_mean", mean), ("running_var", var)):
        expected = [len(x), x.shape[2]]
        message = f"{name} must be {expected} like x, got {list(value.shape)}"
        _check.require(list(value.shape) == expected, _OP, message)
        one = training and len(x) > 1 and value.stride(0) == 0
        _check.require(not one, _OP, f"{name} must have a row of its own for each block")
    return mean, var


def _update(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sizes: tuple[int, int, int],
    momentum: float,
    eps: float,
) -> None:
    n, groups, length = sizes
    var = (rstd.double().pow(-2) - eps).clamp_min(0) * (length / (length - 1))
    with torch.no_grad():
        for group in range(groups):
            for running, new in ((running_mean, mean), (running_var, var)):
                running.lerp_(new.view(n, groups, -1)[:, group].to(running.dtype), momentum)
