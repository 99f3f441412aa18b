"""`capture` where a part of the model is checkpointed: the repeated pass is taken as the first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function


def model_of(run) -> nn.Module:
    """A model with a part that is checkpointed."""
    torch.manual_seed(0)
    return Function(
        lambda m, x: m.out(checkpoint(lambda z: run(m, z), m.body(x), use_reentrant=False)),
        body=nn.Linear(4, 6),
        layer=nn.Linear(6, 6),
        norm=nn.LayerNorm(6),
        biases=nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 6)),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        queries=nn.Parameter(torch.randn(1, 2, 6)),
        out=nn.Linear(6, CLASSES),
    ).double()


def labelled():
    torch.manual_seed(1)
    return (torch.randn(SAMPLES, 4, dtype=torch.float64),), torch.arange(SAMPLES) % CLASSES


def places() -> torch.Tensor:
    return torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)


def nested(m, z):
    again = checkpoint(lambda z: m.layer(z.tanh()), m.layer(z), use_reentrant=False)
    return again.tanh() * m.queries[0, 0]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, z: (z[:, None] * m.biases(places())).sum(1),  # as Swin V2 makes its biases
        lambda m, z: m.attention(m.queries.expand(len(z), -1, -1), z[:, None], z[:, None])[0][:, 0],
        lambda m, z: m.norm(m.layer(z.t().contiguous().t()[:, None])[:, 0]),
        nested,
    ],
    ids=["of constants", "of parameters", "of samples", "nested"],
)
def test_layers_in_a_checkpoint_equal_the_loop(run):
    check(model_of(run), *labelled())


@pytest.mark.parametrize(
    "run",
    [
        lambda m, z: m.layer(z - z.mean(0)),
        lambda m, z: m.norm(z - z.mean(0)),
        lambda m, z: (z - z.mean(0)) * m.queries[0, 0],
    ],
    ids=["layer", "norm", "bare parameter"],
)
def test_what_is_left_out_is_left_out_of_the_repeated_pass(run):
    model, ((x,), labels) = model_of(run), labelled()
    F.cross_entropy(model(x), labels).backward()
    plain = model.body.weight.grad.clone()
    model.zero_grad()
    with capture(model, strict=False) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert "out.weight" in stats.unsupported
    assert torch.allclose(model.body.weight.grad, plain, rtol=1e-12)


def test_samples_in_the_second_dimension_of_what_a_nested_checkpoint_is_handed():
    def inner(m, z):
        return m.layer((z + m.queries[0, 0]).transpose(0, 1).flatten(1))

    def outer(m, z):
        handed = (z[:, None] * m.queries).transpose(0, 1)  # [tokens, samples, 6]
        return checkpoint(lambda z: inner(m, z), handed, use_reentrant=False)

    model = model_of(outer)
    model.layer = nn.Linear(12, 6).double()
    check(model, *labelled())
