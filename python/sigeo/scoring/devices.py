"""Devices: their names, their memory, and how weights lie on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sigeo.capture.state import check_present
from sigeo.errors import InputError
from sigeo.spaces import Supernet


def put_on(device: torch.device, supernet: Supernet[Any], images: torch.memory_format) -> None:
    """Take weights to a device, in the memory format in which it is fastest.

    Args:
        device: Where.
        supernet: Holds the weights.
        images: The format of the images that it will see.
    """
    weights = images if device.type == "cpu" else torch.channels_last
    supernet.to(device, memory_format=weights)  # type: ignore[attr-defined]


def available_bytes(device: torch.device) -> int | None:
    """Half of the memory that is free on a device; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(1, (int(torch.cuda.mem_get_info(device)[0]) + unused) // 2)
    free = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        limit, used = (  # of the container, if it has one
            Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii").strip()
            for name in ("max", "current")
        )
        free += [int(limit) - int(used)] if limit != "max" else []
    except (OSError, ValueError):
        pass
    return max(1, min(free) // 2) if free else None


def parse_device(name: str | torch.device) -> torch.device:
    """The device of a name: "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: Another name, or a device that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device: must be cpu, cuda or cuda:N, got {name!r}")
    check_present(device)
    return device
