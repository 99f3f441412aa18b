"""Streams of torch's random numbers, one a subnet, that go on where they were left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

State = tuple[torch.Tensor, ...]


class Streams:
    """Torch's generator of a device as each of several takers sees it.

    All streams begin where the generator stands when the object is made, as if every taker were the
    only one.
    """

    def __init__(self, device: torch.device, count: int):
        """Begin where the generator is now.

        Args:
            device: Whose generator, the CPU's always along with it.
            count: Number of takers.
        """
        self._device = device
        self._states = [self._now()] * count

    def copy(self) -> Streams:
        """Other streams that stand where these do."""
        other = Streams(self._device, 0)
        other._states = list(self._states)
        return other

    @contextlib.contextmanager
    def of(self, taker: int) -> Iterator[None]:
        """Let the generator be that of one taker; behind the block it is as before.

        Args:
            taker: Its number.

        Yields:
            Once, when it is so.
        """
        others = self._now()
        self._set(self._states[taker])
        try:
            yield
        finally:
            self._states[taker] = self._now()
            self._set(others)

    def moved(self, taker: int) -> bool:
        """Whether the generator stands elsewhere now than that of one taker."""
        pairs = zip(self._states[taker], self._now(), strict=True)
        return not all(torch.equal(before, now) for before, now in pairs)

    def _now(self) -> State:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return tuple(states)

    def _set(self, state: State) -> None:
        torch.set_rng_state(state[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self._device)
