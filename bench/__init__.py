"""Benchmarks and studies; `python bench/run.py` runs the former."""
