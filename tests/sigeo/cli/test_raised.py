"""What a verb may raise that is no bad input: a lack of memory, and errors of other causes."""

from __future__ import annotations

import pytest
import torch

from tests.sigeo.cli.helpers import run


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("Unable to allocate 8 GiB"), None], ids=str
)
def test_a_lack_of_memory_is_one_line_too(error, capsys, monkeypatch):
    def run_out(args):
        if error is not None:
            raise error
        torch.empty(2**60)

    monkeypatch.setattr("sigeo.cli.doctor.run", run_out)
    code, out, err = run("doctor", capsys=capsys)
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    assert err.startswith("sigeo doctor: out of memory")
    assert "allocate" in err or not str(error)


def test_errors_of_other_causes_are_raised(capsys, monkeypatch):
    def fail(args):
        raise RuntimeError("of another cause")

    monkeypatch.setattr("sigeo.cli.doctor.run", fail)
    with pytest.raises(RuntimeError, match="^of another cause$"):
        run("doctor", capsys=capsys)
