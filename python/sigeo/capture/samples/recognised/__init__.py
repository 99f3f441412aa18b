"""The layer functions that are recognised, and the call that each becomes.

Importing this enters the handlers of all of them into `registry.HANDLERS`.
"""

from sigeo.capture.samples.recognised import (
    composite,
    convolutions,
    elementwise,
    embeddings,
    linear,
    norms,
)
from sigeo.capture.samples.recognised.registry import HANDLERS

__all__ = ["HANDLERS", "composite", "convolutions", "elementwise", "embeddings", "linear", "norms"]
