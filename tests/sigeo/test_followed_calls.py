"""`capture` on calls in unusual spellings: they are what the usual ones are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function


def model_of(middle) -> nn.Module:
    torch.manual_seed(0)
    return Function(
        lambda m, x: m.out(middle(m, m.body(x)).tanh()),
        body=nn.Linear(4, 4),
        layer=nn.Linear(4, 4),
        p=nn.Parameter(torch.randn(4)),
        out=nn.Linear(4, CLASSES),
    ).double()


def labelled():
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 4, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def in_turn(*calls):
    """Methods that change a tensor in place, one after another, each with its arguments."""

    def run(m, z):
        z = z.clone()
        for name, *args in calls:
            getattr(z, name)(*args)
        return m.layer(z)

    return run


def into(function, whole, part=lambda out: out):
    """Something without gradients, written to the part of a tensor of zeros."""

    def run(m, z):
        out = z.new_zeros(len(z), *whole)
        function(z.detach(), out=part(out))
        return z + m.layer(out.flatten(1)[:, :4])

    return run


def pairs(z):
    """Two tokens of each sample, one under another."""
    return torch.stack([z, z.sin()], 1).view(-1, 4)


def all_but_one(m, z):
    z.unsqueeze_(1).transpose_(0, 1)
    return m.layer(z)[0]


CALLS = {
    "transpose_": in_turn(("transpose_", 0, 1), ("swapaxes_", 0, 1)),
    "t_": in_turn(("t_",), ("t_",)),
    "unsqueeze_": in_turn(("unsqueeze_", 0), ("unsqueeze_", -1), ("squeeze_", 0), ("squeeze_", -1)),
    "samples in dimension 1": all_but_one,
    "fill_": lambda m, z: m.layer(z * torch.empty_like(z).fill_(2.0)),
    "zero_": lambda m, z: m.layer(z + torch.empty_like(z).zero_()),
    "index_fill": lambda m, z: m.layer(z.index_fill(1, torch.tensor([0, 2]), 1.0)),
    "entries of the samples' choice": lambda m, z: (z.__setitem__(z > 0, 1.0), z * m.p)[1],
    "samples of their own choice": lambda m, z: (z.__setitem__(z[:, 0] > 0, 1.0), z * m.p)[1],
    "masked_fill_ of a part": lambda m, z: (z[:, :2].masked_fill_(z[:, 1:3] > 0, 1.0), z * m.p)[1],
    "out=": into(torch.exp, (4,)),
    "out=, a view": into(torch.exp, (2, 4), lambda out: out[:, 0]),
    "out=, of a layer's function": into(lambda z, out: torch.mul(z, 2.0, out=out), (4,)),
    "mul, named": lambda m, z: torch.mul(z, other=m.p) + torch.mul(input=m.p, other=z),
    "add, named": lambda m, z: torch.add(input=z, other=m.p),
    "matmul, named": lambda m, z: torch.matmul(input=z, other=m.layer.weight),
    "addmm": lambda m, z: torch.addmm(m.layer.bias, z, m.layer.weight),
    "addmm, a method": lambda m, z: m.p.addmm(z, m.layer.weight.t()),
    "addmm of tokens": lambda m, z: m.p.addmm(pairs(z), m.layer.weight).view(-1, 2, 4).sum(1),
    "addmm, no bias": lambda m, z: torch.addmm(torch.ones(4).to(z), z, m.layer.weight),
    "contiguous": lambda m, z: F.linear(z, m.layer.weight.contiguous()),
    "to": lambda m, z: F.linear(z, m.layer.weight.to(z)) * m.p.to(torch.float64),
    "double": lambda m, z: z * m.p.double(),
    "type_as": lambda m, z: z * m.p.type_as(z),
    "requires_grad_": lambda m, z: z * m.p.requires_grad_(),
    "view_as": lambda m, z: F.linear(z, m.layer.weight.view_as(m.layer.weight)),
    "dropout in eval": lambda m, z: z * F.dropout(m.p, 0.5, training=False),
    "repeat": lambda m, z: m.layer(z.repeat(2, 1, 3)[..., 4:8].movedim(1, 0)).mean(1),
    "repeat, of the samples": lambda m, z: m.layer(z.repeat(2, 1)).view(2, -1, 4).sum(0),
    "sparse constant": lambda m, z: m.layer((torch.eye(4).double().to_sparse() @ z.t()).t()),
    "Fourier, padded": lambda m, z: m.layer(torch.fft.irfft(torch.fft.rfft(z, n=8))[:, :4]),
    "unfold": lambda m, z: m.layer(z.unfold(1, 2, 2).flatten(1)),
    "padded by nothing": lambda m, z: m.layer(F.pad(z[None], (1, 0, 0, 0, 0, 1))[0, :, :4]),
    "times expanded": lambda m, z: z * m.p.expand_as(z),
    "times broadcast": lambda m, z: torch.broadcast_to(m.p, z.shape) * z,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_followed_however_they_are_written(name):
    x, labels = labelled()
    stats = check(model_of(CALLS[name]), (x,), labels)
    assert "ran again" not in repr(stats)


def test_biases_alone_are_measured_by_their_layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 4, 2), nn.Tanh(), nn.ConvTranspose1d(4, 2, 2), nn.Flatten(),
        nn.Linear(10, CLASSES),
    ).double()  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    x = torch.randn(SAMPLES, 3, 5, dtype=torch.float64)
    stats = check(model, (x,), torch.arange(SAMPLES) % CLASSES)
    assert len(stats.keys()) == 3
    assert "ran again" not in repr(stats)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda m, z: m.layer(z.index_fill(0, torch.tensor([1]), 0.0)), "along the samples"),
        (lambda m, z: m.layer(z.detach().resize_(SAMPLES, 4)), "resize_"),
        (
            lambda m, z: m.layer(z) * len(torch.where(z > 0)[0]) + z[torch.where(z > 9)].sum(),
            "nonz",
        ),
        (into(lambda z, out: torch.mul(z[1:], 2.0, out=out), (4,), lambda o: o[1:]), "part of the"),
    ],
    ids=["index_fill", "resize_", "where", "out="],
)
def test_the_reason_of_a_refusal_is_the_true_one(middle, reason):
    model, (x, labels) = model_of(middle), labelled()
    with pytest.raises(InputError, match=reason), capture(model):
        F.cross_entropy(model(x), labels).backward()


def test_a_parameter_that_was_handed_back_keeps_no_note_of_it():
    model, (x, labels) = model_of(CALLS["to"]), labelled()
    before = dict(vars(model.p))
    with capture(model):
        F.cross_entropy(model(x), labels).backward()
    assert vars(model.p) == before
