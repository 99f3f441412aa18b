"""Seeds of random numbers that follow from a text alone, on every machine the same."""

from __future__ import annotations

import hashlib


def seed_of(text: str) -> int:
    """A seed from 0 to 2^63 - 1, as torch takes it; another text gives another one."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
