"""The family's ops on Triton kernels: the reference's functions, argument for argument.

`sigeo_ext.gather.grouped_op` registers them for CUDA. Importing this package imports Triton.
"""

from sigeo_ext.gather.triton.grouped import linear, linear_accumulate, linear_backward

__all__ = ["linear", "linear_accumulate", "linear_backward"]
