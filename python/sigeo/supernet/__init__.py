"""Shared weights: samplers, training, warm-up, evaluation; many subnets in one pass."""

from sigeo.supernet.checkpoint import (
    TrainingState,
    digest,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from sigeo.supernet.evaluation import Evaluation, evaluate
from sigeo.supernet.loop import Budget, train_supernet
from sigeo.supernet.many import (
    add_gradients,
    add_joint_gradients,
    many_gradient_statistics,
    shares_passes,
    supports,
)
from sigeo.supernet.objectives import CrossEntropy, LossHook, Objective
from sigeo.supernet.samplers import (
    Balanced,
    Disjoint,
    Fair,
    Sampler,
    Sandwich,
    Uniform,
    uniform_path,
)
from sigeo.supernet.settings import Augment, Source, Training
from sigeo.supernet.trainer import Trainer
from sigeo.supernet.warmup import WarmUp, warm_up_alone, warm_up_supernet

__all__ = [
    "Augment",
    "Balanced",
    "Budget",
    "CrossEntropy",
    "Disjoint",
    "Evaluation",
    "Fair",
    "LossHook",
    "Objective",
    "Sampler",
    "Sandwich",
    "Source",
    "Trainer",
    "Training",
    "TrainingState",
    "Uniform",
    "WarmUp",
    "add_gradients",
    "add_joint_gradients",
    "digest",
    "evaluate",
    "load_checkpoint",
    "load_weights",
    "many_gradient_statistics",
    "save_checkpoint",
    "shares_passes",
    "supports",
    "train_supernet",
    "uniform_path",
    "warm_up_alone",
    "warm_up_supernet",
]
