"""Values that arguments do not take are one line that names the argument."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError, data, proxies, spaces, tables
from sigeo.capture import SGD, Request, capture, fisher_rao, fisher_trace
from sigeo.data import ImageData, Split
from sigeo.fewshot import Branching, recipes
from sigeo.fewshot.partition import Relation
from sigeo.fewshot.study import Study
from sigeo.kinds import named_arguments
from sigeo.scoring.networks import Networks, Protocol
from sigeo.scoring.rank import rank
from sigeo.scoring.standalone import Standalone
from sigeo.spaces.choices import ChoiceSpace
from sigeo.supernet import Training, WarmUp

NASBENCH201 = spaces.get("nasbench201", spaces.InputShape(1, 8, 2), channels=2, cells=1)
MLP = spaces.get("mlp", spaces.InputShape(1, 8, 2))
IMAGES, LABELS = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)
SCORES = np.arange(3.0)
LAYER, BATCH = nn.Linear(4, 1), (torch.randn(3, 4), torch.randn(3, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Protocol((proxies.get("zico"),), init="super"),
            "protocol: init must be one of scratch, candidate, supernet, got 'super'",
        ),
        (
            lambda: Protocol((proxies.get("zico"),), batches=2.5),
            "protocol: batches must be a whole number, got 2.5",
        ),
        (
            lambda: Protocol((proxies.get("zico"), "snip")),
            "protocol: proxies must be a list, each a Proxy, got tuple with 'snip'",
        ),
        (
            lambda: Protocol((proxies.get("zico"),), at_once="all"),
            "protocol: at_once must be a whole number or auto, got 'all'",
        ),
        (
            lambda: Protocol((proxies.get("zico"),), batches=0),
            "protocol: batches must be at least 1, got 0",
        ),
        (
            lambda: Protocol((proxies.get("zico"),), seed=2**70),
            f"protocol: seed must be a whole number, got {2**70}, which 64 bits do not hold",
        ),
        (
            lambda: proxies.get("zen", seed=-(2**64)),
            f"proxy zen: seed must be a whole number, got {-(2**64)}, which 64 bits do not hold",
        ),
        (
            lambda: Study(NASBENCH201, data.load("digits"), 64, device="nope"),
            "device: must be cpu, cuda or cuda:N, got 'nope'",
        ),
        (
            lambda: Standalone(WarmUp(64), device="tpu"),
            "device: must be cpu, cuda or cuda:N, got 'tpu'",
        ),
        (
            lambda: tables.correlate(SCORES, SCORES, standing=np.zeros(2, int)),
            "standing: expected a part for each of the 3 scores, got [2]",
        ),
        (
            lambda: tables.parts_first(SCORES, np.zeros((3, 1), int)),
            "standing: expected a part for each of the 3 scores, got [3, 1]",
        ),
        (
            lambda: Networks(NASBENCH201, IMAGES, Protocol((proxies.get("zico"),))),
            "networks: data must be an ImageData, got Tensor",
        ),
        (
            lambda: Networks(NASBENCH201, data.load("digits"), "scratch"),
            "networks: protocol must be a Protocol, got 'scratch'",
        ),
        (
            lambda: Study(NASBENCH201, None, 64),
            "study: data must be an ImageData, got None",
        ),
        (
            lambda: Study(NASBENCH201, [torch.ones(2, 1)], 64),
            "study: data must be an ImageData, got list",
        ),
        (
            lambda: Study(NASBENCH201, data.load("digits"), 64, augment=lambda x, _: x),
            "study: augment must be an Augment or None, got function without describe",
        ),
        (
            lambda: WarmUp(64, momentum="high"),
            "warm-up: momentum must be a number, got 'high'",
        ),
        (
            lambda: Training(64, lr=1e300),
            "training: lr must be above 0 and at most 1e+38, got 1e+300",
        ),
        (
            lambda: SGD(1e300),
            "sgd: step sizes must be from 0 to 1e+38, got 1e+300",
        ),
        (
            lambda: Training(64, scales=(("stem", "half"),)),
            "training: scales must be pairs of a prefix and a factor of at least 0, "
            "got ('stem', 'half')",
        ),
        (
            lambda: Standalone(WarmUp(64), runs=2.5),
            "standalone: runs must be a whole number, got 2.5",
        ),
        (
            lambda: Training.of_steps("3", 64),
            "of_steps: steps must be a whole number, got '3'",
        ),
        (
            lambda: sigeo.score(LAYER, 3, ["zico"]),
            "score: batches must be a list or a Batches, got 3",
        ),
        (
            lambda: sigeo.score(LAYER, np.array(3.0), ["zico"]),
            "score: batches must be a list or a Batches, got ndarray",
        ),
        (
            lambda: rank(None, [], None),
            "rank: networks must be a Networks, got None",
        ),
        (
            lambda: spaces.get("mlp", (1, 8, 10)),
            "mlp: shape must be an InputShape, got (1, 8, 10)",
        ),
        (
            lambda: tables.correlate(SCORES, SCORES.tolist()),
            "correlate: truth must be an array, got [0.0, 1.0, 2.0]",
        ),
        (
            lambda: tables.correlate(SCORES, SCORES[:2]),
            "scores: expected a score for each of the 2 measured values, got [3]",
        ),
        (
            lambda: tables.correlate(SCORES, np.array(1.0)),
            "truth: expected measured values [n], one at least, got []",
        ),
        (
            lambda: tables.correlate(SCORES, SCORES, confidence=2.0),
            "confidence: must be above 0 and below 1, got 2.0",
        ),
        (
            lambda: tables.correlate(SCORES, SCORES, resamples=0),
            "resamples: must be at least 1 with a seed from 0, got 0 with 0",
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
            lambda: fisher_trace(LAYER, [BATCH], F.mse_loss, labels=IMAGES),
            'labels: must be "given" or "drawn", got Tensor',
        ),
        (
            lambda: sigeo.score(LAYER, [BATCH], ["snip"], loss_fn=BATCH[1]),
            "loss_fn: expected a function of (output, labels), got Tensor",
        ),
        (
            lambda: sigeo.score(LAYER, [BATCH], ["snip"], loss_fn=nn.MSELoss),
            "loss_fn: expected a function of (output, labels), got the class MSELoss",
        ),
        (
            lambda: sigeo.score(LAYER, [BATCH], memory_format=BATCH[1]),
            "memory_format must be one of auto, preserve, channels_last, got Tensor",
        ),
        (
            lambda: capture(LAYER, None),
            "capture: want must be a list, each a text, got None",
        ),
        (
            lambda: capture(LAYER, batch_dim=-1),
            "batch_dim: must be a number from 0, got -1",
        ),
        (
            lambda: capture(LAYER, unit=BATCH[1]),
            'unit: must be "sample" or a number from 1, got Tensor',
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
        (
            lambda: NASBENCH201.at(1.5),
            "nasbench201: index must be a whole number from 0 to 15624, got 1.5",
        ),
        (
            lambda: ChoiceSpace([spaces.Choice("a=b", ("4", "8"))]),
            "choice a=b: name must be without ',' or '=' and spaces around, got 'a=b'",
        ),
        (
            lambda: ChoiceSpace([spaces.Choice("kernels", ("3", "3,5"))]),
            "choice kernels: options must be without ',' and spaces around, got '3,5'",
        ),
        (
            lambda: MLP.parse(MLP.largest),
            "space: text must be a text, got Architecture",
        ),
        (
            lambda: NASBENCH201.parse(None),
            "space: text must be a text, got None",
        ),
        (
            lambda: MLP.at(0.5),
            "mlp: index must be a whole number from 0 to 1023, got 0.5",
        ),
        (
            lambda: NASBENCH201.decode([1.5] * 6),
            "cell: expected 6 operations from 0 to 4, got (1.5, 1.5, 1.5, 1.5, 1.5, 1.5)",
        ),
        (
            lambda: MLP.decode([0.5, 0]),
            "architecture: codes must be whole numbers, got (0.5, 0)",
        ),
        (
            lambda: Branching((2, 1.5)),
            "branching: levels must be a list, each a whole number or a list, each a whole number, "
            "got (2, 1.5)",
        ),
    ],
)
def test_values_that_are_none(call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call()


def test_errors_of_other_causes_are_left_as_they_are():
    @named_arguments("thing")
    def thing(number: int, *rest: str) -> int:
        return {1: 2}[number]

    assert thing(1) == 2
    with pytest.raises(KeyError):
        thing(3, 4)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        thing()
    with pytest.raises(InputError, match="^thing: number must be a whole number, got 'x'$"):
        thing("x")


class Places:
    """Batches by their places, as data sets of torch's."""

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return [BATCH, BATCH][place]


@pytest.mark.parametrize("error", [RuntimeError("of the loss"), torch.OutOfMemoryError("full")])
def test_errors_of_a_loss_are_left_as_they_are(error):
    def fail(output, labels):
        raise error

    for batches, names in ((Places(), ("snip",)), ([BATCH], iter(["snip"]))):
        with pytest.raises(type(error), match=str(error)):
            sigeo.score(LAYER, batches, names, loss_fn=fail)


def test_a_lack_of_memory_is_left_as_it_is():
    @named_arguments("thing")
    def thing(number: int) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="^full$"):
        thing("x")


def test_settings_take_numpys_values():
    numbers = {"batches": np.int64(2), "deduplicate": np.False_, "init": np.str_("scratch")}
    assert str(Protocol((proxies.get("zico"),), **numbers)) == str(
        Protocol((proxies.get("zico"),), batches=2, deduplicate=False)
    )
    warmup = WarmUp(np.int64(64), lr=np.float32(0.5), milestones=np.array([0.25, 0.5]))
    expected = WarmUp(64, lr=0.5, milestones=(0.25, 0.5))
    assert json.dumps(warmup.describe()) == json.dumps(expected.describe())


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
