"""The NAS toolkit: proxies for any ``nn.Module``, search spaces, supernets, ranking."""

from sigeo import proxies, spaces
from sigeo.errors import InputError
from sigeo.scoring import score

__all__ = ["InputError", "proxies", "score", "spaces"]
