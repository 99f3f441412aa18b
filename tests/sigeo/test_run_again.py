"""What modules that run again for each unit hold meanwhile."""

from __future__ import annotations

import torch
from torch import nn

from sigeo.capture import capture
from sigeo.capture.samples.fallback import Fallback
from tests.sigeo.sample_loop import SAMPLES, check


class Repeated(nn.Module):
    """A recurrent layer that is called several times."""

    def __init__(self, calls):
        super().__init__()
        self.cell, self.calls = nn.LSTM(4, 4, batch_first=True), calls

    def forward(self, x):
        for _ in range(self.calls):
            x = self.cell(x)[0]
        return x[:, -1]


def test_all_calls_together_hold_at_most_half_of_max_bytes(monkeypatch):
    torch.manual_seed(0)
    model = Repeated(4).double()
    x = torch.randn(SAMPLES, 3, 4, dtype=torch.float64)
    made: list[Fallback] = []
    peak = 0
    of, unit_gradients = Fallback.of.__func__, Fallback.unit_gradients

    def noted(cls, *args):
        made.append(of(cls, *args))
        return made[-1]

    def watched(fallback, name, units):
        nonlocal peak
        found = unit_gradients(fallback, name, units)
        peak = max(peak, sum(g.nbytes for one in made for g in one.held.values()))
        return found

    monkeypatch.setattr(Fallback, "of", classmethod(noted))
    monkeypatch.setattr(Fallback, "unit_gradients", watched)
    of_one_call = SAMPLES * sum(p.nbytes for p in model.parameters())
    check(model, (x,), torch.arange(SAMPLES) % 4, max_bytes=4 * of_one_call)
    assert [one.holds for one in made] == [True, True, False, False]
    assert 0 < peak <= 2 * of_one_call


def test_nothing_is_held_when_the_pass_has_ended(monkeypatch):
    torch.manual_seed(0)
    model, x = Repeated(2), torch.randn(SAMPLES, 3, 4)
    made: list[Fallback] = []
    of = Fallback.of.__func__

    def noted(cls, *args):
        made.append(of(cls, *args))
        return made[-1]

    monkeypatch.setattr(Fallback, "of", classmethod(noted))
    gram_in_blocks = 8 * SAMPLES * max(p.numel() for p in model.parameters())
    with capture(model, {"gram", "sq_sum"}, max_bytes=4 * gram_in_blocks):
        model(x).square().mean().backward()
    assert any(one.holds for one in made)
    assert not any(one.held for one in made)
