"""EPE-NAS: the correlations of jacov inside each class.

Lopes et al., "EPE-NAS: Efficient Performance Estimation Without Training for Neural Architecture
Search", ICANN 2021, section 3, and the published code. For a class c of two or more samples, s_c is
the sum of log(|r| + 1e-5) over the correlations r of its rows, all pairs in both orders. With up to
100 classes the score is the sum of |s_c|; beyond, with s_c divided by the samples of the class, the
sum of |s_c - s_d| over all pairs of classes in both orders, divided by the number of classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sigeo.capture import LossFunction
from sigeo.capture.losses import IGNORED, check_classes
from sigeo.errors import InputError
from sigeo.proxies.base import OnBatch, Outcome, Proxy
from sigeo.proxies.correlations import correlations
from sigeo.proxies.jacov import K, input_gradients, uncorrelated
from sigeo.proxies.registry import register

MOST_ADDED = 100
"""Classes that are added up; more are compared with each other."""


def _classes(labels: Any, samples: int) -> Tensor:
    """The class of each sample, [B]; the most probable one where labels are probabilities.

    Raises:
        InputError: Labels are no classes of the samples.
    """
    if isinstance(labels, Tensor) and len(labels.shape[:1]) and len(labels) == samples:
        if labels.dim() == 2 and labels.shape[1] > 1:
            return labels.argmax(1)
        if labels.dim() == 1 and not labels.is_floating_point():
            return labels
    came = type(labels).__name__
    if isinstance(labels, Tensor):
        came = f"{labels.dtype} {list(labels.shape)}"
    raise InputError(f"epe_nas: needs the class of each of {samples} samples, got {came}")


def _epe_nas(model: nn.Module, inputs: Any, labels: Any, loss_fn: LossFunction) -> Outcome:
    rows, output = input_gradients(model, inputs, "epe_nas")
    classes = _classes(labels, len(rows))
    check_classes(output, classes)
    groups = [classes == c for c in classes[classes != IGNORED].unique()]
    groups = [group for group in groups if group.sum() > 1]
    if not groups:
        raise InputError("epe_nas: needs two samples of one class in the first batch, got none")
    counted = torch.stack(groups).any(0)
    matrix, constant = correlations(rows)
    outcome = uncorrelated(rows[counted], constant[counted], output)
    if outcome is not None:
        return outcome
    sums = torch.stack([(matrix[group][:, group].abs() + K).log().sum() for group in groups])
    first = next(t for t in tree_leaves(output) if isinstance(t, Tensor))
    if first.dim() > 1 and first.shape[1] > MOST_ADDED:
        means = sums / torch.stack(groups).sum(1)
        score = (means[:, None] - means).abs().sum() / len(groups)
    else:
        score = sums.abs().sum()
    return Outcome(float(score), {"classes": float(len(groups))})


@register("epe_nas")
def epe_nas() -> Proxy:
    """How unlike the gradients with respect to the inputs are inside each class."""
    return Proxy(
        name="epe_nas",
        measurement=OnBatch(_epe_nas),
        source="Lopes et al., ICANN 2021 (arXiv 2102.08099), section 3, and published code",
        cost="backward",
        labels=True,
    )
