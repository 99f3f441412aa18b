"""The empirical neural tangent kernel of a model on one batch."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sigeo.capture.batches import Batches, MemoryFormat, call
from sigeo.capture.coupled import coupled_gram
from sigeo.capture.layers import Selection, select
from sigeo.capture.samples import BatchNormPolicy, SamplesCoupled, all_served, capture
from sigeo.capture.state import preserved, undistributed
from sigeo.errors import InputError, described
from sigeo.kinds import named_arguments

Outputs = Literal["sum", "trace", "full"]
NTKBatchNorm = BatchNormPolicy | Literal["coupled"]


@named_arguments("ntk")
@torch.inference_mode(False)
@torch.enable_grad()
@all_served()
def ntk(
    model: nn.Module,
    inputs: Any,
    *,
    outputs: Outputs = "sum",
    params: Selection = "all",
    batch_norm: NTKBatchNorm = "refuse",
    max_bytes: int = 1 << 28,
    memory_format: MemoryFormat = "auto",
) -> Tensor:
    """Gram matrix of the samples' gradients of a model's outputs (Jacot et al., NeurIPS 2018).

    Added up layer by layer, so the Jacobian is never held: memory of O(B^2 + parameters). The model
    is measured in the mode that it is in and comes back as it was. `sigeo_ext.gram.spectrum` gives
    the extreme eigenvalues.

    ==========  =========  ====================================================================
    outputs     result     entry
    ==========  =========  ====================================================================
    ``sum``     [B, B]     <grad f(x_i), grad f(x_j)> of f = the sum of a sample's outputs: one
                           pass
    ``trace``   [B, B]     sum over outputs c of <grad f_c(x_i), grad f_c(x_j)>: a pass for each
                           output
    ``full``    [BK, BK]   <grad f_c(x_i), grad f_d(x_j)> at row i K + c and column j K + d: one
                           pass over the batch with each sample K times
    ==========  =========  ====================================================================

    Args:
        model: Any module whose output is a tensor [B, ...]; K is the number of a sample's outputs.
        inputs: A batch: a tensor, or a tuple or dict of them.
        outputs: Which kernel.
        params: Of which parameters: "all", or "layers" (weights of convolutions and linear layers).
        batch_norm: As in `capture`; ``contribution`` splits the batch's gradient into the samples'
            contributions, which are not the gradients of their outputs, and has no ``full`` kernel.
            Or ``coupled``: the gradients of a sample's outputs through the whole batch, as TE-NAS'
            code takes them; a backward pass for each.
        max_bytes: As in `capture`.
        memory_format: Of images, as in `gradient_statistics`.

    Returns:
        float64, on the model's device.

    Raises:
        InputError: An argument out of its range, an output that is no tensor of one row a sample,
            or a model that `capture` refuses.
    """
    if outputs not in ("sum", "trace", "full"):
        raise InputError(f'outputs: must be "sum", "trace" or "full", got {described(outputs)}')
    if params not in get_args(Selection):
        raise InputError(f'params: must be "all" or "layers", got {described(params)}')
    if batch_norm not in (*get_args(BatchNormPolicy), "coupled"):
        raise InputError(
            "batch_norm: must be refuse, frozen, per_unit, contribution or coupled, "
            f"got {described(batch_norm)}"
        )
    if outputs == "full" and batch_norm == "contribution":
        raise InputError('outputs: "full" repeats samples, which batch_norm="contribution" counts')
    batch, _ = Batches.of([(inputs, None)], model, memory_format)[0]

    def measured(batch: Any, choose: Any) -> Tensor:
        assert batch_norm != "coupled"
        with capture(
            model,
            ["gram"],
            reduction="sum",
            params=params,
            batch_norm=batch_norm,
            grads=False,
            max_bytes=max_bytes,
        ) as found:
            output = choose(_rows(call(model, batch))).sum()
            if not output.requires_grad:
                raise InputError("model: expected parameters that ask for gradients, found none")
            output.backward()
        return found.gram

    def separate(batch: Any) -> Tensor:
        if outputs == "sum":
            return measured(batch, lambda rows: rows)
        with torch.no_grad(), preserved(model, parameters=False), undistributed(model):
            count = _rows(call(model, batch)).shape[1]
        if outputs == "trace":
            kernels = [measured(batch, lambda rows, c=c: rows[:, c]) for c in range(count)]
            return torch.stack(kernels).sum(0)
        often = _repeated(batch, count)
        return measured(often, lambda rows: rows.unflatten(0, (-1, count)).diagonal(0, 1, 2))

    def coupled(batch: Any) -> Tensor:
        rows = _rows(call(model, batch))
        if not rows.requires_grad:
            raise InputError("model: expected parameters that ask for gradients, found none")
        chosen = [p for p in select(model, params).values() if p.requires_grad]
        if outputs == "trace":
            return torch.stack([coupled_gram(c, chosen, max_bytes) for c in rows.unbind(1)]).sum(0)
        single = rows.sum(1) if outputs == "sum" else rows.flatten()
        return coupled_gram(single, chosen, max_bytes)

    with preserved(model, parameters=False):
        if batch_norm == "coupled":
            with undistributed(model):
                return coupled(batch)
        try:
            return separate(batch)
        except SamplesCoupled:
            coupled_too = 'the outputs\' gradients through the whole batch (batch_norm="coupled")'
            raise InputError(str(SamplesCoupled(*SamplesCoupled.WAYS, coupled_too))) from None


def _rows(output: object) -> Tensor:
    """The output as [B, K].

    Raises:
        InputError: It is no such tensor.
    """
    if not isinstance(output, Tensor) or output.dim() < 1:
        what = "a number" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"model: expected an output [samples, ...], got {what}")
    return output[:, None] if output.dim() == 1 else output.flatten(1)


def _repeated(batch: Any, count: int) -> Any:
    """Each sample so many times, one after another; what has no dimension is for all samples."""
    return tree_map_only(Tensor, lambda x: x.repeat_interleave(count, 0) if x.dim() else x, batch)
