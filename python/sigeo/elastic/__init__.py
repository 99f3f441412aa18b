"""Elastic layers: super-weights of which a subnet runs a selection, in place.

The layers are torch's own, with their parameters and names; `sigeo_ext.gather.slices` computes on
selections of them.
"""

from sigeo.elastic.attention import Attention, ElasticAttention
from sigeo.elastic.base import Elastic, configure, extract
from sigeo.elastic.convert import choice_of, convert
from sigeo.elastic.convolution import ElasticConv1d, ElasticConv2d, ElasticConv3d
from sigeo.elastic.depth import ElasticDepth
from sigeo.elastic.linear import ElasticEmbedding, ElasticLinear
from sigeo.elastic.norms import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticBatchNorm3d,
    ElasticLayerNorm,
)
from sigeo.elastic.tokens import ElasticTokens, Tokens

__all__ = [
    "Attention",
    "Elastic",
    "ElasticAttention",
    "ElasticBatchNorm1d",
    "ElasticBatchNorm2d",
    "ElasticBatchNorm3d",
    "ElasticConv1d",
    "ElasticConv2d",
    "ElasticConv3d",
    "ElasticDepth",
    "ElasticEmbedding",
    "ElasticLayerNorm",
    "ElasticLinear",
    "ElasticTokens",
    "Tokens",
    "choice_of",
    "configure",
    "convert",
    "extract",
]
