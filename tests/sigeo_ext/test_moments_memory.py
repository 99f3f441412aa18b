"""The moments ops whatever the order, place and age of memory, and the number of threads."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sigeo_ext import moments
from sigeo_ext.testing import assert_close, poison_empty, threads
from tests.cases import DTYPES, LAYERS, needs_kernels, tensors
from tests.sigeo_ext.moments_definition import new_state, streamed, unit

pytestmark = pytest.mark.filterwarnings("error")


def test_any_order_in_memory_gives_the_same(device):
    shape = (6, 4, 3, 5)
    channels_last = torch.channels_last
    units = [unit([shape], i, device=device)[0] for i in range(5)]
    wide = torch.zeros(6, 8, 3, 5, device=device)
    wide[:, ::2] = units[2]
    mixed = [
        units[0].to(memory_format=channels_last),
        units[1],
        wide[:, ::2],
        units[3].transpose(0, 3).contiguous().transpose(0, 3),
        units[4].expand(2, *shape)[1],
    ]
    weight = unit([shape], 9, device=device)[0]
    plain = streamed([shape], [[g] for g in units], device=device)
    state = tuple(
        [
            torch.full(shape, torch.nan, dtype=torch.float64, device=device).to(
                memory_format=channels_last
            )
        ]
        for _ in range(3)
    )
    for count, g in enumerate(mixed):
        moments.update_(*state, [g], count=count)
    for values, expected in zip(state, plain, strict=True):
        assert torch.equal(values[0], expected[0])
    assert_close(
        torch.stack(moments.rows_summary([[g] for g in mixed[:4]], weights=[weight])),
        torch.stack(moments.rows_summary([[g] for g in units[:4]], weights=[weight])),
    )
    assert_close(moments.dot([mixed[0]], [mixed[3]]), moments.dot([units[0]], [units[3]]))


def test_outputs_are_written_whole(device):
    layers = LAYERS["chunks"]
    units = [unit(layers, i, device=device) for i in range(4)]
    weights = tensors(layers, device=device)
    with poison_empty():
        state = tuple([torch.empty_like(w) for w in weights] for _ in range(3))
        assert all(t.isnan().all() for values in state for t in values)
        moments.update_(*state, units[0], count=0)
        assert not any(t.isnan().any() for values in state for t in values)
        state = tuple(
            values if i == 1 else [torch.empty_like(w) for w in weights]
            for i, values in enumerate(state)
        )
        moments.update_(*state, units[1], count=1)
        assert not any(t.isnan().any() for values in state for t in values)
        results = [
            *moments.summary(*state, count=2, weights=weights),
            *moments.summary(*state, count=2, grads=units[2]),
            *moments.rows_summary(units, weights=weights),
            moments.dot(*units[:2]),
            moments.row_dots(units[0][0], units[1][0]),
            *itertools.chain(*moments.update(*state, units[2], count=2)),
        ]
    assert not any(t.isnan().any() for t in results)


@needs_kernels
def test_same_bits_whatever_the_threads():
    layers = LAYERS["chunks"]
    units = [unit(layers, i) for i in range(4)]
    weights = tensors(layers)

    def everything() -> list[Tensor]:
        state = streamed(layers, units, torch.float32)
        return [
            *itertools.chain(*state),
            *moments.summary(*state, count=4, weights=weights),
            *moments.summary(*state, count=4, grads=units[0], weights=weights),
            *moments.rows_summary(units, weights=weights),
            moments.dot(units[0], weights),
            *(moments.row_dots(g, w) for g, w in zip(units[0], weights, strict=True) if g.dim()),
        ]

    with threads(1):
        first = everything()
    for count in (1, 2, 3, 4):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


def test_same_bits_on_cpu_and_cuda_for_each_coordinate():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layers = LAYERS["chunks"]
    on_cpu = streamed(layers, [unit(layers, i) for i in range(5)], torch.float32)
    units = [unit(layers, i, device="cuda") for i in range(5)]
    on_gpu = streamed(layers, units, torch.float32, "cuda")
    for a, b in zip(itertools.chain(*on_cpu), itertools.chain(*on_gpu), strict=True):
        assert torch.equal(a, b.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_is_not_aligned_gives_the_same(dtype, device):
    layers = [(1001,), (17, 3)]

    def shifted(values):
        moved = []
        for value in values:
            wide = torch.empty(value.numel() + 1, dtype=value.dtype, device=device)
            wide[1:] = value.flatten()
            moved.append(wide[1:].view(value.shape))
        return moved

    units = [unit(layers, i, dtype, device=device) for i in range(4)]
    odd = [shifted(grads) for grads in units]
    plain, moved = (moments.rows_summary(rows, weights=rows[0]) for rows in (units, odd))
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))
    expected, state = (
        streamed(layers, units, torch.float32, device),
        new_state(layers, torch.float32),
    )
    state = tuple(shifted(values) for values in state)
    for count, grads in enumerate(odd):
        moments.update_(*state, grads, count=count)
    for values, judge in zip(state, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(values, judge, strict=True))
