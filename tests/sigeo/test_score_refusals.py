"""Which proxies and choices refusals of `score` and of the captures behind it name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.capture import Request, fisher_trace, gradient_statistics, ntk, select
from sigeo.proxies import OnBatch, Proxy

SAMPLES, CLASSES = 6, 4
Y = torch.arange(SAMPLES) % CLASSES


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        x = self.first(x)
        return self.second(x - x.mean(0))


class NoTangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, d):
        return d * 2


class Doubling(Mixing):
    def forward(self, x):
        return self.second(NoTangent.apply(self.first(x)))


ROWS = [(torch.randn(SAMPLES, 4), Y)] * 3
MIXED = (
    "parameter second.weight has no per-sample gradient here: "
    "a reduction over the samples mixes the samples"
)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["params", "fisher_trace", "zico", "diag_fisher"], f"fisher_trace, diag_fisher: {MIXED}"),
        (["params", "ntk_cond"], f"ntk_cond: {MIXED}"),
    ],
)
def test_a_refusal_names_the_proxies_that_asked(names, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        sigeo.score(Mixing(), ROWS, names)


def test_a_refusal_of_forward_derivatives_names_the_preset_that_needs_them():
    with pytest.raises(InputError, match=r"^sigeo_paper: model: .*jvp"):
        sigeo.score(Doubling(), ROWS, ["zico", "sigeo_paper", "snip"])
    with pytest.raises(InputError, match=r"^model: .*jvp"):
        gradient_statistics(Doubling(), ROWS, requests=[Request(samples=True)])


def test_a_refusal_of_a_proxy_of_ones_own_is_named():
    def refuse(model, inputs, labels, loss_fn):
        raise InputError("inputs: expected a song")

    with pytest.raises(InputError, match="^song: inputs: expected a song$"):
        sigeo.score(Mixing(), ROWS, [Proxy("song", OnBatch(refuse), "here", "forward")])


@pytest.mark.parametrize("function", [fisher_trace, lambda model, batches: ntk(model, ROWS[0][0])])
def test_functions_without_the_argument_do_not_advise_it(function):
    with pytest.raises(InputError, match=f"^{MIXED}$"):
        function(Mixing(), ROWS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_norm": "nonsense"},
            "batch_norm: must be refuse, frozen, per_unit, contribution or coupled, got 'nonsense'",
        ),
        (
            {"batch_norm": "coupled", "params": "convolutions"},
            'params: must be "all" or "layers", got \'convolutions\'',
        ),
    ],
)
def test_choices_of_the_tangent_kernel(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        ntk(Mixing(), ROWS[0][0], **options)


def test_a_selection_that_there_is_not():
    with pytest.raises(InputError, match="^selection must be one of layers, all, got 'conv'$"):
        select(Mixing(), "conv")
