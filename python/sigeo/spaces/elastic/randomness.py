"""A stream of torch's random numbers that goes on where it was left."""

from __future__ import annotations

from types import TracebackType

import torch


class Randomness:
    """Torch's generator of a device as one of several takers sees it.

    Inside the ``with`` block the generator stands where the last block of this object left it, at
    first where it stood when the object was made. Behind the block it is as before.
    """

    def __init__(self, device: torch.device):
        """Begin where the generator is now.

        Args:
            device: Whose generator, the CPU's always along with it.
        """
        self._device = device
        self._own = self._states()
        self._others = self._own

    def __enter__(self) -> Randomness:
        """Go on with this stream."""
        self._others = self._states()
        self._set(self._own)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the stream."""
        self._own = self._states()
        self._set(self._others)

    def _states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
