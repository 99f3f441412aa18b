"""Sums over the products of weights and gradients: what pruning and its proxies score by.

`sums` takes a list of weights ``w`` and a list of gradients ``g``, one tensor a layer, and returns
for each layer, in float64, any of::

    product          sum of w * g                  plain; GraSP, negated, with Hg in place of g
    abs_product      sum of |w * g|                SNIP
    log_abs_product  log of abs_product            SynFlow
    log1p_product    sum of |w * log(1 + g)|       LogSynFlow
    weight_sq        sum of w^2
    gradient_sq      sum of g^2

however many are asked for, from one read of the lists. Tensors may have any shape, dtype (float32,
float64, bfloat16, float16) and order in memory; where the order differs between a layer's two, a
copy is made. ``None`` in place of a gradient means zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sigeo_ext._kinds import named_arguments
from sigeo_ext._lists import OptionalTensorList, TensorList
from sigeo_ext.saliency import op
from sigeo_ext.saliency.reference import COLUMNS

__all__ = ["COLUMNS", "sums"]


@named_arguments("saliency.sums")
def sums(
    weights: TensorList, gradients: OptionalTensorList = (), *, want: Sequence[str]
) -> dict[str, Tensor]:
    """Reduce each layer's weights and gradient to a few sums. Differentiable.

    Equivalent to, for ``want=["abs_product"]``::

        torch.stack([(w.double() * g.double()).abs().sum() for w, g in zip(weights, gradients)])

    with 8 bytes read a float32 coordinate and nothing written. ``log_abs_product`` neither
    overflows nor vanishes, however large or small the products; it is -inf where all are 0.

    Args:
        weights: One tensor a layer.
        gradients: As many; may be left out for ``weight_sq`` alone. Gradients that require
            gradients must not have None among them.
        want: Names of `COLUMNS`, each once.

    Returns:
        ``{name: [layers]}`` in the order of ``want``, float64.

    Raises:
        ValueError: No name, an unknown one, or one twice.
        RuntimeError: Lists of different lengths, or a pair that does not fit together.
    """
    names = [want] if isinstance(want, str) else list(want)
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not names or len(set(names)) < len(names):
        got = ", ".join(names) or "none"
        message = f"want must be some of {', '.join(COLUMNS)}, each once, got {got}"
        raise ValueError(f"saliency.sums: {message}")
    columns = sorted(names, key=COLUMNS.index)
    table = op.saliency_sums(weights, gradients, sum(1 << COLUMNS.index(n) for n in names))
    found = dict(zip(columns, table.unbind(1), strict=True))
    return {name: found[name] for name in names}
