"""The family's ops on Triton kernels: the reference's functions, argument for argument.

`sigeo_ext.sample_moments.op` registers them for CUDA. Importing this package imports Triton.
"""

from sigeo_ext.sample_moments.triton.gradients import embedding, rows, tables
from sigeo_ext.sample_moments.triton.norms import scale
from sigeo_ext.sample_moments.triton.products import convolution

__all__ = ["convolution", "embedding", "rows", "scale", "tables"]
