"""Shared weights: samplers, training, warm-up, evaluation; many subnets in one pass."""

from sigeo.supernet.checkpoint import (
    TrainingState,
    digest,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    versions,
)
from sigeo.supernet.contrastive import CrossPathContrast, info_nce
from sigeo.supernet.distillation import (
    InPlaceDistillation,
    MutualDistillation,
    Teacher,
    divergence,
    mutual_distillation,
)
from sigeo.supernet.evaluation import Evaluation, averaged, evaluate, recalibrated
from sigeo.supernet.heads import classify, project
from sigeo.supernet.loop import Budget, train_supernet
from sigeo.supernet.many import (
    add_gradients,
    add_joint_gradients,
    many_gradient_statistics,
    shares_passes,
    supports,
)
from sigeo.supernet.objectives import CrossEntropy, LossHook, Objective
from sigeo.supernet.pinas import CrossPath
from sigeo.supernet.routed import RoutedSupernet
from sigeo.supernet.samplers import (
    Balanced,
    CandidatePool,
    Disjoint,
    Fair,
    Greedy,
    Sampler,
    Sandwich,
    Uniform,
    ValidationLoss,
    confidence,
    draw_connected,
)
from sigeo.supernet.samples import many_sample_statistics, shares_samples
from sigeo.supernet.settings import Augment, Source, Training
from sigeo.supernet.shift import FeatureShift, ParameterShift, feature_shift
from sigeo.supernet.teacher import MeanTeacher, used_parameters
from sigeo.supernet.trainer import Trainer
from sigeo.supernet.warmup import WarmUp, warm_up_alone, warm_up_supernet

__all__ = [
    "Augment",
    "Balanced",
    "Budget",
    "CandidatePool",
    "CrossEntropy",
    "CrossPath",
    "CrossPathContrast",
    "Disjoint",
    "Evaluation",
    "Fair",
    "FeatureShift",
    "Greedy",
    "InPlaceDistillation",
    "LossHook",
    "MeanTeacher",
    "MutualDistillation",
    "Objective",
    "ParameterShift",
    "RoutedSupernet",
    "Sampler",
    "Sandwich",
    "Source",
    "Teacher",
    "Trainer",
    "Training",
    "TrainingState",
    "Uniform",
    "ValidationLoss",
    "WarmUp",
    "add_gradients",
    "add_joint_gradients",
    "averaged",
    "classify",
    "confidence",
    "digest",
    "divergence",
    "draw_connected",
    "evaluate",
    "feature_shift",
    "info_nce",
    "load_checkpoint",
    "load_weights",
    "many_gradient_statistics",
    "many_sample_statistics",
    "mutual_distillation",
    "project",
    "recalibrated",
    "save_checkpoint",
    "shares_passes",
    "shares_samples",
    "supports",
    "train_supernet",
    "used_parameters",
    "versions",
    "warm_up_alone",
    "warm_up_supernet",
]
