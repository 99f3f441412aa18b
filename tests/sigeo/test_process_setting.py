"""Settings of the whole process, where bodies in several threads overlap."""

from __future__ import annotations

import threading

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.autograd import forward_ad

from sigeo import score
from sigeo.capture import capture


def settings():
    """What captures and proxies change for a while."""
    cuda, backends = torch.backends.cuda, torch.backends
    return (
        torch._dynamo.eval_frame._stance.stance,
        (cuda.math_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        (backends.mkldnn.enabled, backends.cudnn.enabled, backends.mha.get_fastpath_enabled()),
    )


class Interrupted(nn.Module):
    """A rectified layer whose first call under other settings does something else before."""

    def __init__(self, before):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        self.usual, self.before = settings(), [before]

    def forward(self, x):
        if settings() != self.usual and self.before:
            self.before.pop()()
        return self.layers(x)


def captured(model, x, labels):
    with capture(model, {"sample_sq_norm"}) as stats:
        nn.functional.cross_entropy(model(x), labels).backward()
    return stats.sample_sq_norm


@pytest.mark.parametrize(
    "measure",
    [
        captured,
        lambda model, x, y: score(model, [(x, y)], ["flops"]),
        lambda model, x, y: score(model, [(x, y)], ["grasp"]),
        lambda model, x, y: score(model, [(x, y)], ["naswot"]),
        lambda model, x, y: score(model, [(x, y)], ["zen"]),
    ],
    ids=["capture", "flops", "grasp", "naswot", "zen"],
)
def test_one_that_ends_after_another_leaves_the_process_as_it_was(measure):
    before, given = settings(), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    reached = threading.Event()

    def outlive():
        reached.set()
        first.join(timeout=60)

    def begin_another():
        second.start()
        assert reached.wait(timeout=60)

    models = Interrupted(begin_another), Interrupted(outlive)
    first, second = (threading.Thread(target=measure, args=(model, *given)) for model in models)
    first.start()
    first.join()
    second.join()
    assert reached.is_set()
    assert settings() == before


def test_a_capture_sees_its_calls_while_another_thread_is_in_forward_mode():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    given = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    alone = captured(model, *given)
    entered, left = threading.Event(), threading.Event()

    def derive():
        with forward_ad.dual_level():
            entered.set()
            left.wait(timeout=60)

    other = threading.Thread(target=derive)
    other.start()
    assert entered.wait(timeout=60)
    try:
        assert torch.equal(captured(model, *given), alone)
    finally:
        left.set()
        other.join()
