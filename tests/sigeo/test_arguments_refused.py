"""Values that arguments do not take are one line that names the argument."""

from __future__ import annotations

import random
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, data, proxies, spaces
from sigeo.capture import Request, fisher_rao, fisher_trace
from sigeo.data import ImageData, Split
from sigeo.fewshot import recipes
from sigeo.fewshot.partition import Relation
from sigeo.scoring.networks import Protocol
from sigeo.spaces.choices import ChoiceSpace

NASBENCH201 = spaces.get("nasbench201", spaces.InputShape(1, 8, 2), channels=2, cells=1)
IMAGES, LABELS = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)
LAYER, BATCH = nn.Linear(4, 1), (torch.randn(3, 4), torch.randn(3, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Protocol((proxies.get("zico"),), init="super"),
            "protocol: init must be one of scratch, candidate, supernet, got 'super'",
        ),
        (
            lambda: Relation.of([[1, 0], [0, 1]], "similarty"),
            "relation: sense must be one of similarity, distance, got 'similarty'",
        ),
        (
            lambda: Request(selection="conv"),
            "request: selection must be one of layers, all, got 'conv'",
        ),
        (
            lambda: Request(steps="sgd"),
            "request: steps must be an SGD, a ClippedAdagrad or None, got 'sgd'",
        ),
        (
            lambda: data.load(torch.utils.data.TensorDataset(*BATCH)),
            "data: expected 'digits' or a path, got TensorDataset; "
            "images in memory are an ImageData",
        ),
        (
            lambda: ImageData("own", Split(IMAGES, LABELS), None, 2),
            "own: test must be a Split, got None",
        ),
        (
            lambda: ImageData("own", Split(IMAGES.numpy(), LABELS), Split(IMAGES, LABELS), 2),
            "own: train images must be a Tensor, got ndarray",
        ),
        (
            lambda: ImageData("own", Split(IMAGES, LABELS.float()), Split(IMAGES, LABELS), 2),
            "own: train labels must be int64, got float32",
        ),
        (
            lambda: sigeo.score(LAYER, [BATCH], ["params"], memory_format="nchw"),
            "memory_format must be one of auto, preserve, channels_last, got 'nchw'",
        ),
        (
            lambda: fisher_trace(LAYER, [BATCH], F.mse_loss, labels="drawn"),
            "labels: can be drawn from outputs [samples, 2 classes or more], got [3, 1]",
        ),
        (
            lambda: fisher_rao(LAYER, [BATCH], F.mse_loss, labels="drawn"),
            "labels: can be drawn from outputs [samples, 2 classes or more], got [3, 1]",
        ),
        (
            lambda: spaces.Choice(3, ("a",)),
            "choice: name must be a text, got 3",
        ),
        (
            lambda: spaces.Choice("w", (4, 8)),
            "choice w: options must be texts in a tuple, got (4, 8)",
        ),
        (
            lambda: spaces.Choice("w", "48"),
            "choice w: options must be texts in a tuple, got '48'",
        ),
        (
            lambda: spaces.Choice("w", ()),
            "choice w: options must be texts in a tuple, got ()",
        ),
        (
            lambda: spaces.Choice("w", ("4", "8", "4")),
            "choice w: expected each option once, got ('4', '8', '4')",
        ),
        (
            lambda: ChoiceSpace([spaces.Choice("w", ("4", "8"))] * 2),
            "choices: expected each name once, got 'w' twice",
        ),
        (
            lambda: spaces.distinct(NASBENCH201, 15_626, random.Random(0)),
            "nasbench201: has 15625 architectures, got a count of 15626",
        ),
    ],
)
def test_values_that_are_none(call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call()


def test_names_that_are_taken():
    with pytest.raises(ValueError, match="^recipe name 'fair' is taken$"):
        recipes.recipe("fair", "here")(lambda space: None)
    assert recipes.entry("fair").source != "here"


@pytest.mark.parametrize(
    "method", ["index", "encode", "representative", "pruned", "connected", "cost", "build"]
)
@pytest.mark.parametrize("name", ["nasbench201", "mlp"])
def test_texts_in_the_place_of_architectures(name, method):
    if name == "mlp" and method in ("representative", "pruned", "connected"):
        pytest.skip("looks at no choice")
    space = spaces.get(name, spaces.InputShape(1, 8, 2))
    with pytest.raises(InputError, match="got str '.+'; the space's `parse` reads strings$"):
        getattr(space, method)(str(space.at(0)))
