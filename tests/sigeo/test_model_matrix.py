"""`capture` on the model matrix: right on every row whose samples are apart, else refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.matrix import MATRIX, made
from tests.sigeo.sample_loop import EVERYTHING, assert_statistics, dense, error, loop

SAMPLES = 6
APART = [name for name, row in MATRIX.items() if row.samples_are == "apart"]
COUPLED = [name for name, row in MATRIX.items() if row.samples_are == "coupled"]


def captured(model, inputs, labels, **options):
    with capture(model, EVERYTHING, **options) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    assert not stats.unsupported
    return stats


def assert_signs(stats, rows):
    """Where no sample's gradient is so small that rounding decides its sign."""
    largest = max(float(g.abs().max()) for g in rows.values())
    for name, g in rows.items():
        clear = ((g == 0) | (g.abs() > 1e-12 * largest)).all(0)
        assert torch.equal(dense(stats[name].sign_sum)[clear], g.sign().sum(0)[clear]), name


def assert_own_norms(stats, rows):
    """Each parameter's squared norms, one a sample."""
    for name, g in rows.items():
        assert error(stats[name].sq_norm, (g**2).flatten(1).sum(1)) <= 1e-10, name


def test_the_matrix_is_whole():
    assert len(APART) == 22
    assert COUPLED == ["bn_train", "bn_notrack", "bn_notrack_eval"]


@pytest.mark.parametrize("name", APART)
def test_rows_of_samples_apart_equal_the_loop(name):
    torch.manual_seed(0)
    model, inputs, labels = made(name, SAMPLES)
    torch.manual_seed(1)  # a number drawn for each sample is the same in batch and loop
    rows = loop(model, inputs, labels)
    torch.manual_seed(1)
    stats = captured(model, inputs, labels)
    assert_statistics(stats, rows, model)
    assert_signs(stats, rows)
    assert_own_norms(stats, rows)
    for parameter, g in rows.items():
        grad = model.get_parameter(parameter).grad
        assert error(torch.zeros_like(g[0]) if grad is None else grad, g.mean(0)) <= 1e-10


def test_drop_path_drops_some_samples_and_keeps_others():
    torch.manual_seed(0)
    model, inputs, labels = made("drop_path", SAMPLES)
    torch.manual_seed(1)
    g = loop(model, inputs, labels)["block.0.weight"].flatten(1)
    assert 0 < int((g == 0).all(1).sum()) < SAMPLES


@pytest.mark.parametrize("name", COUPLED)
def test_rows_of_coupled_samples_are_refused(name):
    model, inputs, _labels = made(name, SAMPLES)
    with (
        pytest.raises(InputError, match="batch norm uses the statistics of the batch"),
        capture(model, EVERYTHING),
    ):
        model(*inputs)


def test_frozen_statistics_equal_the_loop_in_evaluation():
    torch.manual_seed(0)
    model, inputs, labels = made("bn_train", SAMPLES)
    rows = loop(copy.deepcopy(model).eval(), inputs, labels)
    stats = captured(model, inputs, labels, batch_norm="frozen")
    assert_statistics(stats, rows, model)
    assert_signs(stats, rows)


@pytest.mark.parametrize("name", COUPLED[1:])
def test_frozen_statistics_need_running_ones(name):
    model, inputs, _labels = made(name, SAMPLES)
    with (
        pytest.raises(InputError, match="needs running statistics"),
        capture(model, EVERYTHING, batch_norm="frozen"),
    ):
        model(*inputs)


@pytest.mark.parametrize("unit", [1, 2, 3])
@pytest.mark.parametrize("name", COUPLED)
def test_statistics_of_each_unit_equal_a_loop_over_micro_batches(name, unit):
    torch.manual_seed(0)
    model, inputs, labels = made(name, SAMPLES)
    rows = []
    for begin in range(0, SAMPLES, unit):
        twin, part = copy.deepcopy(model), slice(begin, begin + unit)
        F.cross_entropy(twin(*(x[part] for x in inputs)), labels[part]).backward()
        rows.append({n: p.grad for n, p in twin.named_parameters()})
    stats = captured(model, inputs, labels, batch_norm="per_unit", unit=unit)
    stacked = {n: torch.stack([row[n] for row in rows]) for n in rows[0]}
    assert_statistics(stats, stacked, model)


@pytest.mark.parametrize("name", COUPLED)
def test_contributions_add_up_to_the_gradient_of_the_batch(name):
    torch.manual_seed(0)
    model, inputs, labels = made(name, SAMPLES)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(*inputs), labels).backward()
    stats = captured(model, inputs, labels, batch_norm="contribution")
    for parameter, other in twin.named_parameters():
        assert error(stats[parameter].sum / SAMPLES, other.grad) <= 1e-10, parameter
        assert error(model.get_parameter(parameter).grad, other.grad) <= 1e-10, parameter
