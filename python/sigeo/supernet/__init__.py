"""Training of shared weights: warm-up, its checkpoints, the sampling of paths."""

from sigeo.supernet.checkpoint import (
    TrainingState,
    digest,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
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
    "digest",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
    "uniform_path",
    "warm_up_alone",
    "warm_up_supernet",
]
