"""Losses of several outputs and labels, which are means of the samples' losses or are not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.capture import fisher_trace, sample_inner_products
from sigeo_ext.testing import assert_close

SAMPLES, CLASSES = 6, 4


class Several(nn.Module):
    """Outputs in a dict, some in a tuple, and one number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, CLASSES), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        logits = self.layer(x)
        return {"logits": logits, "features": (logits.tanh(), self.scale)}


def several(reduction, weight=None):
    def loss(output, labels):
        features, scale = output["features"]
        distances = (features * scale - labels["near"]).square().sum(1)
        entropies = F.cross_entropy(output["logits"], labels["classes"], weight, reduction="none")
        if weight is not None:
            entropies = entropies / weight[labels["classes"]].sum()
            return entropies.sum() + distances.mean()
        return getattr(entropies + distances, reduction)()

    return loss


BATCHES = [
    (x, {"classes": torch.arange(SAMPLES) % CLASSES, "near": x, "how": torch.tensor(0.5)})
    for x in torch.randn(3, SAMPLES, 4)
]


def test_reductions_are_noticed_where_outputs_and_labels_are_several():
    model = Several()
    mean = fisher_trace(model, BATCHES, several("mean"))
    assert fisher_trace(model, BATCHES, several("sum"), reduction="sum") == pytest.approx(mean)
    for name in ("fisher_trace", "sigeo_sample"):
        found = sigeo.score(model, BATCHES, [name], loss_fn=several("mean"))[name]
        assert found.finite
        with pytest.raises(InputError, match=f"^{name}: reduction: loss_fn gives the sum of"):
            sigeo.score(model, BATCHES, [name], loss_fn=several("sum"))
    with pytest.raises(InputError, match='pass reduction="sum"$'):
        fisher_trace(model, BATCHES, several("sum"))
    weighing = several("mean", torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for name in ("fisher_trace", "sigeo_paper"):
        with pytest.raises(InputError, match=f"^{name}: loss_fn: .* that weighs samples"):
            sigeo.score(model, BATCHES, [name], loss_fn=weighing)


def test_an_output_of_a_class_of_its_own_has_no_samples_to_take_apart():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x):
            return SimpleNamespace(logits=self.layer(x))

    batches = [(x, labels["classes"]) for x, labels in BATCHES]
    message = "model: expected an output of tensors, in tuples, lists or dicts, got SimpleNamespace"
    with pytest.raises(InputError, match=f"^sigeo_paper: {message}$"):
        sigeo.score(
            Own(),
            batches,
            ["zico", "sigeo_paper"],
            loss_fn=lambda output, labels: F.cross_entropy(output.logits, labels),
        )


def test_labels_of_different_numbers_of_rows_have_no_samples():
    labels = {"weight": torch.rand(CLASSES), "classes": torch.arange(SAMPLES) % CLASSES}
    message = r"labels: expected tensors of one row a sample, got tensors of \[4, 6\] rows"
    with pytest.raises(InputError, match=f"^{message}$"):
        sample_inner_products(
            nn.Linear(4, CLASSES),
            lambda output, labels: F.cross_entropy(output, labels["classes"]),
            torch.randn(SAMPLES, 4),
            labels,
        )


def test_numbers_among_outputs_and_labels_are_every_samples():
    model, loss = Several(), several("mean")
    given = BATCHES[0]

    def scaled(output, labels):
        return loss(output, labels) * labels["how"]

    products = sample_inner_products(model, scaled, *given)
    assert_close(products, sample_inner_products(model, loss, *given) * 0.5)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss(model(given[0]), given[1]), parameters)
    whole = sum((g * p).sum() for g, p in zip(grads, parameters, strict=True))
    assert float(products.mean()) == pytest.approx(float(whole.detach()) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("output", "got"),
    [(lambda x: torch.cat([x, x]), r"tensors of \[12\] rows"), (torch.sum, "one number")],
)
def test_an_output_without_a_row_a_sample_has_no_samples(output, got):
    class Other(nn.Linear):
        def forward(self, x):
            return output(super().forward(x))

    message = f"model: expected an output of one row for each of the 6 labels, got {got}"
    with pytest.raises(InputError, match=f"^{message}$"):
        sample_inner_products(
            Other(4, CLASSES), lambda output, labels: output.sum(), BATCHES[0][0], torch.ones(6)
        )
