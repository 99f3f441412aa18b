"""A space of two choices whose options pull one shared weight in known directions."""

from __future__ import annotations

import torch
from torch import nn

from sigeo.capture import Batches
from sigeo.spaces import Choice

SIGNS = (1.0, -1.0, 1.0, -1.0, 1.0)
"""Of the gradient that each option of the first choice gives the shared weight."""


class ToySpace:
    """Architectures are pairs of options; the second choice scales and changes no direction."""

    name = "toy"
    choices = (Choice("sign", tuple("abcde")), Choice("scale", ("one", "two")))
    size = 10

    def encode(self, arch):
        return arch

    def decode(self, codes):
        return tuple(codes)

    def sample(self, rng):
        return (rng.randrange(5), rng.randrange(2))

    def connected(self, arch):
        return True

    def at(self, index):
        return divmod(index, 2)

    def parse(self, text):
        return tuple(int(part) for part in text.split("-"))

    def describe(self):
        return {"name": self.name}

    def supernet(self, *, seed=0):
        return ToySupernet(seed)


class ToySupernet(nn.Module):
    """Logits are the options' signs times a shared linear layer, plus a layer of the option."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shared = nn.Parameter(0.1 * torch.randn(3, 4, generator=generator))
        self.own = nn.ParameterList(
            [nn.Parameter(0.01 * torch.randn(3, 4, generator=generator)) for _ in SIGNS]
        )

    def forward(self, x, arch):
        sign, scale = arch
        return SIGNS[sign] * (1 + scale) * x @ self.shared.T + x @ self.own[sign].T

    def choice_weights(self, place):
        return frozenset(f"own.{i}" for i in range(5)) if place == 0 else frozenset()

    def end_weights(self):
        return frozenset()

    def stack(self, archs, *, own=False):
        shared = nn.Parameter(self.shared.detach().expand(len(archs), 3, 4).clone())
        rows = {"shared": shared}
        members = {"shared": tuple(range(len(archs)))}
        for option in sorted({sign for sign, _ in archs}):
            users = tuple(i for i, (sign, _) in enumerate(archs) if sign == option)
            one = self.own[option].detach().expand(len(users), 3, 4).clone()
            rows[f"own.{option}"], members[f"own.{option}"] = nn.Parameter(one), users

        def run(x):
            outputs = []
            for i, (sign, scale) in enumerate(archs):
                mine = rows[f"own.{sign}"][members[f"own.{sign}"].index(i)]
                outputs.append(SIGNS[sign] * (1 + scale) * x @ shared[i].T + x @ mine.T)
            return torch.stack(outputs)

        run.weights, run.members, run.layers = rows, members, frozenset(rows)
        return run


def toy_batches(count=4, size=32):
    """Batches with one direction of inputs for each class."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(count):
        labels = torch.randint(3, (size,), generator=generator)
        noise = 0.1 * torch.randn(size, 4, generator=generator)
        pairs.append((torch.eye(4)[labels] + noise, labels))
    return Batches(pairs, nn.Identity(), torch.device("cpu"))
