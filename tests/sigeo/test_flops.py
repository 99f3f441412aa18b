"""Multiply-adds of layers that are one call."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sigeo


class Dotted(nn.Module):
    """The two products of attention in one function, by kernels of its own choice if it has one."""

    def __init__(self, chosen=contextlib.nullcontext):
        super().__init__()
        self.chosen = chosen

    def forward(self, x):
        heads = x[:, None]
        with self.chosen():
            return (F.scaled_dot_product_attention(heads, heads, heads)[:, 0],)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # Of 5 tokens of 4: queries, keys and values, both products of attention, the output.
        (nn.MultiheadAttention(4, 2, batch_first=True), 5 * 4 * 12 + 2 * 5 * 5 * 4 + 5 * 4 * 4),
        (Dotted(), 2 * 5 * 5 * 4),
        (Dotted(lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)), 2 * 5 * 5 * 4),
        (nn.LSTM(4, 3, batch_first=True), 5 * 4 * 3 * (4 + 3)),
        (nn.GRU(4, 3, batch_first=True), 5 * 3 * 3 * (4 + 3)),
    ],
    ids=["attention", "products of attention", "kernel of its own choice", "LSTM", "GRU"],
)
def test_flops_of_layers_that_torch_runs_in_one_piece(layer, expected):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            query = (x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (x,)
            return self.layer(*query)[0].mean(1)

    fast = torch.backends.mha.get_fastpath_enabled()
    batches = [(torch.randn(2, 5, 4), torch.zeros(2, dtype=torch.long))]
    assert sigeo.score(Model(), batches, ["flops"])["flops"].value == expected
    assert torch.backends.mha.get_fastpath_enabled() == fast
