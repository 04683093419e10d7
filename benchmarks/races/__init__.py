"""The races of ``benchmarks/inference.py``, one file per topic."""
