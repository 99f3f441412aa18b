"""Two processes over gloo against one that has all samples."""

from __future__ import annotations

import copy
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sigeo import InputError
from sigeo.capture import all_reduce, capture, fisher_trace, ntk

EVERYTHING = {"sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sample_sq_norm", "fisher_rao"}
SIZES = (3, 5)


class Model(nn.Module):
    """A table, convolutions with a norm, and a layer that only some samples reach."""

    def __init__(self):
        super().__init__()
        self.table, self.tied = nn.Embedding(40, 8), nn.Embedding(6, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())
        self.sometimes, self.out = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, rows, few):
        z = self.body(self.table(rows).mean(1) + self.tied(few))
        y = self.out(z) + F.linear(z, self.tied.weight)
        return y + self.sometimes(z) if int(rows.min()) == 0 else y


def made():
    torch.manual_seed(0)
    model = Model().double()
    rows = torch.randint(1, 40, (sum(SIZES), 2))
    rows[0, 0] = 0  # of rank 0
    few, labels = torch.randint(0, 6, (2, sum(SIZES)))
    return model, (rows, few), labels


def close(actual, expected):
    assert actual.is_sparse == expected.is_sparse
    if actual.is_sparse:
        actual, expected = actual.to_dense(), expected.to_dense()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def own_part(rank):
    start = sum(SIZES[:rank])
    return slice(start, start + SIZES[rank])


def joint(model, inputs, labels, want):
    with capture(model, want, grads=False) as stats:
        F.cross_entropy(model(*inputs), labels).backward()
    return stats


def check_combined(rank):
    model, inputs, labels = made()
    model.sometimes.requires_grad_(False)
    model.sometimes.weight.zero_()
    model.sometimes.bias.zero_()
    expected = joint(model, inputs, labels, EVERYTHING)
    part = own_part(rank)
    for grads in (True, False):
        wrapped = DistributedDataParallel(copy.deepcopy(model), gradient_as_bucket_view=True)
        with capture(wrapped, EVERYTHING, grads=grads) as own:
            F.cross_entropy(wrapped(*(x[part] for x in inputs)), labels[part]).backward()
        alone = joint(model, [x[part] for x in inputs], labels[part], EVERYTHING)
        got = all_reduce(own)
        assert own.units == SIZES[rank] and got.units == sum(SIZES)
        assert list(got) == got.keys() == [f"module.{name}" for name in expected]
        assert not got.unsupported
        for name in expected:
            for field in ("sum", "abs_sum", "sq_sum", "m2", "sign_sum", "sq_norm"):
                mine = getattr(own[f"module.{name}"], field)
                close(mine, getattr(alone[name], field))
                close(getattr(got[f"module.{name}"], field), getattr(expected[name], field))
        close(got.sample_sq_norm, expected.sample_sq_norm)
        close(got.fisher_rao, expected.fisher_rao)
        assert got["module.table.weight"].m2.is_sparse
        with pytest.raises(InputError, match="gram was not asked for"):
            _ = got.gram
        with pytest.raises(KeyError, match="not among the parameters"):
            got["out.weight"]


def check_gradients(rank):
    """The wrapper's gradients are as without capture; those that are there stay as they are."""
    model, inputs, labels = made()
    model.sometimes.requires_grad_(False)
    inputs, labels = [x[own_part(rank)] for x in inputs], labels[own_part(rank)]
    plain, wrapped = (
        DistributedDataParallel(copy.deepcopy(model), gradient_as_bucket_view=True)
        for _ in range(2)
    )
    F.cross_entropy(plain(*inputs), labels).backward()
    with capture(wrapped, {"abs_sum"}):
        F.cross_entropy(wrapped(*inputs), labels).backward()
    with capture(wrapped, {"sample_sq_norm"}, grads=False):
        F.cross_entropy(wrapped(*inputs), labels).backward()
    for p, q in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert p.grad is None or float(p.grad.abs().sum()) > 0
        torch.testing.assert_close(p.grad, q.grad)
    with capture(wrapped, {"abs_sum"}):  # and it goes on as before
        F.cross_entropy(wrapped(*inputs), labels).backward()
    for p, q in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(p.grad if p.grad is None else 2 * p.grad, q.grad)


def check_nothing_waits_for_others(rank):
    """What asks for no gradient does as many passes as a process likes."""
    model, inputs, labels = made()
    model.add_module("buffered", nn.BatchNorm1d(3))
    model.sometimes.requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    batches = [(tuple(x[own_part(rank)] for x in inputs), labels[own_part(rank)])] * (1 + rank)
    assert fisher_trace(wrapped, batches) == fisher_trace(model, batches)
    assert fisher_trace(wrapped, batches, estimator="signs") > 0
    for outputs in ("sum", "full")[: 1 + rank]:
        ntk(wrapped, batches[0][0], outputs=outputs)


def check_not_reached(rank):
    """A layer whose samples are all on one process; and its statistics are dense there alone."""
    model, inputs, labels = made()
    part = own_part(rank)
    with capture(model, EVERYTHING, grads=False) as own:
        F.cross_entropy(model(*(x[part] for x in inputs)), labels[part]).backward()
    got = all_reduce(own)["sometimes.weight"]
    mean = own["sometimes.weight"].sum.clone()
    dist.broadcast(mean, 0)
    close(got.sum, mean)
    m2 = own["sometimes.weight"].m2.clone()
    dist.broadcast(m2, 0)
    n, m = SIZES
    close(got.m2, m2 + n * m / (n + m) * (mean / n) ** 2)
    assert (got.sq_norm[n:] == 0).all() and (got.sq_norm[:n] > 0).all()


def check_sparse_and_dense(rank):
    """A table that is looked up once on one process and twice on the other."""
    torch.manual_seed(0)
    table, x = nn.Embedding(9, 3).double(), torch.randint(0, 9, (4, 2))
    found = []
    for often in (1, 2):
        with capture(table, {"sum", "m2"}, reduction="sum", grads=False) as own:
            sum(table(x).square().sum() for _ in range(often)).backward()
        found.append(own)
    assert found[0]["weight"].sum.is_sparse and not found[1]["weight"].sum.is_sparse
    got = all_reduce(found[rank])["weight"]
    single = found[0]["weight"]
    close(got.sum, 3 * single.sum.to_dense())
    mean = single.sum.to_dense() / 4
    close(got.m2, 5 * single.m2.to_dense() + 8 * (mean / 2) ** 2)


def check_refusals(rank):
    model, x = nn.Linear(4, 3), torch.randn(2, 4)

    def measured(model, want, **options):
        with capture(model, want, **options) as own:
            model(x).sum().backward()
        return own

    with pytest.raises(InputError, match="gram has products of samples on different processes"):
        all_reduce(measured(model, {"gram", "sum"}))
    with pytest.raises(InputError, match="rank 1: m2 .* want must have sum beside it"):
        all_reduce(measured(model, {("sum", "m2")[rank]}))
    with capture(model, {"sum"}) as own:
        loss = model(x).sum()
        if rank == 0:
            loss.backward()
    with pytest.raises(InputError, match="all_reduce: rank 1: capture: no backward pass in"):
        all_reduce(own)
    with pytest.raises(InputError, match=r"rank 0 measured \['sum'\], rank 1 \['abs_sum'\]"):
        all_reduce(measured(model, {("sum", "abs_sum")[rank]}))
    other = nn.Sequential(model) if rank else model
    with pytest.raises(InputError, match="ranks 0 and 1 differ in 0.bias"):
        all_reduce(measured(other, {"sum"}))


def check_unsupported(rank):
    class Mixing(nn.Module):
        def __init__(self, mixes):
            super().__init__()
            self.first, self.second, self.mixes = nn.Linear(4, 4), nn.Linear(4, 3), mixes

        def forward(self, x):
            z = self.first(x)
            return self.second(z.flip(0) if self.mixes else z)

    model, x = Mixing(mixes=rank == 1), torch.randn(2, 4)
    with capture(model, {"sum"}, strict=False) as own:
        model(x).sum().backward()
    got = all_reduce(own)
    assert got.keys() == ["first.weight", "first.bias"]
    assert set(got.unsupported) == {"second.weight", "second.bias"}
    with pytest.raises(KeyError, match="along the samples"):
        got["second.weight"]


CHECKS = [
    check_combined, check_gradients, check_nothing_waits_for_others, check_not_reached,
    check_sparse_and_dense, check_refusals, check_unsupported,
]  # fmt: skip


def run(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=rank,
        world_size=len(SIZES),
        timeout=timedelta(seconds=60),
    )
    for check in CHECKS:
        check(rank)
        dist.barrier()
    dist.destroy_process_group()
    os._exit(
        0
    )  # all checks have passed; threads of torch's may abort an orderly end of the process


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(run, (tmp_path / "meeting",), nprocs=len(SIZES))


def test_one_process_group_is_needed():
    with capture(nn.Linear(4, 3)) as own:
        pass
    with pytest.raises(InputError, match="all_reduce: expected a process group, got none"):
        all_reduce(own)
