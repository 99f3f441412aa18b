"""Captures and proxies in several threads, and in processes forked meanwhile."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.autograd import forward_ad

from sigeo import score
from sigeo.capture import capture, sample_inner_products
from sigeo.capture.process_setting import PLAIN_ATTENTION
from tests.sigeo.test_run_again import labelled, with_gain


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


class Looking(nn.Module):
    """Makes sparse and nested tensors of its weight's values on the way."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        rows = list(self.layer.weight.detach())
        with torch.no_grad():
            known = torch.eye(2).to_sparse() * 2, torch.nested.nested_tensor(rows) * 2
        return self.layer(x) + 0 * len(known)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype.*")
def test_a_capture_takes_sparse_and_nested_constants_in_forward_mode():
    model, given = Looking(), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    expected = captured(model, *given)
    with forward_ad.dual_level():
        assert torch.equal(captured(model, *given), expected)


def forked(function):
    """What a process ends with that is forked to call a function; it may not hang."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(timeout=60)
    if child.is_alive():
        child.kill()
    return child.exitcode


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_its_own_settings_and_not_those_of_other_threads():
    usual = settings()
    entered, left = threading.Event(), threading.Event()

    def need():
        with PLAIN_ATTENTION:
            entered.set()
            left.wait(timeout=60)

    def check():
        assert settings() == expected
        with PLAIN_ATTENTION:
            assert settings() == plain
        assert settings() == expected

    other = threading.Thread(target=need)
    other.start()
    assert entered.wait(timeout=60)
    try:
        plain, expected = settings(), usual
        assert plain != usual
        assert forked(check) == 0
        with PLAIN_ATTENTION:
            expected = plain
            assert forked(check) == 0
    finally:
        left.set()
        other.join()
    assert settings() == usual


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_process_may_be_forked_while_another_thread_is_in_forward_mode():
    entered = threading.Event()

    def before():
        entered.set()
        time.sleep(0.2)

    def measure(model):
        torch.set_num_threads(1)  # of those that a forked process would wait for
        x, labels = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        sample_inner_products(model, nn.functional.cross_entropy, x, labels)

    other = threading.Thread(target=measure, args=(Interrupted(before),))
    other.start()
    assert entered.wait(timeout=60)
    assert forked(lambda: measure(nn.Linear(3, 2))) == 0
    other.join()


def test_another_thread_may_draw_random_numbers_while_a_module_runs_again():
    draws = []

    def beside(z):
        if draws:
            other = threading.Thread(target=draws.pop(), args=(1,))
            other.start()
            other.join()
        return z

    model, (x, labels) = with_gain(beside).double(), labelled()
    with capture(model) as stats:
        loss = nn.functional.cross_entropy(model(x), labels)
        draws.append(torch.rand)
        loss.backward()
    assert not draws
    assert "gain.p" in stats.keys()  # noqa: SIM118
