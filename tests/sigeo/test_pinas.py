"""Cross-path learning: losses by hand, teachers on paths only, queues, and what is measured."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sigeo import InputError
from sigeo.data import Augmentation
from sigeo.supernet import (
    Budget,
    CrossPath,
    CrossPathContrast,
    Disjoint,
    MeanTeacher,
    ParameterShift,
    Uniform,
    classify,
    feature_shift,
    info_nce,
    project,
    train_supernet,
    used_parameters,
)
from tests.sigeo.elastic_spaces import batches as elastic_batches
from tests.sigeo.elastic_spaces import space as elastic_space
from tests.sigeo.elastic_spaces import supernet as elastic_supernet
from tests.sigeo.training import IMAGES, SPACE, assert_resumes, batches, source, trained, training

VIEWS = Augmentation(seed=1, padding=1)
FIRST, SECOND = Disjoint(SPACE, seed=3).paths(0)


def projected(seed=3):
    supernet = SPACE.supernet(seed=seed)
    project(supernet, seed=5, size=6, hidden=10)
    return supernet


def test_parameters_of_a_path_are_those_that_get_gradients():
    supernet = SPACE.supernet(seed=0)
    supernet(IMAGES[:8], FIRST).sum().backward()
    reached = [n for n, p in supernet.named_parameters() if p.grad is not None]
    assert used_parameters(supernet, FIRST) == reached

    class Copies(nn.Linear):
        def subnet(self, arch, *, whole=False):
            return copy.deepcopy(self)

    with pytest.raises(InputError, match="Copies does not say which of its weights"):
        used_parameters(Copies(2, 2), None)


def test_a_mean_teacher_moves_on_the_path_alone():
    student = SPACE.supernet(seed=0)
    teacher = MeanTeacher(student, decay=0.75)
    before = {n: p.clone() for n, p in teacher.supernet.named_parameters()}
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    teacher.update(FIRST)
    on_path = set(used_parameters(student, FIRST))
    assert on_path and len(on_path) < len(before)
    for name, value in teacher.supernet.named_parameters():
        torch.testing.assert_close(value, before[name] + (0.25 if name in on_path else 0.0))
        assert not value.requires_grad
    assert not teacher(IMAGES[:8], FIRST).requires_grad
    with pytest.raises(InputError, match="decay must be from 0 to 1, got 2"):
        MeanTeacher(student, decay=2)


def test_cross_path_learning_by_hand():
    (batch,) = batches(1)
    student = SPACE.supernet(seed=0)
    objective = CrossPath(VIEWS, decay=0.9)
    objective.start(student)
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1.1)
    teacher = copy.deepcopy(objective.teacher.supernet)
    loss = objective(student, [FIRST, SECOND], batch, 7)
    views = [VIEWS(batch[0], 7, 0), VIEWS(batch[0], 7, 1)]
    plain = SPACE.supernet(seed=0)
    plain.load_state_dict(student.state_dict())
    theirs, mine, taught = dict(student.named_parameters()), dict(teacher.named_parameters()), []
    for view, path in zip(views, (FIRST, SECOND), strict=True):
        with torch.no_grad():
            for name in used_parameters(student, path):  # shared parts move twice
                mine[name].copy_(0.9 * mine[name] + 0.1 * theirs[name])
            taught.append(teacher(view, path).softmax(1))
    total = 0.0
    for view, path, p in zip(views, (FIRST, SECOND), taught[::-1], strict=True):
        logits = plain(view, path)
        total = total + F.cross_entropy(logits, batch[1])
        total = total + (p * (p.log() - logits.log_softmax(1))).sum(1).mean()
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    for (name, a), b in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)
    for name, value in objective.teacher.supernet.named_parameters():
        torch.testing.assert_close(value, mine[name], rtol=1e-5, atol=1e-6)


def test_info_nce_by_hand():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    queue = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    logits = torch.tensor([[0.6, 1.0, -1.0, 0.0], [1.0, 0.0, 0.0, -1.0]]) / 0.5
    expected = (-logits[:, 0] + logits.exp().sum(1).log()).mean()
    torch.testing.assert_close(info_nce(queries, keys, queue, temperature=0.5), expected)


def test_contrast_by_hand_and_its_queue():
    (batch,) = batches(1)
    student = projected()
    objective = CrossPathContrast(VIEWS, seed=2, queue=12, size=6, decay=0.9)
    objective.start(student)
    queue = objective.queue.clone()
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(12))
    teacher = copy.deepcopy(objective.teacher)  # equal to the student, so moving changes nothing
    q0, k0, q1, k1 = (VIEWS(batch[0], 4, view) for view in range(4))
    loss = objective(student, [FIRST, SECOND], batch, 4)
    with torch.no_grad():
        keys = [F.normalize(teacher(k0, FIRST)), F.normalize(teacher(k1, SECOND))]
        queries = [F.normalize(student(q0, FIRST)), F.normalize(student(q1, SECOND))]
    expected = sum(info_nce(q, k, queue) for q, k in zip(queries, keys[::-1], strict=True))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    mean = (keys[0] + keys[1]) / 2
    torch.testing.assert_close(objective.queue[:8], mean, rtol=1e-4, atol=1e-5)
    assert torch.equal(objective.queue[8:], queue[8:])
    objective(student, [FIRST, SECOND], batch, 5)
    assert not torch.equal(objective.queue[8:], queue[8:])
    assert not torch.equal(objective.queue[:4], mean[:4])
    torch.testing.assert_close(objective.queue[4:8], mean[4:], rtol=1e-4, atol=1e-5)


def test_an_objective_begins_anew_with_every_training():
    objective = contrast()
    results = [
        trained(Disjoint(SPACE, seed=3), objective, made=projected)[0].state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def contrast():
    return CrossPathContrast(VIEWS, seed=2, queue=20, size=6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"objective": CrossPath(VIEWS, decay=0.9)},
        lambda: {"objective": contrast(), "made": projected},
    ],
    ids=["labels", "contrast"],
)
def test_budgets_and_resumed_trainings(make, tmp_path, monkeypatch):
    def arguments():
        return {"sampler": Disjoint(SPACE, seed=3), **make()}

    assert trained(**arguments())[1] == Budget(trained=160, evaluated=160)
    assert_resumes(arguments, tmp_path, monkeypatch)


def test_what_does_not_fit_is_said():
    supernet = SPACE.supernet()
    objective = contrast()
    with pytest.raises(InputError, match="has no teacher before"):
        objective(supernet, [FIRST, SECOND], batches(1)[0], 0)
    objective.start(supernet)
    with pytest.raises(InputError, match=r"outputs must be \[B, 6\], got \[8, 4\]"):
        objective(supernet, [FIRST, SECOND], batches(1)[0], 0)
    with pytest.raises(InputError, match="expected two paths a step, got 1"):
        objective(supernet, [FIRST], batches(1)[0], 0)
    with pytest.raises(InputError, match="must hold a batch, 24, got 20"):
        objective(supernet, [FIRST, SECOND], batches(1, 24)[0], 0)
    with pytest.raises(InputError, match="queue and size must be at least 1, got 0, 128"):
        CrossPathContrast(VIEWS, seed=0, queue=0)
    with pytest.raises(InputError, match="NASBench201Supernet has no linear layer 'fc'"):
        project(supernet, seed=0, classifier="fc")


def test_a_classifier_is_trained_on_a_frozen_backbone():
    def made():
        supernet = projected()
        classify(supernet, 4, seed=1)
        return supernet

    start = made()
    after, _ = trained(
        Uniform(SPACE, seed=3, paths=2), made=made, config=training(lr=1.0, weight_decay=0.0)
    )
    moved = [
        name
        for (name, a), b in zip(after.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert moved == ["head.linear.weight", "head.linear.bias"]
    assert after(IMAGES[:8], FIRST).shape == (8, 4)


def test_feature_shift_by_hand():
    """Two paths that differ on the first edge alone; layers before the cell see no shift."""
    supernet = SPACE.supernet(seed=0)
    paths = [SPACE.decode((o, 3, 0, 3, 0, 2)) for o in (1, 3)]
    found = feature_shift(supernet, paths, IMAGES[:8])
    assert found["stem.conv"].mean == found["stem.conv"].variance == 0.0
    last = []
    for path in paths:
        network = supernet.subnet(path)
        inputs = []
        network.head.linear.register_forward_pre_hook(lambda m, args, to=inputs: to.append(args[0]))
        with torch.no_grad():
            network(IMAGES[:8])
        last.append(inputs[0].double())
        network.head.linear._forward_pre_hooks.clear()
    mean = (last[0].mean(0) - last[1].mean(0)).square().mean().sqrt()
    variance = (last[0].var(0, correction=0) - last[1].var(0, correction=0)).square().mean().sqrt()
    assert found["head.linear"].mean == pytest.approx(mean.item(), rel=1e-6)
    assert found["head.linear"].variance == pytest.approx(variance.item(), rel=1e-6)
    assert all(shift.paths == 2 for shift in found.values())
    assert not any(layer._forward_pre_hooks for layer in supernet.modules())
    with pytest.raises(InputError, match="needs at least two paths, got 1"):
        feature_shift(supernet, paths[:1], IMAGES[:8])


@pytest.mark.parametrize("name", ["mlp", "mobilenet", "transformer"])
def test_feature_shift_where_paths_differ_in_width(name):
    chosen = elastic_space(name)
    supernet = elastic_supernet(chosen)
    paths = [chosen.largest, chosen.smallest, chosen.largest]
    images = elastic_batches(count=1)[0][0]
    found = feature_shift(supernet, paths, images)
    last = {"mlp": "head", "mobilenet": "head.linear", "transformer": "block1.fc1"}[name]
    inputs = []
    for path in paths[:2]:
        network = supernet.subnet(path)
        layer = network.get_submodule(last)
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))
        network(images)
    one, other = (x.double().detach() for x in inputs)
    common = min(one.shape[1], other.shape[1])
    assert name == "mobilenet" or one.shape[1] != other.shape[1]
    mean = (one.mean(0)[:common] - other.mean(0)[:common]).square().mean().sqrt()
    assert found[last].mean == pytest.approx(float(mean) * 2 / 3, rel=1e-4) and found[last].mean > 0


def test_parameter_shift_is_the_cosine_of_successive_updates():
    module = nn.Linear(2, 1, bias=False)
    shift = ParameterShift(module)
    for update in ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (-2.0, -2.0)):
        with torch.no_grad():
            module.weight.add_(torch.tensor([update]))
        shift.record()
    assert shift.cosines() == {"weight": pytest.approx((0.5**0.5 - 1) / 2, abs=1e-5)}


def test_parameter_shift_of_a_training():
    supernet = SPACE.supernet(seed=3)
    shift = ParameterShift(supernet)
    train_supernet(
        supernet,
        training(),
        source(),
        Uniform(SPACE, seed=3),
        settings={},
        progress=lambda *_: shift.record(),
    )
    cosines = shift.cosines()
    assert "stem.conv.weight" in cosines and all(-1 <= c <= 1 for c in cosines.values())
