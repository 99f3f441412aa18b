"""Shared weights: warm-up, its checkpoints, the sampling of paths; many subnets in one pass."""

from sigeo.supernet.checkpoint import (
    TrainingState,
    digest,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from sigeo.supernet.many import add_gradients, many_gradient_statistics, supports
from sigeo.supernet.warmup import (
    Source,
    Trainer,
    WarmUp,
    uniform_path,
    warm_up_alone,
    warm_up_supernet,
)

__all__ = [
    "Source",
    "Trainer",
    "TrainingState",
    "WarmUp",
    "add_gradients",
    "digest",
    "load_checkpoint",
    "load_weights",
    "many_gradient_statistics",
    "save_checkpoint",
    "supports",
    "uniform_path",
    "warm_up_alone",
    "warm_up_supernet",
]
