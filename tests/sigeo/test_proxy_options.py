"""The options of proxies: what they are by default, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigeo import InputError, proxies
from sigeo.proxies import OnModel, Outcome, Proxy

SEEDED = [name for name in proxies.names() if "seed" in proxies.options_of(name)]


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_below_0(name):
    with pytest.raises(InputError, match=r"^seed: must be a whole number from 0 to \d+, got -1$"):
        proxies.get(name, seed=-1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zen", {"beta": 1}, "got an unexpected keyword argument 'beta', options are repeats, "),
        ("zen", {"repeats": 1.5}, "repeats must be a whole number, got 1.5"),
        ("zen", {"mixup": True}, "mixup must be a number, got True"),
        ("zen", {"features": 3}, "features must be a text or None, got 3"),
        ("linear_regions", {"size": "3"}, "size must be a whole number or None, got '3'"),
        ("meco", {"seed": None}, "seed must be a whole number, got None"),
        ("sigeo", {"lambdas": 1}, "lambdas must be a list, each a number, got 1"),
        ("sigeo_sample", {"lambdas": ["1", 1, 0]}, "lambdas must be a list, each a number, got"),
        ("az_expressivity", {"blocks": "stem"}, "blocks must be a list, each a text or None, got"),
        ("gradsign", {"batch_norm": "own"}, "batch_norm must be one of refuse, frozen, "),
    ],
)
def test_options_that_a_proxy_does_not_take(name, options, message):
    with pytest.raises(InputError, match=f"^proxy {name}: {message}"):
        proxies.get(name, **options)


def test_options_of_proxies_and_their_defaults(monkeypatch):
    assert proxies.options_of("linear_regions") == {"samples": 3000, "size": 3, "seed": 0}
    for name in proxies.names():
        assert proxies.get(name, **proxies.options_of(name)).name == name
    monkeypatch.setattr(proxies.registry, "_FACTORIES", dict(proxies.registry._FACTORIES))

    @proxies.register("own")
    def own(needed: Unknown, **others) -> Proxy:  # noqa: F821  (as imported for type checkers)
        given = {"needed": needed, **others}
        return Proxy("own", OnModel(lambda m, _: Outcome(0)), "here", "free", options=given)

    assert proxies.get("own", needed=1, other=2).options == {"needed": 1, "other": 2}
    with pytest.raises(InputError, match="own: missing a required argument: 'needed', options are"):
        proxies.get("own")

    @proxies.register("own_of_file")
    def own_of_file(*, file: Path | None = None, parts: set[int] = frozenset()) -> Proxy:
        given = {"file": str(file), "parts": sorted(parts)}
        return Proxy("own_of_file", OnModel(lambda m, _: Outcome(0)), "here", "free", options=given)

    given = {"file": "of/weights", "parts": [2, 1]}  # as the command line gives them
    assert proxies.get("own_of_file", **given).options == {"file": "of/weights", "parts": [1, 2]}
