"""The NumPy entry: the same numbers as the ops, and errors instead of reads past an end."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from sigeo_ext import moments
from tests.cases import LAYERS, needs_kernels, tensors

host = pytest.importorskip("sigeo_ext.moments.host", reason="needs the compiled package")


@needs_kernels
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_host_equals_ops_bit_for_bit(layers, dtype):
    units = [tensors(layers, dtype, seed=i) for i in range(4)]
    arrays = [[g.numpy() for g in grads] for grads in units]
    weights = tensors(layers, seed=9)
    theta = [w.numpy() for w in weights]
    expected = moments.rows_summary(units, weights=weights, ddof=1)
    for got, values in zip(host.rows_summary(arrays, weights=theta, ddof=1), expected, strict=True):
        assert np.array_equal(got, values.numpy())
    state = [[np.full(shape, np.nan, np.float32) for shape in layers] for _ in range(3)]
    judge = [[torch.full(shape, torch.nan) for shape in layers] for _ in range(3)]
    for count in range(4):
        host.update_(*state, arrays[count], count=count)
        moments.update_(*judge, units[count], count=count)
    for values, tensors_ in zip(state, judge, strict=True):
        assert all(np.array_equal(a, t.numpy()) for a, t in zip(values, tensors_, strict=True))
    expected = moments.summary(*judge, count=4, weights=weights)
    for got, values in zip(host.summary(*state, count=4, weights=theta), expected, strict=True):
        assert np.array_equal(got, values.numpy())


def test_arrays_that_were_unpickled_serve():
    a = pickle.loads(pickle.dumps([np.ones(4, np.float32), np.zeros(4, np.float32)]))
    assert host.rows_summary([[a[0]], [a[1]]]).kept == 4


def test_bad_arrays_are_refused():
    a = np.ones(4, np.float32)
    cases = [
        (lambda: host.rows_summary([[a], [a[:3]]]), r"rows\[1\] must have as many values"),
        (lambda: host.rows_summary([[a], [a, a]]), r"every unit must hold one array a layer"),
        (
            lambda: host.rows_summary([[a.astype(np.int32)]] * 2),
            r"rows\[0\] must be float16, float32 or float64",
        ),
        (
            lambda: host.rows_summary([[np.ones(8, np.float32)[::2]]] * 2),
            r"rows\[0\] must be C-contiguous",
        ),
        (lambda: host.rows_summary([[a]] * 5), r"at most 4 units, got 5"),
        (lambda: host.rows_summary([]), r"ddof must be at least 0 and below the 0 units, got 0"),
        (lambda: host.rows_summary([[a], [a]], weights=[a, a]), r"one array a layer"),
        (lambda: host.update_([a], [a], [a], [a], count=-1), r"count must be at least 0, got -1"),
        (lambda: host.update_([a], [a], [a], [], count=0), r"one array a layer"),
        (lambda: host.update_([a], [a.astype(np.float64)], [a], [a], count=0), r"one dtype"),
        (lambda: host.summary([a], [a], [a], count=1, ddof=1), r"ddof must be"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    frozen = np.ones(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"mean\[0\] must be writeable"):
        host.update_([a], [frozen], [a], [a], count=0)


def test_what_is_no_array_is_named():
    a = np.ones(4, np.float32)
    with pytest.raises(TypeError, match=r"summary: mean\[0\] must be an array, got a tensor"):
        host.summary([a], [torch.ones(4)], [a], count=2)
    with pytest.raises(TypeError, match="moments.host.summary: count must be an int, got str"):
        host.summary([a], [a], [a], count="2")
    with pytest.raises(TypeError, match="update_: grads must be a list of arrays, got ndarray"):
        host.update_([a], [a], [a], a, count=2)


def test_build_and_cpu_information():
    from sigeo_ext import _host

    assert set(_host.build_info()) == {"compiler", "cplusplus", "cuda"}
    assert _host.cpu_info()["hardware_threads"] >= 1
    arrays = [np.arange(1001, dtype=np.float32) for _ in range(4)]
    _host.stream(*arrays, threads=3)
    assert np.array_equal(arrays[0], 2 * arrays[3]) and np.array_equal(arrays[2], 2 * arrays[3])
