"""What `score` makes of batches, outputs and labels as users have them."""

from __future__ import annotations

import functools
import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sigeo
from sigeo import InputError
from sigeo.capture import call, capture, fisher_trace, gradient_statistics

SAMPLES, CLASSES = 6, 4
NAMES = ("zico", "grasp", "fisher", "fisher_trace", "jacov")
X = torch.randn(SAMPLES, 3, 4, 4)
Y = torch.arange(SAMPLES) % CLASSES
ROWS = [(torch.randn(SAMPLES, 4), Y)] * 3


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES, dtype=dtype)
    ).to(dtype)


def scores(inputs, labels, names=NAMES, **options):
    found = sigeo.score(network(), [(inputs, labels)] * 2, names, **options)
    return {name: score.value for name, score in found.items()}


def values(dtype):
    return X.numpy().astype(dtype)


@pytest.mark.parametrize(
    "labels",
    [
        *(Y.to(d) for d in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16)),
        *(Y.numpy().astype(d) for d in (np.int32, np.uint8, np.uint32, ">i8", ">i4")),
        Y.tolist(),
        list(Y.numpy()),
    ],
    ids=lambda labels: str(getattr(labels, "dtype", "list")),
)
def test_labels_of_whole_numbers_serve_in_any_width(labels):
    assert scores(X, labels) == scores(X, Y)


def test_lists_of_arrays_are_one_tensor():
    probabilities = F.one_hot(Y, CLASSES).float()
    assert scores(X, list(probabilities.numpy()), ["zico"]) == scores(X, probabilities, ["zico"])


def test_losses_of_ones_own_get_labels_as_int64():
    seen = []

    def loss(output, labels):
        seen.append((labels["classes"].dtype, labels["mask"].dtype, labels["weight"].dtype))
        return F.cross_entropy(output, labels["classes"])

    labels = {"classes": Y.int(), "mask": Y > 1, "weight": np.ones(SAMPLES, np.float32)}
    assert scores(X, labels, ["grasp"], loss_fn=loss) == scores(X, Y, ["grasp"])
    assert set(seen) == {(torch.int64, torch.bool, torch.float32)}


def unwritable(array):
    array.setflags(write=False)
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "inputs",
    [
        values("f4"),
        values(">f4"),
        values("f4")[:, :, ::-1][:, :, ::-1],
        np.ascontiguousarray(values("f4")[:, :, ::-1])[:, :, ::-1],
        unwritable(values("f4")),
    ],
    ids=["plain", "big-endian", "twice reversed", "reversed", "read only"],
)
def test_arrays_serve_as_tensors(inputs):
    x = torch.tensor(inputs.astype("f4", order="C"))
    assert scores(inputs, Y.numpy()) == scores(x, Y)
    assert scores((inputs,), Y) == scores({"input": inputs}, Y) == scores(x, Y)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return {"logits": self.network(x)}


FLOATS = "torch.float32 [6, 4]"


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (
            (X, Y.float()),
            {},
            f"labels: expected classes, torch.int64 [6], or values like the output's, {FLOATS}, "
            "got torch.float32 [6]",
        ),
        (
            (X, Y[:, None]),
            {},
            f"labels: expected classes, torch.int64 [6], or values like the output's, {FLOATS}, "
            "got torch.int64 [6, 1]",
        ),
        (
            (X, F.one_hot(Y, CLASSES)),
            {"loss_fn": functools.partial(F.cross_entropy, label_smoothing=0.1)},
            f"labels: expected classes, torch.int64 [6], or values like the output's, {FLOATS}, "
            "got torch.int64 [6, 4]",
        ),
        (
            (X, "abcdef"),
            {},
            "labels: expected one tensor, as cross_entropy takes, got str",
        ),
        (
            (X, list("abcdef")),
            {},
            "labels: expected numbers, got list ['a', 'b', 'c', 'd', 'e', 'f']",
        ),
        (
            (X, np.array(list("abcdef"))),
            {},
            "labels: expected numbers, got ndarray of <U1",
        ),
        (
            (np.array([None] * 6), Y),
            {},
            "inputs: expected numbers, got ndarray of object",
        ),
        (
            (values("f8"), Y),
            {},
            "inputs: expected torch.float32 like the model's parameters, got torch.float64",
        ),
        (
            (X.byte(), Y),
            {},
            "inputs: expected torch.float32 like the model's parameters, got torch.uint8",
        ),
    ],
)
@pytest.mark.parametrize("name", ["zico", "grasp"])
def test_what_a_loss_or_a_model_does_not_take_is_said_in_a_line(batch, options, message, name):
    with pytest.raises(InputError, match=f"^(grasp: )?{re.escape(message)}$"):
        sigeo.score(network(), [batch] * 2, [name], **options)


def test_an_output_that_the_default_loss_does_not_take():
    message = (
        "loss_fn: cross_entropy takes an output that is one tensor, got dict; pass a function of "
        "the model's output and the labels"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        sigeo.score(Named(), [(X, Y)] * 2, ["zico"])
    found = sigeo.score(
        Named(), [(X, Y)] * 2, ["zico"], loss_fn=lambda o, y: F.cross_entropy(o["logits"], y)
    )
    assert found["zico"].value == scores(X, Y)["zico"]


def test_a_loss_without_its_labels():
    with pytest.raises(InputError, match="^batches: expected pairs .* got inputs alone$"):
        gradient_statistics(network(), [X])


def test_errors_of_models_and_losses_of_ones_own_are_left_as_they_are():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("of this type")

    with pytest.raises(RuntimeError, match="^of this type$"):
        sigeo.score(Failing(), [(X.double(), Y)] * 2, ["grasp"])
    with pytest.raises(RuntimeError, match="expected target dtype"):
        scores(X, Y.float(), ["zico"], loss_fn=lambda o, y: F.cross_entropy(o, y))


def test_inputs_of_other_dtypes_are_not_blamed_for_what_is_of_none_of_theirs():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x, mask):
            return self.layer(x * mask) @ torch.ones(CLASSES, CLASSES, dtype=torch.float64)

    inputs = torch.randn(SAMPLES, 4), torch.ones(SAMPLES, 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="dtype"):
        sigeo.score(Masked(), [(inputs, Y)], ["grasp"])


LAYERS = [nn.Conv1d(3, 3, 1), nn.Linear(4, 4), nn.LSTM(4, 4)]
OTHERS = [torch.float64, torch.float16, torch.bfloat16, torch.uint8]


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [*itertools.product(LAYERS, OTHERS), (nn.GroupNorm(3, 3), torch.float64)],
    ids=str,
)
def test_inputs_of_other_dtypes_are_told_of_layers_of_any_kind(layer, dtype):
    message = f"^inputs: expected torch.float32 like the model's parameters, got {dtype}$"
    with pytest.raises(InputError, match=message):
        call(layer, torch.ones(2, 3, 4, dtype=dtype))


def test_the_mode_of_the_model_counts_for_single_samples_and_tangent_kernels_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, CLASSES)
    )
    with torch.no_grad():
        model[1].running_var.fill_(4)
    batches = [(torch.randn(SAMPLES, 4), Y) for _ in range(3)]
    by_mode = {"fisher_trace", "ntk_min_eig", "zico_sample"}
    found = []
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(1)
        names = [*by_mode, "zico", "sigeo_paper", "fisher", "naswot", "jacov", "grasp"]
        found.append({n: s.value for n, s in sigeo.score(model, batches, names).items()})
    assert {name for name in found[0] if found[0][name] != found[1][name]} == by_mode


def test_inputs_and_labels_are_constants_whatever_made_them():
    made_by, names = nn.Linear(4, 4), ["zico", "sigeo", "snip", "flops", "fisher_trace", "jacov"]
    batches = [(made_by(x), made_by(x).softmax(1)) for x, _ in ROWS]
    plain = [(x.detach(), y.detach()) for x, y in batches]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    assert sigeo.score(model, batches, names) == sigeo.score(model, plain, names)
    leaf = ROWS[0][0].clone().requires_grad_()
    assert fisher_trace(model, [(leaf, Y)]) == fisher_trace(model, ROWS[:1])
    assert made_by.weight.grad is None and leaf.grad is None


@pytest.mark.parametrize("name", ["zico", "snip", "flops", "sigeo_paper", "zen", "params"])
def test_batches_without_samples(name):
    whole, nothing = (X, Y), (X[:0], Y[:0])
    later = name in ("zico", "sigeo_paper")
    batches = [whole, nothing] if later else [nothing, whole]
    message = f"inputs: expected at least one sample, got none in batch {int(later)}"
    with pytest.raises(InputError, match=f"^({name}: )?{message}$"):
        sigeo.score(network(), batches, [name])


@pytest.mark.parametrize("name", ["zico", "snip", "l2_norm", "synflow", "sigeo_paper"])
def test_complex_layers_are_named(name):
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES, dtype=torch.complex64)

        def forward(self, x):
            return self.layer(x.to(torch.complex64)).abs()

    message = "model: parameter layer.weight is complex, and statistics are of real numbers"
    with pytest.raises(InputError, match=f"^({name}: )?{message}$"):
        sigeo.score(Complex(), ROWS, [name])


class Graph(nn.Module):
    """A layer on a graph whose edges are an input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x, edges):
        return torch.mm(edges, self.layer(x))


EDGES = torch.eye(SAMPLES) + 1


def test_sparse_inputs_serve_where_models_and_proxies_take_them():
    torch.manual_seed(0)
    model, x, edges = Graph(), torch.randn(SAMPLES, 4), EDGES.to_sparse()
    names = ["grad_norm", "snip", "sigeo"]
    found, expected = (sigeo.score(model, [((x, e), Y)] * 2, names) for e in (edges, EDGES))
    assert [found[n].value for n in names] == pytest.approx([expected[n].value for n in names])
    message = "inputs: expected dense tensors, got torch.sparse_coo"
    with pytest.raises(InputError, match=f"^flops: {message}, which fails: "):
        sigeo.score(model, [((x, edges), Y)], ["flops"])
    for name in ("fisher_trace", "ntk_cond"):
        with pytest.raises(InputError, match=f"^{name}: {message}"):
            sigeo.score(model, [((x, edges), Y)] * 3, [name])
    with capture(model), pytest.raises(InputError, match=f"^{message}$"):
        model(x, edges)


NESTED = torch.nested.nested_tensor([torch.ones(k, 4) for k in range(1, 7)], layout=torch.jagged)


@pytest.mark.parametrize("name", ["zico", "zen", "fisher_trace", "jacov"])
def test_nested_inputs_and_labels_that_are_not_dense_are_told_in_a_line(name):
    torch.manual_seed(0)
    model, (x, _) = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES)), ROWS[0]
    if name != "zico":
        with pytest.raises(InputError, match=f"^{name}: inputs: .* got a nested tensor"):
            sigeo.score(model, [(NESTED, Y)], [name])
    if name in ("zico", "fisher_trace"):
        for labels in (NESTED, Y.to_sparse()):
            with pytest.raises(InputError, match=r"labels: expected .*, got .*(j1|sparse_coo)"):
                sigeo.score(model, [(x, labels)] * 2, [name])


SPACE = sigeo.spaces.get("nasbench201", sigeo.spaces.InputShape(3, 4, CLASSES), channels=2, cells=1)
CELLS = [SPACE.at(7000), SPACE.at(9000)]


def test_many_subnets_take_arrays_and_labels_in_any_width():
    supernet, names = SPACE.supernet(), ["zico", "fisher_trace"]
    expected = sigeo.score_many(supernet, CELLS, [(X, Y)] * 2, names)
    given = [(X.numpy(), Y.numpy().astype("int32"))] * 2
    assert sigeo.score_many(supernet, CELLS, given, names) == expected


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (
            X.double(),
            {},
            "inputs: expected torch.float32 like the model's parameters, got torch.float64",
        ),
        (
            X,
            {"loss_fn": nn.CrossEntropyLoss(reduction="sum")},
            "fisher_trace: reduction: loss_fn gives the sum of the samples' losses, expected their "
            "mean",
        ),
    ],
)
def test_what_many_subnets_refuse(inputs, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        sigeo.score_many(
            SPACE.supernet(),
            CELLS,
            [(inputs, Y)] * 2,
            ["params", "zico", "fisher_trace"],
            **options,
        )


def test_a_packed_sequence_has_no_first_sample():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.LSTM(4, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.head(self.cells(x)[1][0][0])

    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 4) for n in (3, 2, 2, 1, 1, 1)])
    assert sigeo.score(Packed(), [(packed, Y)], ["snip"])["snip"].finite
    message = "flops: inputs: expected tensors of one row a sample, got a PackedSequence"
    with pytest.raises(InputError, match=f"^{message}$"):
        sigeo.score(Packed(), [(packed, Y)], ["snip", "flops"])
