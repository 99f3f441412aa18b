"""Gradient statistics of any ``nn.Module``; the model comes back as it was."""

from sigeo.capture.batches import Batches, MemoryFormat, call, image_format
from sigeo.capture.distributed import all_reduce
from sigeo.capture.fisher import Trace, diag_fisher, fisher_rao, fisher_trace
from sigeo.capture.inner_products import sample_inner_products
from sigeo.capture.layers import Selection, select
from sigeo.capture.losses import LossFunction, batch_loss, check_reduction
from sigeo.capture.ntk import NTKBatchNorm, ntk
from sigeo.capture.rectifiers import rectifier_inputs
from sigeo.capture.samples import BatchNormPolicy, SampleStatistics, all_served, capture
from sigeo.capture.state import preserved
from sigeo.capture.statistics import (
    FirstGradient,
    GradientStatistics,
    NoInnerProducts,
    Request,
    gradient_statistics,
)
from sigeo.capture.steps import SGD, ClippedAdagrad, Steps

__all__ = [
    "SGD",
    "BatchNormPolicy",
    "Batches",
    "ClippedAdagrad",
    "FirstGradient",
    "GradientStatistics",
    "LossFunction",
    "MemoryFormat",
    "NTKBatchNorm",
    "NoInnerProducts",
    "Request",
    "SampleStatistics",
    "Selection",
    "Steps",
    "Trace",
    "all_reduce",
    "all_served",
    "batch_loss",
    "call",
    "capture",
    "check_reduction",
    "diag_fisher",
    "fisher_rao",
    "fisher_trace",
    "gradient_statistics",
    "image_format",
    "ntk",
    "preserved",
    "rectifier_inputs",
    "sample_inner_products",
    "select",
]
