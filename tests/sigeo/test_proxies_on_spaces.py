"""Proxies that run the model themselves, on the networks of every space and in a ranking."""

from __future__ import annotations

import pytest
import torch

from sigeo import data, proxies, score, score_many, spaces
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.rank import rank
from sigeo.store import RunStore
from tests.sigeo.elastic_spaces import NAMES, archs_of, space, supernet
from tests.sigeo.test_many import cells
from tests.sigeo.test_many import supernet as cell_supernet

AZ_NAS = ("az_expressivity", "az_progressivity", "az_trainability")
PROXIES = ("jacov", "epe_nas", "fisher", "zen", "meco", *AZ_NAS)
DIGITS = data.load("digits")
EXCEPT = {
    "mlp": ("jacov", "epe_nas", "meco", *AZ_NAS),
    "transformer": ("meco", *AZ_NAS),
}
"""Not finite: narrow perceptrons, dead for some sample; networks without maps, or of one size."""


def made(name):
    """A supernet and a few of its architectures."""
    if name == "nasbench201":
        return cell_supernet(), cells(3)
    chosen = space(name)
    return supernet(chosen, torch.float32), archs_of(chosen, 3)


@pytest.mark.parametrize("name", ["nasbench201", *NAMES])
def test_scores_of_many_equal_each_subnet_alone_and_the_supernet_stays(name):
    net, archs = made(name)
    batches = [DIGITS.batch(DIGITS.order(0)[:24])]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    many = score_many(net, archs, batches, PROXIES)
    assert len(many) == len(archs)
    for arch, scores in zip(archs, many, strict=True):
        assert scores == score(net.subnet(arch), batches, PROXIES)
    finite = {p: [scores[p].value for scores in many if scores[p].finite] for p in PROXIES}
    assert all(len(set(finite[p])) > 2 for p in PROXIES if p not in EXCEPT.get(name, ()))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_network_without_a_path_is_not_finite_where_nothing_reaches_the_input():
    net = cell_supernet()
    disconnected = cells(0)[0]
    scores = score(net.subnet(disconnected), [DIGITS.batch(DIGITS.order(0)[:24])], PROXIES)
    for name in ("jacov", "epe_nas"):
        assert "samples have a constant gradient" in scores[name].notes[0]
    assert scores["zen"].notes[0] == "the features are 0 or beyond their dtype"
    assert scores["fisher"].finite


def test_a_ranking_on_digits_gives_the_scores_of_each_network(tmp_path):
    small = spaces.get("nasbench201", spaces.InputShape(1, 8, 10), channels=4, cells=1)
    archs = cells(4)
    chosen = tuple(proxies.get(name) for name in PROXIES)
    networks = Networks(small, DIGITS, Protocol(chosen, batches=1, batch_size=32), folder=tmp_path)
    with RunStore(tmp_path / "run.sqlite", networks.settings()) as store:
        rows = rank(networks, archs, store)
        again = rank(networks, archs, store)
    assert [row.scores for row in rows] == [row.scores for row in again]
    order = [row.scores["jacov"] for row in rows]
    finite = [value for value in order if value is not None]
    assert finite == sorted(finite, reverse=True) and order[len(finite) :] == [None]
    batches = [DIGITS.batch(DIGITS.order(0)[:32])]
    for row in rows:
        alone = score(
            small.build(small.representative(small.parse(row.arch)), seed=0), batches, PROXIES
        )
        for name, value in row.scores.items():
            assert (value is not None) == alone[name].finite
            assert value is None or value == pytest.approx(alone[name].value, rel=1e-4), name
