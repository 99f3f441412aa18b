"""The truth of a small space: every architecture trained alone, several times, and tabulated.

For spaces and data that no benchmark table covers. Each training is kept as soon as it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sigeo.capture import image_format
from sigeo.data import ImageData
from sigeo.errors import InputError
from sigeo.kinds import check_fields, named_arguments
from sigeo.scoring.devices import parse_device
from sigeo.scoring.export import indices
from sigeo.spaces import SearchSpace
from sigeo.store import Record, RunStore
from sigeo.supernet import Source, WarmUp, warm_up_alone
from sigeo.tables import noise_ceiling

_EVALUATED = 256  # images of one batch


@dataclass(frozen=True)
class Standalone:
    """How architectures are trained alone.

    Attributes:
        training: The training, on the first of the training images in each run's own order.
        runs: Trainings of an architecture, with the seeds from ``seed`` on.
        seed: Of the first run: weights and order of images.
        device: Where.
    """

    training: WarmUp
    runs: int = 3
    seed: int = 0
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        """Check the settings, each by itself.

        Raises:
            InputError: One is of another kind, or there is no such device.
        """
        check_fields(self, "standalone")
        parse_device(self.device)


@dataclass(frozen=True)
class Measurements:
    """Test accuracies in percent.

    Attributes:
        archs: The architectures.
        accuracy: [architectures, runs].
    """

    archs: tuple[Any, ...]
    accuracy: np.ndarray[tuple[int, int], np.dtype[np.float64]]

    @property
    def noise(self) -> float:
        """Standard deviation between runs of an architecture, pooled; NaN for one run."""
        if self.accuracy.shape[1] < 2:
            return float("nan")
        return float(np.sqrt(self.accuracy.var(axis=1, ddof=1).mean()))

    @property
    def ceiling(self) -> float:
        """Kendall's tau between runs; NaN for one run."""
        if self.accuracy.shape[1] < 2:
            return float("nan")
        return noise_ceiling(list(self.accuracy.T))


def settings(space: SearchSpace[Any], data: ImageData, protocol: Standalone) -> dict[str, Any]:
    """All that a training depends on beside architecture and run, as JSON can hold it."""
    return {
        "standalone": 1,
        "space": space.describe(),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "test": len(data.test),
            "test_fingerprint": data.test_fingerprint,
        },
        "training": protocol.training.describe(),
        "device": torch.device(protocol.device).type,
    }


@named_arguments("measure")
def measure(
    space: SearchSpace[Any],
    data: ImageData,
    archs: Sequence[Any],
    protocol: Standalone,
    store: RunStore,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Measurements:
    """Train architectures alone and take their test accuracies.

    Architectures that are the same network share their trainings.

    Args:
        space: Theirs.
        data: With test images.
        archs: The architectures.
        protocol: How.
        store: Of the protocol's `settings`; what it holds is not trained again.
        progress: Called with (trainings done, trainings in all).

    Raises:
        InputError: No test images, no run, or no training step.
    """
    if len(data.test) == 0:
        raise InputError(f"data: expected test images, {data.name} has none")
    if protocol.runs < 1 or protocol.training.steps < 1:
        raise InputError(
            "training: expected at least one run of one step, got "
            f"{protocol.runs} of {protocol.training.steps}"
        )
    accuracy = np.empty((len(archs), protocol.runs))
    for place, arch in enumerate(archs):
        network = space.representative(arch)
        for run in range(protocol.runs):
            seed = protocol.seed + run
            name = f"accuracy {seed}"
            kept = store.get(str(network))
            if name not in kept:
                began = time.perf_counter()
                new = accuracy_alone(space, data, network, protocol, seed)
                record = Record(new, seconds=time.perf_counter() - began)
                store.put(str(network), {name: record})
                kept = store.get(str(network))
            accuracy[place, run] = kept[name].value
            if progress is not None:
                progress(place * protocol.runs + run + 1, len(archs) * protocol.runs)
    return Measurements(tuple(archs), accuracy)


def accuracy_alone(
    space: SearchSpace[Any], data: ImageData, arch: Any, protocol: Standalone, seed: int
) -> float:
    """Test accuracy, in percent, of one training from scratch."""
    device = torch.device(protocol.device)
    network: nn.Module = space.build(arch, seed=seed)
    layout = image_format(network, device)
    network.to(device, memory_format=layout)  # type: ignore[call-overload]

    def batch(places: torch.Tensor, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = data.batch(places, split=split)
        return images.to(device, memory_format=layout), labels.to(device)

    warm_up_alone(network, protocol.training, Source(data.order(seed), batch, seed))
    network.eval()
    right = 0
    with torch.no_grad():
        for places in torch.arange(len(data.test), device="cpu").split(_EVALUATED):
            images, labels = batch(places, "test")
            right += int((network(images).argmax(1) == labels).sum())
    return 100 * right / len(data.test)


def as_table(space: SearchSpace[Any], measured: Measurements) -> pa.Table:
    """A benchmark table: the mean over runs, each run, and what the published network costs."""
    costs = [space.cost(arch) for arch in measured.archs]
    columns: dict[str, Any] = {
        "arch_str": [str(arch) for arch in measured.archs],
        "index": indices([space.index(arch) for arch in measured.archs]),
        "test_accuracy": measured.accuracy.mean(1),
    }
    for run in range(measured.accuracy.shape[1]):
        columns[f"test_accuracy_run{run}"] = measured.accuracy[:, run]
    columns["params"] = pa.array([cost.parameters for cost in costs], pa.int64())
    columns["flops"] = pa.array([cost.flops for cost in costs], pa.int64())
    return pa.table(columns)
