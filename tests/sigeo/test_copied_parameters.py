"""`capture` on constants looked up in a table, and parameters repeated: no module runs again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.test_unseen_uses import Hidden
from tests.sigeo.zoo import CLASSES, Function

T = 4


def model_of(run) -> nn.Module:
    torch.manual_seed(0)
    return Function(
        lambda m, x: m.out(run(m, m.body(x)).tanh().mean(1)),
        body=nn.Linear(3, 6),
        table=nn.Embedding(9, 6),
        padded=nn.Embedding(9, 6, padding_idx=0),
        tokens=nn.Parameter(torch.randn(1, 2, 6)),
        layer=nn.Linear(6, 6),
        out=nn.Linear(6, CLASSES),
    ).double()


def labelled():
    torch.manual_seed(1)
    return torch.randn(SAMPLES, T, 3, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def in_a_checkpoint(m, z):
    return checkpoint(lambda z: m.layer(z + m.table(torch.arange(T))), z, use_reentrant=False)


SHOWN = {
    "positions": lambda m, z: z + m.table(torch.arange(T)),
    "positions first": lambda m, z: m.table(torch.arange(T)[None]) + z,
    "from the second on": lambda m, z: z - m.padded(torch.arange(1, T + 1)).unsqueeze(0),
    "every second": lambda m, z: z + m.table(torch.arange(0, 2 * T, 2))[None],
    "one for all tokens": lambda m, z: z + m.table(torch.zeros(len(z), T, dtype=torch.long)),
    "positions of each sample": lambda m, z: z + m.table(torch.arange(T).expand(len(z), -1)),
    "a single row": lambda m, z: z + m.table(torch.tensor(5)) + m.table(torch.tensor([7])),
    "factors": lambda m, z: z * m.table(torch.arange(T)),
    "twice": lambda m, z: (z + m.table(torch.arange(T))) * m.table(torch.arange(T)),
    "beside a look-up": lambda m, z: m.table((z[..., 0] > 0).long()) + m.table(torch.arange(T)),
    "in a checkpoint": in_a_checkpoint,
    "repeated": lambda m, z: torch.cat([m.tokens.repeat(len(z), 1, 1), z], 1),
    "repeated and added": lambda m, z: z + m.tokens[:, :1].repeat(len(z), T, 1),
}
OTHERWISE = {
    "backwards": lambda m, z: z + m.table(torch.arange(T).flip(0)),
    "with padding": lambda m, z: z + m.padded(torch.arange(T)),
    "written to": lambda m, z: z + m.table(torch.arange(T)).mul_(2.0),
    "through a function": lambda m, z: z + m.table(torch.arange(T)).tanh(),
    "through a layer": lambda m, z: z + m.layer(m.table(torch.arange(T))),
    "through a hidden function": lambda m, z: Hidden.apply(z, m.table(torch.tensor(3))).sum(
        1, keepdim=True
    ),
    "the samples' own": lambda m, z: z + m.table((z.sum(-1) > 0).long()),
    "tokens through a layer": lambda m, z: z + m.layer(m.tokens.repeat(len(z), 1, 1))[:, :1],
}


@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize("name", [*SHOWN, *OTHERWISE])
def test_copies_of_parameters_are_measured(name, grads):
    x, labels = labelled()
    stats = check(model_of((SHOWN | OTHERWISE)[name]), (x,), labels, grads=grads)
    assert name in OTHERWISE or "ran again" not in repr(stats)


def test_a_copy_that_a_hidden_function_takes_beside_a_layer_is_not_passed_over():
    script = torch.jit.script(_scripted)

    def run(m, z):
        positions = m.table(torch.arange(T))
        return (z + positions) * script(positions)

    x, labels = labelled()
    check(model_of(run), (x,), labels)


def _scripted(w):
    return w.exp() * 0.5


def test_a_copy_of_an_earlier_capture_is_none_of_this_one():
    kept = []

    def run(m, z):
        kept.append(m.table(torch.arange(T)))
        return z + kept[0]

    model, (x, labels) = model_of(run), labelled()
    with capture(model, {"sum"}) as first:
        F.cross_entropy(model(x), labels).backward(retain_graph=True)
    with capture(model, {"sum"}) as second:
        F.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(second["table.weight"].sum, first["table.weight"].sum)
