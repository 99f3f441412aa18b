"""Compiles every Triton kernel, as it would be launched, for every supported GPU; refuses spills.

`python .ci/check_triton.py`. Needs Triton, needs no GPU: the ops run on CPU tensors up to each
launch, with a driver that only names an architecture, and the launch compiles instead.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Read when triton is imported: compile in earnest, and print what ptxas says.
os.environ |= {"TRITON_ALWAYS_COMPILE": "1", "TRITON_DUMP_PTXAS_LOG": "1", "TRITON_INTERPRET": "0"}

import torch  # noqa: E402  (found, as triton is, through what is set above)

from sigeo_ext.sample_moments import tiles  # noqa: E402
from sigeo_ext.sample_moments.precision import PRECISIONS  # noqa: E402

FLOATS = (torch.float32, torch.float64)
CHOICES = [(torch.float32, choice) for choice in PRECISIONS]
CHOICES += [(dtype, "ieee") for dtype in (torch.bfloat16, torch.float16)]
"""Of how a dtype's products are formed."""
ARCHITECTURES = (80, 90, 100, 120)
EVERYTHING = 63


class Architecture:
    """Stands where Triton's driver of a real device would."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        """One cache of compiled kernels an architecture."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Not used, since nothing is launched."""
        return 0

    def get_current_target(self) -> Any:
        """What to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@dataclass(frozen=True)
class Compiled:
    """What ptxas said of one kernel.

    Attributes:
        call: The op and its configuration.
        kernel: Its name.
        registers: Of a thread.
        spilled: Bytes stored and loaded.
    """

    call: str
    kernel: str
    registers: int
    spilled: int


def calls() -> list[tuple[str, Callable[[], Any]]]:
    """Calls of the ops that together need every kernel in every shipped configuration."""
    return [
        *matrix_products(),
        *pairs(),
        *others(),
        *grouped(),
        *slices(),
        *embeddings(),
        *gram(),
    ]


def with_precision(choice: str, call: Callable[..., Any], *given: Any) -> None:
    """A call with a choice of how products are formed."""
    from sigeo_ext.sample_moments import precision

    precision.set_matmul_precision(choice)
    call(*given)


def convolution(
    inputs: int,
    outputs: int,
    kernel: list[int],
    want: int,
    *,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    choice: str = "ieee",
) -> None:
    """A convolution of so many channels."""
    from sigeo_ext.sample_moments import precision, triton

    precision.set_matmul_precision(choice)
    dims = len(kernel)
    x = torch.zeros(4, *[5 + k for k in kernel], inputs, dtype=dtype)
    d = torch.zeros(4, *[6] * dims, outputs, dtype=dtype)
    one, none = [1] * dims, [0] * dims
    triton.convolution(x, d, kernel, one, none, one, groups, 1, 1, want, 1.5)


def matrix_products() -> list[tuple[str, Callable[[], Any]]]:
    """Every tile with every precision, for linear layers and for both forms of convolutions."""
    found = []
    for key, choice in itertools.product(tiles.classes(), PRECISIONS):
        want = EVERYTHING if key.many else tiles.FEW
        name = f"{key.outputs}x{key.columns} {'all' if key.many else 'few'} {choice}"
        # Folded, 9 x 3 columns make one of 32, 9 x 8 more than one of 64.
        forms = [("linear", key.columns, [1]), ("3x3", 8 if key.columns == 64 else 3, [3, 3])]
        if key.columns >= tiles.FOLDED_CHANNELS:
            forms.append(("3x3 of many channels", key.columns, [3, 3]))
        for form, inputs, kernel in forms:
            call = partial(convolution, inputs, key.outputs, kernel, want, choice=choice)
            found.append((f"{form} {name}", call))
    return found


def pairs() -> list[tuple[str, Callable[[], Any]]]:
    """Depthwise convolutions."""
    found = []
    for want, dtype, dims in itertools.product((tiles.FEW, EVERYTHING), FLOATS, (1, 2, 3)):
        call = partial(convolution, 128, 128, [3] * dims, want, groups=128, dtype=dtype)
        found.append((f"depthwise {dims}-d {dtype}", call))
    return found


def others() -> list[tuple[str, Callable[[], Any]]]:
    """The ops without products of x and d at taps."""
    from sigeo_ext.sample_moments import triton

    found: list[tuple[str, Callable[[], Any]]] = []
    for dtype in FLOATS:
        x, channel = torch.zeros(4, 256, 256, dtype=dtype), torch.zeros(256, dtype=dtype)
        for want in (tiles.FEW, EVERYTHING):
            found.append((f"rows {dtype}", partial(triton.rows, x[0], 1, 2, want, 1.5)))
            entries = torch.arange(256) // 8
            call = partial(triton.embedding, entries, None, x[0], 16, 16, -1, want, 1.5)
            found.append((f"embedding {dtype}", call))
        for last in (True, False):
            call = partial(triton.scale, x, x, channel, channel, channel, last, True)
            found.append((f"scale {dtype}", call))
    return found


def grouped() -> list[tuple[str, Callable[[], Any]]]:
    """Linear layers of many subnets, forward and backward, with and without a bias."""
    from sigeo_ext.gather import triton

    found: list[tuple[str, Callable[[], Any]]] = []
    windows = [0, 256, 0, 128], [0, 256, 0, 64]
    for dtype, choice in CHOICES:
        of = partial(with_precision, choice)
        weight = torch.zeros(256, 256, dtype=dtype)
        x = [torch.zeros(80, n, dtype=dtype) for n in (256, 64)]
        d = [torch.zeros(80, n, dtype=dtype) for n in (256, 128)]
        for bias in (None, weight[0]):
            call = partial(of, triton.linear, x, weight, bias, *windows, False)
            found.append((f"grouped linear {dtype} {choice}", call))
        call = partial(of, triton.linear_backward, d, x, weight, *windows, [True] * 3)
        found.append((f"grouped linear, backward {dtype} {choice}", call))
        call = partial(of, triton.linear_accumulate, d, x, weight, *windows)
        found.append((f"grouped linear, in place {dtype} {choice}", call))
    return found


def slices() -> list[tuple[str, Callable[[], Any]]]:
    """Linear layers on lists and windows, forward and backward, with rows for one run and more."""
    from sigeo_ext.gather.triton import slices

    found: list[tuple[str, Callable[[], Any]]] = []
    index = torch.arange(128)
    for (dtype, choice), masked, (rows, columns) in itertools.product(
        CHOICES, (False, True), ((index, index), (index, None), (None, index))
    ):
        if choice != "ieee" and columns is None:
            continue
        selection = ([64, 128], [0, 128], rows, columns, masked)
        weight = torch.zeros(256, 256, dtype=dtype)
        x = torch.zeros(4096, 256 if masked else 128, dtype=dtype)
        name = f"slices linear {dtype} {choice}{', masked' * masked}"
        of = partial(with_precision, choice)
        for bias in (None, weight[0]):
            call = partial(of, slices.linear, x, weight, bias, *selection, False)
            found.append((name, call))
        call = partial(of, slices.linear_backward, x, x, weight, *selection, [True] * 3)
        found.append((f"{name}, backward", call))
        call = partial(of, slices.linear_accumulate, x[:80], x[:80], weight, *selection)
        found.append((f"{name}, in place", call))
    return found


def embeddings() -> list[tuple[str, Callable[[], Any]]]:
    """Tables cut to columns, narrow and wide."""
    from sigeo_ext.gather.triton import slices

    found: list[tuple[str, Callable[[], Any]]] = []
    for dtype, width in itertools.product((*FLOATS, torch.bfloat16, torch.float16), (24, 640)):
        tokens = torch.arange(256, dtype=torch.int32 if width == 24 else torch.int64)
        table, d = torch.zeros(256, 640, dtype=dtype), torch.zeros(256, width, dtype=dtype)
        for columns in (([0, width], None), ([0, 0], torch.arange(width))):
            given = (tokens, table, *columns, -1)
            name = f"slices embedding {dtype} {width}"
            found.append((name, partial(slices.embedding, *given, False)))
            found.append((f"{name}, backward", partial(slices.embedding_backward, d, *given)))
            found.append((f"{name}, in place", partial(slices.embedding_accumulate, d, *given)))
    return found


def gram() -> list[tuple[str, Callable[[], Any]]]:
    """Units' gradients alone, for the products of all pairs of them."""
    from sigeo_ext.gram import triton

    found: list[tuple[str, Callable[[], Any]]] = []
    for kernel, groups, dtype in (
        ([1], 1, torch.float32),
        ([3, 3], 1, torch.float32),
        ([3, 3], 128, torch.float32),
        ([3, 3], 1, torch.float64),
    ):
        sizes = [4, *([4] * len(kernel)), 128]
        x, d = torch.zeros(sizes, dtype=dtype), torch.zeros(sizes, dtype=dtype)
        one, padding = [1] * len(kernel), [k // 2 for k in kernel]
        call = partial(triton.convolution, x, d, kernel, one, padding, one, groups, 1)
        found.append((f"gram {kernel} {groups} groups {dtype}", call))
    return found


def compile_for(capability: int) -> list[Compiled]:
    """Compile every call's kernels for one architecture."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, warmup=True, **options)

    JITFunction.run = compile_only
    driver.set_active(Architecture(capability))
    found = []
    for name, call in calls():
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            call()
        text = log.getvalue()
        kernels = re.findall(r"Compiling entry function '(\w+)'", text)
        registers = re.findall(r"Used (\d+) registers", text)
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
        for kernel, used, spilled in zip(kernels, registers, spills, strict=True):
            found.append(Compiled(name, kernel, int(used), sum(map(int, spilled))))
    return found


def main(chosen: list[int]) -> int:
    """Compile for each architecture, one line each and one for each spill; 1 if there was any."""
    spilled = 0
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ProcessPoolExecutor(min(len(chosen), os.cpu_count() or 1)) as pool,
    ):
        os.environ["TRITON_CACHE_DIR"] = cache
        for capability, compiled in zip(chosen, pool.map(compile_for, chosen), strict=True):
            most = max(compiled, key=lambda c: c.registers)
            bad = [c for c in compiled if c.spilled]
            print(
                f"sm_{capability}: {len(compiled)} kernels, at most {most.registers} registers "
                f"({most.call}), {len(bad)} with spills"
            )
            for c in bad:
                print(f"  {c.call}: {c.kernel}, {c.registers} registers, {c.spilled} bytes spilled")
            spilled += len(bad)
    return int(spilled > 0)


if __name__ == "__main__":
    sys.exit(main([int(number) for number in sys.argv[1:]] or list(ARCHITECTURES)))
