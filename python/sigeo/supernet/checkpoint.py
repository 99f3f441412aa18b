"""Supernet weights on disk: one safetensors file, whole or not there."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sigeo.errors import InputError
from sigeo.whole_files import write_whole

_FORMAT = "sigeo-supernet-1"
_NOTHING = object()
_SHOWN = 60  # characters of a setting in a message

M = TypeVar("M")
Weights = dict[str, Tensor]
"""The state of a module."""


class OtherSettings(InputError):
    """What a folder holds was made with other settings."""


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands.

    Attributes:
        step: Steps taken.
        weights: The module's state.
        momentum: The optimiser's buffers by parameter name.
        memory: What a training objective keeps between steps, such as a teacher's weights.
        progress: What the sampler keeps, and the images processed, as JSON can hold it.
        kept: The module's states at the ends of earlier passes, oldest first.
    """

    step: int
    weights: Weights
    momentum: dict[str, Tensor]
    memory: dict[str, Tensor] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    kept: Sequence[Weights] = ()


def save_checkpoint(path: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Write a checkpoint; a kill leaves the old one.

    Raises:
        InputError: The file cannot be written.
    """
    tensors = {f"weights/{name}": t for name, t in state.weights.items()}
    tensors |= {f"momentum/{name}": t for name, t in state.momentum.items()}
    tensors |= {f"memory/{name}": t for name, t in state.memory.items()}
    for place, weights in enumerate(state.kept):
        tensors |= {f"kept/{place}/{name}": t for name, t in weights.items()}
    metadata = {
        "format": _FORMAT,
        "step": str(state.step),
        "settings": json.dumps(settings, sort_keys=True),
        "progress": json.dumps(state.progress),
    }
    header, values = _ordered(save(_unshared(tensors), metadata))

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(header)
            file.write(values)
            file.flush()
            os.fsync(file.fileno())

    try:
        write_whole(path, write)
    except InputError as error:
        raise InputError(f"checkpoint {error}") from None


def _ordered(content: bytes) -> tuple[bytes, memoryview]:
    """A safetensors file as its header, keys in order, and its values.

    The library writes metadata in another order each time; equal checkpoints are to be equal files.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU; tensors that modules share are copied, which the format asks for."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        if kept.numel() and kept.data_ptr() in seen:
            kept = kept.clone()
        seen.add(kept.data_ptr())
        found[name] = kept
    return found


def load_checkpoint(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Read a checkpoint: the state, and the settings it was made with.

    Raises:
        InputError: There is no such file, it is damaged, or it is something else.
    """
    if not path.is_file():
        raise InputError(f"checkpoint: found no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path}: damaged or truncated ({error})") from None
    if metadata.get("format") != _FORMAT:
        raise InputError(
            f"checkpoint {path}: expected format {_FORMAT}, got {metadata.get('format')}"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    prefixes = ("weights/", "momentum/", "memory/", "kept/")
    if other := [name for name in tensors if not name.startswith(prefixes)]:
        raise InputError(f"checkpoint {path}: damaged metadata, found a tensor {other[0]}")
    try:
        places = {int(name.split("/")[1]) for name in tensors if name.startswith("kept/")}
        settings = json.loads(metadata["settings"])
        progress = json.loads(metadata.get("progress", "{}"))  # older files have none
        step = int(metadata["step"])
    except (KeyError, ValueError, RecursionError) as error:
        what = f"{type(error).__name__} {error}"
        raise InputError(f"checkpoint {path}: damaged metadata ({what})") from None
    if not isinstance(settings, dict) or not isinstance(progress, dict):
        raise InputError(f"checkpoint {path}: damaged metadata, expected settings as an object")
    state = TrainingState(
        step=step,
        weights=part("weights/"),
        momentum=part("momentum/"),
        memory=part("memory/"),
        progress=progress,
        kept=[part(f"kept/{place}/") for place in sorted(places)],
    )
    return state, settings


def load_weights(module: nn.Module, state: TrainingState, path: Path) -> None:
    """Give a module the weights of a checkpoint.

    Raises:
        InputError: They, or weights that were kept before, are those of another module.
    """
    try:
        for weights in (*state.kept, state.weights):
            module.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path}: does not fit the networks ({first})") from None


def versions(module: M, kept: Sequence[Weights]) -> tuple[M, ...]:
    """A module at the ends of a training's passes: copies with weights kept before, and itself."""
    found = []
    for weights in kept:
        earlier: Any = copy.deepcopy(module)
        earlier.load_state_dict(weights)
        for parameter in earlier.parameters():
            parameter.grad = None
        found.append(earlier)
    return (*found, module)


def difference(found: Any, given: Any) -> str:
    """The first setting, by name, in which kept settings differ from those given; "" for none."""
    if found == given:
        return ""
    name = ""
    while isinstance(found, dict) and isinstance(given, dict):
        key = min(k for k in found.keys() | given.keys() if _of(found, k) != _of(given, k))
        found, given = _of(found, key), _of(given, key)
        name = f"{name}.{key}" if name else str(key)
    return f"{name or 'settings'}: there {_short(found)}, here {_short(given)}"


def _of(settings: dict[str, Any], key: str) -> Any:
    return settings.get(key, _NOTHING)


def _short(value: Any) -> str:
    text = "nothing" if value is _NOTHING else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def digest(weights: dict[str, Tensor]) -> str:
    """A hash of names and values."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
