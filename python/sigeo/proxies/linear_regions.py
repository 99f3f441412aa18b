"""Linear regions: how many pieces of a ReLU network random inputs fall into.

Chen et al., "Neural Architecture Search on ImageNet in Four GPU Hours: A Theoretically Inspired
Perspective" (TE-NAS), ICLR 2021, section 3.1: the number of distinct activation codes, one bit for
every rectified value, over random inputs. As there, images are of 3 by 3 pixels and 3000 of them;
here they are standard normal and go through the network in one batch, in train mode. With wide or
deep networks every input is in a region of its own and nothing is told apart: the published count
is of copies with one channel. TE-NAS adds up the ranks of this and of ``ntk_cond``, see
`sigeo.tables.rank_sum`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sigeo.capture import rectifier_inputs
from sigeo.errors import InputError, lacks_memory
from sigeo.kinds import checked_seed
from sigeo.proxies.base import OnModel, Outcome, Proxy
from sigeo.proxies.distinct import count_rows, number_rows, sign_words
from sigeo.proxies.naswot import NO_RECTIFIER, NOT_FINITE
from sigeo.proxies.passes import normal
from sigeo.proxies.registry import register


def _drawn(inputs: Any, samples: int, size: int | None, seed: int) -> Any:
    """Standard normal inputs, like some in what they are made of.

    Raises:
        InputError: Some are not real numbers, such as tokens, or have no dimension of samples.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        if not like.is_floating_point() or like.dim() == 0:
            got = f"{str(like.dtype).removeprefix('torch.')} {list(like.shape)}"
            raise InputError(
                f"linear_regions: draws inputs [samples, ...] of real numbers, got {got}"
            )
        shape = list(like.shape[1:])
        if size is not None and len(shape) == 3:
            shape[1:] = [size, size]
        return normal([samples, *shape], generator).to(like.device, like.dtype)

    return tree_map_only(Tensor, draw, inputs)


@register("linear_regions")
def linear_regions(*, samples: int = 3000, size: int | None = 3, seed: int = 0) -> Proxy:
    """Number of linear regions among random inputs.

    Args:
        samples: How many inputs are drawn, the most that can be counted.
        size: Pixels of an image's side, where the network takes images [B, C, H, W]; None for those
            of the batch.
        seed: Of the inputs.

    Raises:
        InputError: No sample or no pixel, or ``seed`` is no whole number from 0 to 2^63 - 1.
    """
    if samples < 1:
        raise InputError(f"samples: must be at least 1, got {samples}")
    if size is not None and size < 1:
        raise InputError(f"size: must be at least 1 or None, got {size}")
    seed = checked_seed(seed)

    def function(model: nn.Module, inputs: Any) -> Outcome:
        numbers: Tensor | None = None

        def see(rectified: Tensor) -> None:
            nonlocal numbers
            numbers = number_rows(sign_words(rectified), numbers)

        drawn = _drawn(inputs, samples, size, seed)
        try:
            finite = rectifier_inputs(model, drawn, see)
        except (RuntimeError, ValueError, AssertionError) as error:  # too small for it, say
            if isinstance(error, InputError) or lacks_memory(error):
                raise
            what = "inputs like these" if size is None else f"images of {size} by {size}"
            reason = " ".join(str(error).split())[:200]
            return Outcome(math.nan, {}, (f"does not run on {what} (option size): {reason}",))
        if numbers is None or not finite:
            return Outcome(math.nan, {}, (NO_RECTIFIER if finite else NOT_FINITE,))
        regions = count_rows(numbers)
        every = f"each of the {samples} inputs is in a region of its own, there may be any number"
        return Outcome(float(regions), {}, (every,) if 1 < regions == samples else ())

    return Proxy(
        name="linear_regions",
        measurement=OnModel(function),
        source="Chen et al., ICLR 2021 (TE-NAS), section 3.1",
        cost="forward",
        whole_network=True,
        options={"samples": samples, "size": size, "seed": seed},
        images=lambda sizes: (0, samples),
    )
