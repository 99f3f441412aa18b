"""The pipeline behind `score` and `rank`: proxies on models, spaces, supernets and the store."""

from sigeo.scoring.many import score_many
from sigeo.scoring.score import score

__all__ = ["score", "score_many"]
