"""Batches as they come from a user, and as a model takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture.state import device_of
from sigeo.errors import InputError

MemoryFormat = Literal["auto", "preserve", "channels_last"]


class Batches:
    """The batches of one measurement, on the model's device, gone through any number of times."""

    def __init__(
        self,
        batches: Iterable[Any],
        model: nn.Module,
        device: torch.device,
        memory_format: MemoryFormat = "auto",
    ):
        """Keep the batches; an iterator is read to its end first.

        Args:
            batches: Pairs (inputs, labels), or inputs alone. Inputs are one tensor, a tuple of
                positional or a dict of keyword arguments of the model.
            model: Decides what "auto" means.
            device: Where inputs and labels go.
            memory_format: "channels_last" for images [B, C, H, W] in that order, "preserve" as
                they come, "auto": channels_last on a CPU if the model has 2-d convolutions.

        Raises:
            InputError: There is no batch.
        """
        self._batches = batches if isinstance(batches, Sequence) else list(batches)
        if not self._batches:
            raise InputError("batches: expected at least one, got none")
        convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
        self._channels_last = memory_format == "channels_last" or (
            memory_format == "auto" and device.type == "cpu" and convolves
        )
        self._device = device

    @classmethod
    def of(
        cls, batches: Iterable[Any] | Batches, model: nn.Module, memory_format: MemoryFormat
    ) -> Batches:
        """``batches`` if they are `Batches` already, else made so for the model."""
        if isinstance(batches, Batches):
            return batches
        return cls(batches, model, device_of(model), memory_format)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    @property
    def labelled(self) -> bool:
        """Whether the first batch comes with labels."""
        return _split(self._batches[0])[1] is not None

    def __getitem__(self, index: int) -> tuple[Any, Tensor | None]:
        """Inputs and labels of one batch, where and how the model takes them."""
        inputs, labels = _split(self._batches[index])
        return self._place(inputs), None if labels is None else labels.to(self._device)

    def _place(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return {name: self._place(value) for name, value in inputs.items()}
        if isinstance(inputs, (tuple, list)):
            return tuple(self._place(value) for value in inputs)
        if not isinstance(inputs, Tensor):
            return inputs
        placed = inputs.to(self._device)
        if self._channels_last and placed.dim() == 4 and placed.is_floating_point():
            return placed.contiguous(memory_format=torch.channels_last)
        return placed


def _split(batch: Any) -> tuple[Any, Tensor | None]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for the inputs of one batch."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
