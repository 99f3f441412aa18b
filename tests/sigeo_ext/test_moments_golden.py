"""The numbers that the published code of ZiCo and SiGeo gives, from the kernels alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sigeo_ext import moments
from tests.conftest import shared_file

NAMES = ["rows_two_batches", "rows_four_batches", "rows_eight_batches"]


def load(name):
    file = np.load(shared_file(f"golden/{name}.npz"))
    layers = [k.removeprefix("grad.") for k in file.files if k.startswith("grad.")]
    golden = json.loads(shared_file("golden/scores.json").read_text())[name]
    return [file[f"grad.{k}"] for k in layers], [file[f"theta.{k}"] for k in layers], golden


def check(ratio, inner, golden):
    counted = ratio > 0
    assert ratio[counted].log().sum().item() == pytest.approx(golden["zico"], rel=1e-4)
    fr = 2 * (inner[counted].abs().sum() + 1e-5).log().item()
    assert fr == pytest.approx(golden["sigeo_cv_fr_term"], rel=1e-4)


@pytest.mark.parametrize("keep", ["copy", "own"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_path(name, keep):
    grads, theta, golden = load(name)
    weights = [torch.from_numpy(t) for t in theta]
    state = moments.Moments(weights)
    for m in range(len(grads[0]) - 1):
        state.add([torch.from_numpy(g[m].copy()) for g in grads], keep=keep)
    last = [torch.from_numpy(g[-1]) for g in grads]
    summary = state.summary(last=last, weights=weights)
    check(summary.ratio, summary.inner, golden)
    if "sigeo_recsys_fr_term" in golden:
        fr = (summary.inner.sum().abs() + 1e-10).log().item()
        assert fr == pytest.approx(golden["sigeo_recsys_fr_term"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_path(name):
    host = pytest.importorskip("sigeo_ext.moments.host", reason="needs the compiled package")
    grads, theta, golden = load(name)
    count = len(grads[0])
    units = [[g[m] for g in grads] for m in range(count)]
    if count <= moments.MAX_ROWS:
        summary = host.rows_summary(units, weights=theta)
    else:
        state = [[np.empty_like(t) for t in theta] for _ in range(3)]
        for m, unit in enumerate(units):
            host.update_(*state, unit, count=m)
        summary = host.summary(*state, count=count, weights=theta)
    check(torch.from_numpy(summary.ratio.copy()), torch.from_numpy(summary.inner.copy()), golden)
