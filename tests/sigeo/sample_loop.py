"""The judge of captures: a loop over single samples, and what must equal it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sigeo.capture import capture

EVERYTHING = {
    "sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sample_sq_norm", "fisher_rao", "gram",
}  # fmt: skip
SAMPLES = 6


def loop(model, inputs, labels, loss_fn=F.cross_entropy):
    """The gradients of each sample's own loss, [samples, *shape] by name."""
    rows = []
    for b in range(len(labels)):
        model.zero_grad(set_to_none=True)
        loss_fn(model(*(x[b : b + 1] for x in inputs)), labels[b : b + 1]).backward()
        rows.append(
            {
                n: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
                for n, p in model.named_parameters()
                if p.requires_grad
            }
        )
    model.zero_grad(set_to_none=True)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def dense(tensor):
    return tensor.to_dense() if tensor.is_sparse else tensor


def error(actual, expected):
    difference = float((dense(actual) - expected).norm())
    scale = float(expected.norm())
    return difference / scale if scale > 1e-12 else difference


def assert_statistics(stats, rows, model, tolerance=1e-10, unit=1):
    """All statistics of all parameters, the norms and the inner products."""
    sq_norm, inner, gram = 0, 0, 0
    parameters = dict(model.named_parameters())
    for name, gradients in rows.items():
        g = gradients.unflatten(0, (-1, unit)).mean(1)
        got = stats[name]
        assert error(got.sum, g.sum(0)) <= tolerance, name
        assert error(got.abs_sum, g.abs().sum(0)) <= tolerance, name
        assert error(got.sq_sum, (g**2).sum(0)) <= tolerance, name
        assert error(got.m2, ((g - g.mean(0)) ** 2).sum(0)) <= tolerance, name
        sq_norm = sq_norm + (g**2).reshape(len(g), -1).sum(1)
        inner = inner + (g * parameters[name]).reshape(len(g), -1).sum(1)
        gram = gram + g.reshape(len(g), -1) @ g.reshape(len(g), -1).t()
    assert error(stats.sample_sq_norm, sq_norm) <= tolerance
    assert error(stats.fisher_rao, inner.detach()) <= tolerance
    assert error(stats.gram, gram) <= tolerance


def check(model, inputs, labels, loss_fn=F.cross_entropy, tolerance=1e-10, unit=1, **options):
    rows = loop(model, inputs, labels, loss_fn)
    given = {"unit": unit} if unit > 1 else {}
    with capture(model, EVERYTHING, **given, **options) as stats:
        loss_fn(model(*inputs), labels).backward()
    assert not stats.unsupported
    assert_statistics(stats, rows, model, tolerance, unit)
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is not None:
            assert error(p.grad.to_dense(), rows[name].mean(0)) <= tolerance, name
    return stats
