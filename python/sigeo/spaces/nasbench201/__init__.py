"""NAS-Bench-201: cells, which of them are one function, networks, costs, shared weights."""

from sigeo.spaces.nasbench201.canonical import Zeros, canonical_string, classes, networks
from sigeo.spaces.nasbench201.cell import EDGES, INCOMING, OPERATIONS, Cell
from sigeo.spaces.nasbench201.network import Skeleton
from sigeo.spaces.nasbench201.nonlinear import convolution_count, nonlinear_depth
from sigeo.spaces.nasbench201.space import NASBench201

__all__ = [
    "EDGES",
    "INCOMING",
    "OPERATIONS",
    "Cell",
    "NASBench201",
    "Skeleton",
    "Zeros",
    "canonical_string",
    "classes",
    "convolution_count",
    "networks",
    "nonlinear_depth",
]
