"""Which parameters are selected."""

from __future__ import annotations

import pytest
from torch import nn

from sigeo import InputError
from sigeo.capture import select
from sigeo.capture.layers import buffers_of, parameters_of


def test_selection_of_layers():
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ConvTranspose2d(2, 3, 3), nn.Linear(4, 4)
    )
    assert list(select(model, "layers")) == ["0.weight", "2.weight", "3.weight"]
    assert len(select(model, "all")) == 8
    shared = nn.Linear(4, 4)
    assert list(select(nn.Sequential(shared, shared), "layers")) == ["0.weight"]
    with pytest.raises(InputError, match="at least one convolution or linear weight, found none"):
        select(nn.LayerNorm(3), "layers")
    with pytest.raises(InputError, match="at least one trainable parameter, found none"):
        select(nn.ReLU(), "all")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights_are_represented_by_what_they_are_computed_from():
    modern = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert sorted(select(modern, "layers")) == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ]
    old = nn.utils.weight_norm(nn.Linear(4, 3))
    assert sorted(select(old, "layers")) == ["weight_g", "weight_v"]


def test_parameters_and_buffers_of_modules_are_those_of_the_model():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Sequential(nn.BatchNorm1d(3), shared, nn.Linear(3, 3)))
    model[1][2].weight = shared.weight  # tied
    model[1].register_parameter("absent", None)
    modules = list(model.named_modules())
    expected = {name: id(p) for name, p in model.named_parameters()}
    assert {name: id(p) for name, p in parameters_of(modules)} == expected
    assert [id(b) for b in buffers_of(modules)] == [id(b) for b in model.buffers()]
