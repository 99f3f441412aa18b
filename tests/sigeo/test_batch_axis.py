"""`capture` follows the samples wherever they lie: no size may tell them apart from anything else.

`zoo.MODELS` has attention, windows, towers and flattened tokens, with as many tokens as samples.
Here are inputs whose samples do not come first, more ways to fold samples into other dimensions,
and constants that are spread over the samples.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import EVERYTHING, assert_statistics, check, error
from tests.sigeo.zoo import CLASSES, Function

SAMPLES = 6


def sequences(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def recurrent() -> nn.Module:
    return Function(
        lambda m, x: m.out(m.cell(x)[0][-1]), cell=nn.LSTM(6, 7), out=nn.Linear(7, CLASSES)
    )


def encoder() -> nn.Module:
    def run(m, x):
        return m.out((m.layer(x + m.place[:, None])).mean(0))

    return Function(
        run, place=nn.Parameter(torch.randn(SAMPLES, 6)), out=nn.Linear(6, CLASSES),
        layer=nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0),
    )  # fmt: skip


def cross_attention() -> nn.Module:
    """Queries that all samples share."""

    def run(m, x):
        queries = m.queries[:, None].expand(-1, x.shape[1], -1)
        return m.out(m.attention(queries, x, x)[0].mean(0))

    return Function(
        run, queries=nn.Parameter(torch.randn(SAMPLES, 6)), out=nn.Linear(6, CLASSES),
        attention=nn.MultiheadAttention(6, 2),
    )  # fmt: skip


def overwritten() -> nn.Module:
    """Parts of tensors are written in place, none with what is of other samples."""

    def run(m, x):
        x = m.first(x)
        shifted, filled, ones = x.clone(), torch.zeros_like(x), x.new_ones(x.shape)
        shifted[:, 1:] = x[:, :-1]
        shifted[:, 0].mul_(x[:, 1])
        shifted[x > 1] = 0.5
        filled.transpose(0, 1).copy_(x.transpose(0, 1))
        filled.view(-1, 6).add_(x.reshape(-1, 6))
        ones[:, :, 2:4] = x[..., :2]
        return m.out((shifted + filled * ones).mean(1))

    return Function(run, first=nn.Linear(6, 6), out=nn.Linear(6, CLASSES))


def put_together() -> nn.Module:
    """Tensors of zeros are filled through views of another shape that show all of them."""

    def run(m, x):
        x = m.first(x)
        rows, steps, flat = torch.zeros_like(x), x.new_zeros(x.numel()), x.new_zeros(x.numel())
        rows.view(-1, 6).copy_(x.reshape(-1, 6))
        view = steps.view(x.shape)
        view += x.exp()
        flat.view(x.shape)[:] = x.sin()
        return m.out((rows + steps.view(x.shape) * flat.view(x.shape)).mean(1))

    return Function(run, first=nn.Linear(6, 6), out=nn.Linear(6, CLASSES))


def normed() -> nn.Module:
    """Norms of orders that are also dimensions."""

    def run(m, x):
        x = m.first(x)
        norms = [torch.linalg.vector_norm(x, order, dim=1) for order in (1, 2, 3)]
        return m.out(sum(norms) + torch.linalg.vector_norm(x, 1, dim=(1, 2))[:, None])

    return Function(run, first=nn.Linear(6, 6), out=nn.Linear(6, CLASSES))


def convolved() -> nn.Module:
    """[T, B, E] to [B, E, T] for a convolution over time."""

    def run(m, x):
        return m.out(torch.tanh(m.conv(x.permute(1, 2, 0))).mean(2))

    return Function(run, conv=nn.Conv1d(6, 8, 3, padding=1), out=nn.Linear(8, CLASSES))


def flattened() -> nn.Module:
    """[T, B, E] as [T * B, E] for a linear layer."""

    def run(m, x):
        z = torch.tanh(m.body(x.reshape(-1, x.shape[-1]))).view(*x.shape[:2], 8)
        return m.out(z.sum(0))

    return Function(run, body=nn.Linear(6, 8), out=nn.Linear(8, CLASSES))


def per_position() -> nn.Module:
    """Linear over the positions, so that samples are neither first nor last but one."""

    def run(m, x):
        return m.out(torch.tanh(m.mix(x.permute(1, 2, 0))).flatten(1))

    return Function(run, mix=nn.Linear(SAMPLES, 4), out=nn.Linear(24, CLASSES))


SECOND = [recurrent, encoder, cross_attention, convolved, flattened, per_position]


@pytest.mark.parametrize("build", SECOND, ids=lambda build: build.__name__)
def test_a_sample_alone(build):
    """Its dimension looks like any other of one entry, wherever reshapes put that."""
    torch.manual_seed(0)
    model = build().double()
    x, labels = sequences(SAMPLES, 1, 6), torch.randint(CLASSES, (1,))
    with capture(model, EVERYTHING, batch_dim=1) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert_statistics(stats, loop_over(model, x, labels, 1), model)


def loop_over(model, x, labels, dim):
    """The gradients of each sample's own loss, the samples in dimension ``dim``."""
    rows = []
    for b in range(len(labels)):
        loss = F.cross_entropy(model(x.narrow(dim, b, 1)), labels[b : b + 1])
        names, parameters = zip(*model.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, parameters)
        rows.append(dict(zip(names, grads, strict=True)))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("build", SECOND, ids=lambda build: build.__name__)
def test_samples_in_the_second_dimension(build):
    torch.manual_seed(0)
    model, x = build().double(), sequences(SAMPLES, SAMPLES, 6)  # T = B = E
    labels = torch.arange(SAMPLES) % CLASSES
    rows = loop_over(model, x, labels, 1)
    with capture(model, EVERYTHING, batch_dim=1) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert not stats.unsupported
    assert_statistics(stats, rows, model)


@pytest.mark.parametrize(
    "build", [overwritten, put_together, normed], ids=lambda build: build.__name__
)
def test_samples_in_the_first_dimension(build):
    torch.manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    check(build().double(), (sequences(SAMPLES, SAMPLES, 6),), labels)


def _shifted(tokens):
    shifted = tokens.new_zeros(tokens.shape)
    shifted[:, 1:] = tokens[:, :-1].clone()
    return shifted


def _first_masked(tokens):
    masked = tokens.clone()
    masked[:, 1] = 0
    return masked.masked_fill_(tokens == 2, 1)


def _chosen(tokens):
    chosen = torch.zeros_like(tokens)
    chosen.view(-1).copy_(tokens.view(-1))
    return chosen


@pytest.mark.parametrize("write", [_shifted, _first_masked, _chosen])
def test_tokens_that_are_written_in_place(write):
    torch.manual_seed(0)
    model = Function(
        lambda m, tokens: m.out(m.table(write(tokens)).mean(1)),
        table=nn.Embedding(5, 6),
        out=nn.Linear(6, CLASSES),
    )
    labels = torch.arange(SAMPLES) % CLASSES
    check(model.double(), (torch.randint(5, (SAMPLES, 7)),), labels)


def test_the_wrong_dimension_is_another_question():
    """With T = B nothing but ``batch_dim`` says which is meant."""
    torch.manual_seed(0)
    model, x = flattened().double(), sequences(SAMPLES, SAMPLES, 6)
    labels = torch.arange(SAMPLES) % CLASSES
    found = []
    for dim in (0, 1):
        with capture(model, {"sample_sq_norm"}, batch_dim=dim, strict=False) as stats:
            F.cross_entropy(model(x), labels).backward()
        found.append(stats.sample_sq_norm if not stats.unsupported else None)
        model.zero_grad()
    assert found[1] is not None
    assert found[0] is None or error(found[0], found[1]) > 0.01


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_units_of_samples_in_any_dimension(dim):
    torch.manual_seed(0)

    def run(m, x):
        z = torch.tanh(m.body(x.movedim(dim, 0).flatten(2))).mean(1)
        return m.out(z)

    model = Function(run, body=nn.Linear(5, 8), out=nn.Linear(8, CLASSES)).double()
    x = sequences(4, SAMPLES, 5).movedim(1, dim)
    labels = torch.arange(SAMPLES) % CLASSES
    rows = loop_over(model, x, labels, dim)
    with capture(model, EVERYTHING, batch_dim=dim, unit=2) as stats:
        F.cross_entropy(model(x), labels).backward()
    assert_statistics(stats, rows, model, unit=2)


def test_inputs_without_the_dimension_are_refused():
    model = nn.Linear(4, 3)
    with pytest.raises(InputError, match="number of samples in dimension 2"):  # noqa: SIM117
        with capture(model, batch_dim=2):
            model(torch.randn(5, 4))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs_are_refused(layout):
    model = nn.Linear(4, 3)
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    with pytest.raises(InputError, match="inputs: .* got a nested tensor"), capture(model):
        model(x)


def interleaved_towers() -> nn.Module:
    """Two views of each sample beside each other: b0 left, b0 right, b1 left, ..."""

    def run(m, x):
        both = torch.stack([x[..., :3], x[..., 3:]], 1).flatten(0, 1)
        left, right = m.encode(both).unflatten(0, (-1, 2)).unbind(1)
        return m.out(left * right)

    encode = nn.Sequential(nn.Conv2d(6, 5, 3), nn.GroupNorm(1, 5), nn.Tanh(), nn.Flatten())
    return Function(run, encode=encode, out=nn.Linear(5 * 4, CLASSES))


def repeated_towers() -> nn.Module:
    """Every sample three times, each time with another bias, as beams or augmentations are."""

    def run(m, x):
        beams = x.repeat_interleave(3, 0).unflatten(0, (-1, 3)) + m.shift[:, None, None, None]
        z = torch.tanh(m.conv(beams.flatten(0, 1))).mean((2, 3))
        return m.out(z.view(-1, 3, 5).amax(1))

    return Function(
        run, shift=nn.Parameter(torch.randn(3)), conv=nn.Conv2d(6, 5, 3), out=nn.Linear(5, CLASSES)
    )


def time_distributed() -> nn.Module:
    """The rows of the image as a video of one-dimensional frames, folded into the batch."""

    def run(m, x):
        frames = x.transpose(1, 2)  # [B, H, C, W] with H = C = B
        z = torch.tanh(m.conv(frames.reshape(-1, *frames.shape[2:])))
        z = z.unflatten(0, (-1, frames.shape[1])).mean(3)
        return m.out(z.flatten(1))

    return Function(run, conv=nn.Conv1d(6, 4, 3), out=nn.Linear(24, CLASSES))


def axial_attention() -> nn.Module:
    """Attention along rows, then along columns, the other one folded into the batch."""

    def run(m, x):
        z = x.permute(0, 2, 3, 1)
        z = m.along(z.flatten(0, 1)).view(z.shape)
        z = z.transpose(1, 2)
        z = m.across(z.reshape(-1, *z.shape[2:])).view(z.shape)
        return m.out(z.mean((1, 2)))

    return Function(
        run, out=nn.Linear(6, CLASSES),
        along=nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
        across=nn.TransformerEncoderLayer(6, 3, 8, dropout=0.0, batch_first=True),
    )  # fmt: skip


def samples_last() -> nn.Module:
    """A linear layer applied from the left: ``W @ x.t()``."""

    def run(m, x):
        z = torch.tanh(m.weight @ x.flatten(1).t() + m.bias[:, None])
        return m.out(z.t())

    return Function(
        run, weight=nn.Parameter(0.1 * torch.randn(7, 216)), bias=nn.Parameter(torch.randn(7)),
        out=nn.Linear(7, CLASSES),
    )  # fmt: skip


FOLDED = [interleaved_towers, repeated_towers, time_distributed, axial_attention, samples_last]


@pytest.mark.parametrize("build", FOLDED, ids=lambda build: build.__name__)
def test_samples_folded_into_other_dimensions(build):
    torch.manual_seed(0)
    model, x = build().double(), sequences(SAMPLES, 6, 6, 6)  # channels and sizes are B as well
    check(model, (x,), torch.arange(SAMPLES) % CLASSES)


def initial_state() -> nn.Module:
    """A recurrent layer whose state of zeros has a row a sample."""

    def run(m, x):
        zeros = x.new_zeros(1, len(x), 7)
        return m.out(m.cell(x, (zeros, zeros))[0][:, -1])

    return Function(run, cell=nn.LSTM(6, 7, batch_first=True), out=nn.Linear(7, CLASSES))


def learned_state() -> nn.Module:
    """A parameter, repeated for each sample, as the state that a recurrent layer begins with."""

    def run(m, x):
        return m.out(m.cell(x, m.state.expand(1, len(x), 7).contiguous())[0][:, -1])

    return Function(
        run, cell=nn.GRU(6, 7, batch_first=True), state=nn.Parameter(torch.randn(1, 1, 7)),
        out=nn.Linear(7, CLASSES),
    )  # fmt: skip


def learned_queries() -> nn.Module:
    """A parameter, repeated for each sample, attends to the samples' tokens."""

    def run(m, x):
        queries = m.queries.expand(len(x), -1, -1)
        return m.out(m.attention(queries, x, x, need_weights=False)[0].mean(1))

    return Function(
        run, queries=nn.Parameter(torch.randn(1, 4, 6)), out=nn.Linear(6, CLASSES),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
    )  # fmt: skip


SPREAD = [initial_state, learned_state, learned_queries]


@pytest.mark.parametrize("build", SPREAD, ids=lambda build: build.__name__)
def test_constants_that_are_spread_over_the_samples(build):
    torch.manual_seed(0)
    model, x = build().double(), sequences(SAMPLES, SAMPLES, 6)
    check(model, (x,), torch.arange(SAMPLES) % CLASSES)
