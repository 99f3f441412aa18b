"""Weight sharing on NAS-Bench-201: one convolution for each block, edge and operation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sigeo.spaces.dropout import ScheduledDropout
from sigeo.spaces.initial import draw_weights
from sigeo.spaces.nasbench201.canonical import pruned
from sigeo.spaces.nasbench201.cell import CONVOLUTIONS, EDGES, Cell, expect_cell
from sigeo.spaces.nasbench201.network import (
    CellBlock,
    ConvNorm,
    Head,
    Network,
    Reduction,
    Skeleton,
    convolution,
    kernel_of,
    plan_of,
    run_cell,
)
from sigeo.spaces.nasbench201.stack import Stack


class CellSlots(nn.Module):
    """The convolutions of every edge of one cell, whichever of them an architecture uses."""

    def __init__(self, width: int, *, track: bool, affine: bool):
        super().__init__()
        self.slots = nn.ModuleDict(
            {
                f"{edge}_{operation}": convolution(width, operation, track=track, affine=affine)
                for edge in range(len(EDGES))
                for operation in CONVOLUTIONS
            }
        )

    def slot(self, edge: int, operation: int) -> ConvNorm:
        """The module of one operation on one edge."""
        return self.slots[f"{edge}_{operation}"]  # type: ignore[return-value]


class NASBench201Supernet(nn.Module):
    """All weights of the space.

    Batch norm has scale and shift for each slot and, unless asked otherwise, no running statistics:
    it always uses the batch's, as the paths that share a block have statistics of their own.
    """

    watchable = True

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        seed: int = 0,
        affine: bool = True,
        track: bool = False,
        path_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        """Make the weights.

        Args:
            skeleton: The sizes around the cell.
            seed: Every subnet starts with the weights that `network.standalone` gives it.
            affine: Whether batch norm has scale and shift.
            track: Whether batch norm keeps running statistics, one set a slot, and uses them in
                evaluation mode.
            path_dropout: In training, rate at the end and in the last cell at which edges are
                dropped, see `sigeo.spaces.dropout`. Stacks have none of it.
            dropout: In training, rate at which features are dropped before the linear layer.

        Raises:
            InputError: A rate that is not from 0 to below 1.
        """
        super().__init__()
        self.skeleton, self.track = skeleton, track
        self.dropout = ScheduledDropout(path_dropout, dropout, layers=3 * skeleton.cells, seed=seed)
        norms = {"track": track, "affine": affine}
        self.stem = ConvNorm(skeleton.in_channels, skeleton.channels, 3, **norms)
        blocks: list[nn.Module] = []
        inputs = skeleton.channels
        for kind, width in skeleton.blocks():
            is_cell = kind == "cell"
            blocks.append(
                CellSlots(width, **norms) if is_cell else Reduction(inputs, width, **norms)
            )
            inputs = width
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(inputs, skeleton.classes, **norms)
        for name, module in self.named_modules():
            draw_weights(module, f"{_standalone_name(name)}.{kernel_of(module)}", seed)

    @property
    def noisy(self) -> bool:
        """Whether a pass draws random numbers, as it does with dropout in training."""
        return self.training and self.dropout.active

    def start_step(self, step: int, steps: int, seed: int) -> None:
        """Begin a step of training: dropout follows from these numbers."""
        self.dropout.start_step(step, steps, seed)

    def forward(self, x: Tensor, arch: Cell) -> Tensor:
        """Images [B, in_channels, H, W] through one architecture to logits [B, classes]."""
        plan = plan_of(expect_cell(arch))
        x = self.stem(x)
        layer = 0
        for block in self.blocks:
            if isinstance(block, CellSlots):
                drop = self.dropout.path(layer) if self.noisy else None
                x = run_cell(plan, block.slot, x, drop=drop, norm_zeros=self.track)
                layer += 1
            else:
                x = block(x)
        features: Tensor = self.head.features(x)
        y: Tensor = self.head.linear(self.dropout.features(features) if self.noisy else features)
        return y

    def subnet(self, arch: Cell, *, whole: bool = False) -> Network:
        """A network of one architecture on the shared weights; see `Supernet.subnet`."""
        kept = expect_cell(arch) if whole else pruned(expect_cell(arch))
        blocks: list[nn.Module] = []
        for block in self.blocks:
            if isinstance(block, CellSlots):
                modules = {
                    edge: block.slot(edge, operation)
                    for edge, operation in enumerate(kept.operations)
                    if operation in CONVOLUTIONS
                }
                blocks.append(CellBlock(kept, modules))
            else:
                blocks.append(block)
        return Network(self.stem, blocks, self.head)

    def choice_weights(self, place: int) -> frozenset[str]:
        """Names of the weights that the operations of one edge have for themselves."""
        return frozenset(name for name, _ in self.named_parameters() if f".slots.{place}_" in name)

    def end_weights(self) -> frozenset[str]:
        """Names of the weights of the stem and the head, outside the cells and reductions."""
        return frozenset(
            name for name, _ in self.named_parameters() if not name.startswith("blocks.")
        )

    def stack(self, archs: Sequence[Cell], *, own: bool = False) -> Stack:
        """Several architectures to run together; see `Supernet.stack`."""
        return Stack(self, archs, own=own)


def _standalone_name(name: str) -> str:
    """``blocks.3.slots.5_2.conv`` as `network.standalone` calls it: ``blocks.3.edges.5.conv``."""
    before, found, after = name.partition(".slots.")
    if not found:
        return name
    slot, _, rest = after.partition(".")
    return f"{before}.edges.{slot.partition('_')[0]}.{rest}"
