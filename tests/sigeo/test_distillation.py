"""Distillation: hand-computed losses, gradients against plain autograd, resumed trainings."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sigeo import InputError
from sigeo.spaces import Product
from sigeo.supernet import (
    Budget,
    Fair,
    InPlaceDistillation,
    MutualDistillation,
    Teacher,
    Uniform,
    divergence,
    mutual_distillation,
)
from tests.sigeo.training import SPACE, assert_resumes, batches, trained

PATHS = [SPACE.at(index) for index in (9558, 1462, 8001)]


def logits_of(*probabilities):
    """Rows of probabilities as logits, off by a constant."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + 3.0


def test_mutual_distillation_by_hand():
    child = logits_of([0.5, 0.5], [0.25, 0.75]).requires_grad_()
    parent = logits_of([0.75, 0.25], [0.25, 0.75]).requires_grad_()
    first, second = logits_of([0.5, 0.5], [0.5, 0.5]), logits_of([0.9, 0.1], [0.25, 0.75])
    labels = torch.tensor([0, 1])
    ln = math.log
    ce = (-ln(0.5) - ln(0.75)) / 2
    of_parent = (0.75 * ln(0.75 / 0.5) + 0.25 * ln(0.25 / 0.5)) / 2
    of_first = (0.5 * ln(0.5 / 0.25) + 0.5 * ln(0.5 / 0.75)) / 2
    of_second = (0.9 * ln(0.9 / 0.5) + 0.1 * ln(0.1 / 0.5)) / 2

    def loss(**teachers):
        return mutual_distillation(child, labels, **teachers).item()

    assert loss() == pytest.approx(ce)
    assert loss(parent=parent) == pytest.approx(ce + of_parent)
    both = [first, second]
    assert loss(siblings=both) == pytest.approx(ce + (of_first + of_second) / 2)
    total = mutual_distillation(child, labels, parent=parent, siblings=both)
    assert total.item() == pytest.approx(ce + of_parent + (of_first + of_second) / 2)
    total.backward()
    assert parent.grad is None and child.grad is not None


def test_the_gradient_of_a_divergence_is_the_difference_of_the_predictions():
    teacher = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = teacher.flip(0).requires_grad_()
    divergence(teacher, student).backward()
    expected = (student.detach().softmax(1) - teacher.softmax(1)) / 5
    torch.testing.assert_close(student.grad, expected)
    student.grad = None
    divergence(teacher, student, temperature=4.0).backward()
    expected = 4 * ((student.detach() / 4).softmax(1) - (teacher / 4).softmax(1)) / 5
    torch.testing.assert_close(student.grad, expected)
    assert divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


def gradients(supernet):
    return {n: p.grad for n, p in supernet.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_mutual_distillation_of_supernets_adds_the_gradients_of_its_loss():
    """Parent and child run the same path, the sibling one of its own."""
    (batch,) = batches(1)
    parent, sibling = SPACE.supernet(seed=1), SPACE.supernet(seed=2)
    objective = MutualDistillation(
        Teacher(parent), [Teacher(sibling, lambda path, step: PATHS[step % 3])]
    )
    found, plain = SPACE.supernet(seed=0), SPACE.supernet(seed=0)
    loss = objective(found, PATHS[:2], batch, 2)
    total = 0.0
    for path in PATHS[:2]:
        logits = plain(batch[0], path)
        terms = [parent(batch[0], path), sibling(batch[0], PATHS[2])]
        one = F.cross_entropy(logits, batch[1])
        for teacher in terms:
            p = teacher.detach().softmax(1)
            one = one + (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
        one.backward()
        total += one.item() / 2
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert_close(gradients(found), gradients(plain))
    assert not gradients(parent) and not gradients(sibling)
    assert objective.forwards(2) == 4


def test_running_statistics_of_teachers_stay():
    parent, sibling = (SPACE.supernet(seed=seed, track=True) for seed in (1, 2))
    before = [{n: b.clone() for n, b in net.named_buffers()} for net in (parent, sibling)]
    objective = MutualDistillation(Teacher(parent), [Teacher(sibling, lambda path, step: PATHS[0])])
    student = SPACE.supernet(seed=3, track=True)
    objective(student, PATHS[:2], batches()[0], 0)
    for net, kept in zip((parent, sibling), before, strict=True):
        assert kept and all(torch.equal(b, kept[n]) for n, b in net.named_buffers())
    assert int(student.stem.norm.num_batches_tracked) == 2


def test_in_place_distillation_teaches_all_but_the_first():
    (batch,) = batches(1)
    found, plain = SPACE.supernet(seed=0), SPACE.supernet(seed=0)
    loss = InPlaceDistillation(label_smoothing=0.1)(found, PATHS, batch, 0)
    first = plain(batch[0], PATHS[0])
    expected = F.cross_entropy(first, batch[1], label_smoothing=0.1)
    p = first.detach().softmax(1)
    total = expected
    for path in PATHS[1:]:
        total = total + (p * (p.log() - plain(batch[0], path).log_softmax(1))).sum(1).mean()
    total.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients(found), gradients(plain))


def siblings():
    region = Product.whole(SPACE).limited(0, (1, 2))
    sibling = Teacher.of_region(SPACE.supernet(seed=2), SPACE, region, seed=5)
    drawn = {sibling.path(None, step) for step in range(20)}
    assert len(drawn) > 10 and all(arch in region for arch in drawn)
    return MutualDistillation(Teacher(SPACE.supernet(seed=1)), [sibling])


def dropping():
    return MutualDistillation(Teacher(SPACE.supernet(seed=1, path_dropout=0.5, dropout=0.5)))


@pytest.mark.parametrize(
    ("make", "budget"),
    [
        (lambda: (Uniform(SPACE, seed=3, paths=2), siblings()), Budget(160, 320)),
        (lambda: (Uniform(SPACE, seed=3, paths=2), dropping()), Budget(160, 160)),
        (lambda: (Fair(SPACE, seed=3), InPlaceDistillation()), Budget(400, 0)),
    ],
    ids=["mutual", "teacher with dropout", "in place"],
)
def test_budgets_and_resumed_trainings(make, budget, tmp_path, monkeypatch):
    def arguments():
        sampler, objective = make()
        return {"sampler": sampler, "objective": objective}

    assert trained(**arguments())[1] == budget
    assert_resumes(arguments, tmp_path, monkeypatch)


def test_bad_settings():
    with pytest.raises(InputError, match="expected a parent or siblings, got neither"):
        MutualDistillation()
    with pytest.raises(InputError, match="temperature must be above 0, got 0"):
        InPlaceDistillation(temperature=0)
    with pytest.raises(InputError, match="label_smoothing: must be from 0 to 1, got 2"):
        InPlaceDistillation(label_smoothing=2)
    with pytest.raises(InputError, match="label_smoothing: must be from 0 to 1, got 2"):
        MutualDistillation(Teacher(SPACE.supernet()), label_smoothing=2)


def test_dropout_of_teachers_is_theirs_and_leaves_a_student_that_teaches_itself_alone():
    pictures, labels = batches()[0]
    teachers = [Teacher(SPACE.supernet(seed=1, dropout=0.5)) for _ in range(3)]
    student = SPACE.supernet(seed=0, dropout=0.5)
    student.start_step(3, 1000, 7)
    itself = Teacher(student, lambda path, step: PATHS[1])
    objective = MutualDistillation(teachers[0], [*teachers[1:], itself])
    objective(student, PATHS[:1], (pictures, labels), 3)
    assert (student.dropout._step, student.dropout._steps) == (3, 1000)
    outputs = []
    for place, teacher in enumerate(teachers):
        teacher.begin(3, place)
        outputs.append(teacher.logits(pictures, PATHS[0], 3))
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])
    teachers[0].begin(3, 0)
    assert torch.equal(teachers[0].logits(pictures, PATHS[0], 3), outputs[0])
