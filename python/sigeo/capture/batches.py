"""Batches as they come from a user, and as a model takes them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sigeo.capture.layers import check_made
from sigeo.capture.state import RandomState, check_present, device_of
from sigeo.errors import InputError, check_kind, check_one_of, described, lacks_memory

MemoryFormat = Literal["auto", "preserve", "channels_last"]

# Labels of these are as well int64, which torch's losses ask for; uint8 they take, as masks may be.
_NARROW = (torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32)

# What torch's errors call dtypes that are taken for those of the parameters by mistake.
_IN_ERRORS = {
    torch.float64: ("double", "float64"),
    torch.float32: ("float",),
    torch.float16: ("half", "float16"),
    torch.bfloat16: ("bfloat16",),
    torch.uint8: ("byte", "unsigned char", "uint8"),
}


class Batches:
    """The batches of one measurement, on the model's device, gone through any number of times."""

    def __init__(
        self,
        batches: Iterable[Any],
        model: nn.Module,
        device: torch.device | str,
        memory_format: MemoryFormat = "auto",
    ):
        """Keep the batches; an iterator is read to its end first.

        Args:
            batches: Pairs (inputs, labels), or inputs alone: a tuple or list of two is a pair.
                Inputs are one tensor, a tuple of positional or a dict of keyword arguments of the
                model; labels are tensors or lists of numbers, or tuples, lists or dicts of tensors,
                whole numbers as int64, but for uint8. NumPy arrays serve as tensors of their dtype.
                All are constants: nothing is differentiated beyond them.
            model: Decides what "auto" means.
            device: Where inputs and labels go.
            memory_format: "channels_last" for images [B, C, H, W] in that order, "preserve" as
                they come, "auto": channels_last on a CPU if the model has 2-d convolutions, but
                for some that torch does not compute safely so.

        Raises:
            InputError: There is no batch, one tensor instead of batches, no such device or memory
                format, a parameter of the model has no shape yet, or it was made in
                ``torch.inference_mode``.
        """
        check_one_of("memory_format", memory_format, get_args(MemoryFormat))
        if isinstance(batches, Tensor):
            raise InputError(
                "batches: expected an iterable of batches, as [(inputs, labels)], got a tensor"
            )
        try:
            device = torch.device(device)
        except (RuntimeError, TypeError):
            got = described(device)
            raise InputError(f"device: expected a device or its name, got {got}") from None
        check_present(device)
        check_made(itertools.chain(model.named_parameters(), model.named_buffers()))
        random = RandomState(device)  # a shuffling loader draws from it
        try:
            self._batches = batches if isinstance(batches, Sequence) else list(batches)
        finally:
            random.restore()
        if not self._batches:
            raise InputError("batches: expected at least one, got none")
        self._channels_last = memory_format == "channels_last" or (
            memory_format == "auto" and image_format(model, device) == torch.channels_last
        )
        self.device = device

    @classmethod
    def of(
        cls, batches: Iterable[Any] | Batches, model: nn.Module, memory_format: MemoryFormat
    ) -> Batches:
        """``batches`` if they are `Batches` already, else made so for the model.

        Raises:
            InputError: It is no module, or as `Batches`.
        """
        if isinstance(batches, Batches):
            return batches
        check_kind(model, nn.Module, "model")
        return cls(batches, model, device_of(model), memory_format)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    @property
    def labelled(self) -> bool:
        """Whether the first batch comes with labels."""
        return _split(self._batches[0])[1] is not None

    @property
    def unlabelled(self) -> str:
        """What the first batch is, if it is no pair with labels; "" if it is."""
        first = self._batches[0]
        if self.labelled:
            return ""
        if isinstance(first, Mapping):
            return f"a dict of {', '.join(map(str, first))}"
        if isinstance(first, (tuple, list)):
            return f"a {type(first).__name__} of {len(first)}"
        return "one tensor" if isinstance(first, Tensor) else type(first).__name__

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Inputs and labels of one batch, where and how the model takes them.

        Raises:
            InputError: An array or a list of labels that is not of numbers, or no samples.
        """
        inputs, labels = _split(self._batches[index])
        if isinstance(labels, list) and not any(
            isinstance(leaf, Tensor) for leaf in tree_leaves(labels)
        ):
            labels = _tensor("labels", labels)
        placed = self._place(inputs)
        tensors = [x for x in tree_leaves(placed) if isinstance(x, Tensor) and not x.is_nested]
        counts = [len(x) for x in tensors if x.dim()]
        if counts and not any(counts):
            raise InputError(f"inputs: expected at least one sample, got none in batch {index}")
        return placed, tree_map_only((Tensor, np.ndarray), self._label, labels)

    def _label(self, value: Tensor | np.ndarray[Any, Any]) -> Tensor:
        placed = self._moved(_tensor("labels", value))
        return placed.long() if placed.dtype in _NARROW else placed

    def _place(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return {name: self._place(value) for name, value in inputs.items()}
        if type(inputs) in (tuple, list):  # a named tuple, such as a PackedSequence, is one input
            return tuple(self._place(value) for value in inputs)
        if not _is_array(inputs):
            return inputs
        placed = self._moved(_tensor("inputs", inputs))
        if self._channels_last and placed.dim() == 4 and placed.is_floating_point():
            return placed.contiguous(memory_format=torch.channels_last)
        return placed

    def _moved(self, tensor: Tensor) -> Tensor:
        # What made it, another model say, is not run backward.
        moved = tensor.detach().to(self.device)
        return moved.clone() if moved.is_inference() else moved  # autograd takes the copy


def image_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The order of images that a model runs fastest in.

    It is channels_last on a CPU if the model has 2-d convolutions, and nothing that crashes so. In
    that order a group norm's weight gradient kills the process where the norm's input needs none,
    as images and what frozen layers make of them (torch 2.13); and without AVX-512 the weight
    gradient of a strided 1x1 convolution of fewer than 8 channels writes out of bounds (oneDNN).
    """
    convolutions = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.conv._ConvNd) and len(m.kernel_size) == 2 and not m.transposed
    ]
    if device.type != "cpu" or not convolutions:
        return torch.contiguous_format
    if any(isinstance(m, nn.GroupNorm) and m.affine for m in model.modules()):
        return torch.contiguous_format
    if "AVX512" in torch.backends.cpu.get_cpu_capability():
        return torch.channels_last
    for m in convolutions:
        few = m.in_channels < 8 or type(m) is not nn.Conv2d  # an elastic one may take a part
        if few and m.kernel_size == (1, 1) and max(m.stride) > 1:
            return torch.contiguous_format
    return torch.channels_last


def _split(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _tensor(what: str, value: Any) -> Tensor:
    """A tensor as it is, an array or a list as one on the CPU, whatever an array's memory is like.

    Raises:
        InputError: It holds something else than numbers.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, np.ndarray):
            value = np.array(value, dtype=value.dtype.newbyteorder("="))
        return torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        of = f" of {value.dtype}" if isinstance(value, np.ndarray) else f" {described(value)}"
        raise InputError(f"{what}: expected numbers, got {type(value).__name__}{of}") from error


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for the inputs of one batch; what is wrong with their dtypes is told."""
    with telling_dtypes(model, lambda: inputs):
        return output_of(model, inputs)


def output_of(model: nn.Module, inputs: Any) -> Any:
    """The model's output for copies of the inputs of one batch, as it may write to its inputs."""
    copies = tree_map_only(Tensor, Tensor.clone, inputs)
    if isinstance(copies, Mapping):
        return model(**copies)
    return model(*copies) if type(copies) is tuple else model(copies)


@contextlib.contextmanager
def telling_dtypes(model: nn.Module, inputs: Callable[[], Any]) -> Iterator[None]:
    """Let a model that fails say so if its inputs are of another dtype than its parameters.

    Args:
        model: That runs in the body.
        inputs: Gives its inputs.

    Yields:
        Once, when it does.

    Raises:
        InputError: It fails, and they are.
        RuntimeError: The model's own.
        ValueError: Likewise.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:  # the second of recurrent layers
        wrong = None if lacks_memory(error) else _other_dtype(model, inputs(), str(error))
        if wrong is None:
            raise
        raise InputError(wrong) from error


@contextlib.contextmanager
def telling_layouts(batches: Batches) -> Iterator[None]:
    """Let what fails on sparse or nested inputs or labels, which some models take, say so.

    Args:
        batches: What the body works on.

    Yields:
        Once, when it does.

    Raises:
        InputError: The body fails, and there are such in the first batch.
        RuntimeError: The body's own.
        TypeError: Likewise.
        ValueError: Likewise.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        if lacks_memory(error):
            raise
        for name, values in zip(("inputs", "labels"), batches[0], strict=True):
            for layout in map(layout_of, tree_leaves(values)):
                if layout is not None:
                    reason = " ".join(str(error).split())[:200]
                    raise InputError(
                        f"{name}: expected dense tensors, got {layout}, which fails: {reason}"
                    ) from error
        raise


def layout_of(value: Any) -> str | None:
    """How a tensor that is not dense lies in memory, in words; None of all else."""
    if not isinstance(value, Tensor) or (value.layout == torch.strided and not value.is_nested):
        return None
    return "a nested tensor" if value.is_nested else str(value.layout)


def _other_dtype(model: nn.Module, inputs: Any, said: str) -> str | None:
    """What is wrong with inputs of a dtype that no parameter has, if an error may be about it."""
    known = [parameter.dtype for parameter in model.parameters()]
    found = {d for d, names in _IN_ERRORS.items() if any(name in said.lower() for name in names)}
    other = (found or set(_IN_ERRORS)).difference(known)  # norms' errors call none by its name
    for leaf in tree_leaves(inputs) if known and "type" in said else ():
        if isinstance(leaf, Tensor) and leaf.dtype in other:
            return f"inputs: expected {known[0]} like the model's parameters, got {leaf.dtype}"
    return None
