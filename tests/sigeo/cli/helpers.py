"""How the tests run the command line, and the sizes that make it quick."""

from __future__ import annotations

import json

import pytest

from sigeo.cli import main

EXAMPLE = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+"
    "|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
)
SMALL = ["--channels", "2", "--cells", "1", "--batches", "2", "--batch-size", "16"]


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def strict(text: str):
    """One JSON document, nothing else, no NaN or Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
