"""The family's ops on Triton kernels: the references' functions, argument for argument.

Those here are the grouped ops, `slices` has the slice ops; `sigeo_ext.gather.grouped_op` and
`slices_op` register them for CUDA. Importing this package imports Triton.
"""

from sigeo_ext.gather.triton.grouped import linear, linear_accumulate, linear_backward

__all__ = ["linear", "linear_accumulate", "linear_backward"]
