"""Kernels for neural architecture search: gradient statistics, Fisher geometry, weight sharing.

Tensors in, tensors out. Every op is ``torch.ops.sigeo_ext.<name>``, has a pure-PyTorch reference
that is its fallback and its judge, and compiled kernels where the package was built with them.
"""

from sigeo_ext import gather, gram, moments, saliency, sample_moments
from sigeo_ext._load import complete, implementations

__all__ = [
    "__version__",
    "gather",
    "gram",
    "implementations",
    "moments",
    "saliency",
    "sample_moments",
]
__version__ = "0.1.0"

complete()
