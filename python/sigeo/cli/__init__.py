"""The command line: one file a verb."""

from sigeo.cli.main import main

__all__ = ["main"]
