"""`sigeo.elastic` by the name of the package that trains what is built of it."""

from sigeo.elastic import (
    Attention,
    Elastic,
    ElasticAttention,
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticBatchNorm3d,
    ElasticConv1d,
    ElasticConv2d,
    ElasticConv3d,
    ElasticDepth,
    ElasticEmbedding,
    ElasticLayerNorm,
    ElasticLinear,
    configure,
    extract,
)

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
    "configure",
    "extract",
]
