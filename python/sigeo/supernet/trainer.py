"""One step of SGD after another, that can stop after any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sigeo.capture.state import device_of
from sigeo.supernet.checkpoint import TrainingState
from sigeo.supernet.settings import Batch, Training


class Trainer:
    """Takes the steps of a training; can stop after any step and go on from its state."""

    def __init__(
        self,
        module: nn.Module,
        backward: Callable[[Batch, int], Tensor],
        config: Training,
    ):
        """Set up the optimiser.

        Args:
            module: Whose parameters are trained.
            backward: (batch, step) to the loss; adds its gradients to the parameters'.
            config: The training.
        """
        self.module, self.backward, self.config = module, backward, config
        self.parameters = dict(module.named_parameters())
        self.optimizer = torch.optim.SGD(
            self._groups(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
        self.step = 0

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by factor of the step size and by weight decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            factors = (factor for prefix, factor in self.config.scales if name.startswith(prefix))
            decays = self.config.decay_norms or parameter.dim() > 1
            key = next(factors, 1.0), self.config.weight_decay if decays else 0.0
            groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ]

    def take(self, batch: Batch) -> Tensor:
        """Train on one batch; returns its loss, not synchronised."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self.config.lr_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.autocast is None:
            loss = self.backward(batch, self.step)
        else:
            with torch.autocast(device_of(self.module).type, torch.bfloat16):
                loss = self.backward(batch, self.step)
        if self.config.clip is not None and self.config.clip_by == "norm":
            nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        elif self.config.clip is not None:
            nn.utils.clip_grad_value_(self.parameters.values(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        return loss

    def state(self) -> TrainingState:
        """Weights, momentum and number of steps, not copied."""
        momentum = {
            name: buffer
            for name, parameter in self.parameters.items()
            if (buffer := self.optimizer.state[parameter].get("momentum_buffer")) is not None
        }
        return TrainingState(self.step, dict(self.module.state_dict()), momentum)

    def resume(self, state: TrainingState) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: It has momentum of other parameters.
        """
        self.step = state.step
        self.module.load_state_dict(state.weights)
        for name, buffer in state.momentum.items():
            parameter = self.parameters.get(name)
            if parameter is None or parameter.shape != buffer.shape:
                raise ValueError(f"momentum of {name} {list(buffer.shape)}, which is no parameter")
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
