"""How many rows of signs are distinct, exactly and without a matrix of all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo_ext import gram


def sign_words(values: Tensor) -> Tensor:
    """Which values are above zero, 64 to a number: ``[rows, ...]`` to int64 [rows, words]."""
    codes = gram.pack_signs(values)
    return F.pad(codes, (0, -codes.shape[1] % 8)).view(torch.int64)


def number_rows(words: Tensor, before: Tensor | None = None) -> Tensor:
    """Numbers from 0 that are equal where rows are, int64 [rows].

    A sort of numbers for each column: a sort of rows (``words.unique(dim=0)``) takes thirty times
    as long.

    Args:
        words: int64 [rows, words].
        before: The same of columns that came before: rows are equal if those are as well.
    """
    numbers = torch.zeros(len(words), dtype=torch.int64, device=words.device)
    count = 1
    if before is not None:
        numbers, count = before, count_rows(before)
    for column in words.unbind(1):
        if count == len(words):  # all distinct already
            break
        values, places = column.unique(return_inverse=True)
        pairs = numbers * len(values) + places  # below rows squared
        values, numbers = pairs.unique(return_inverse=True)
        count = len(values)
    return numbers


def count_rows(numbers: Tensor) -> int:
    """How many distinct rows there are, by what `number_rows` gave."""
    return int(numbers.max()) + 1 if len(numbers) else 0
