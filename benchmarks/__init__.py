"""Benchmarks: each is a ratio of two programs, run in turn in one call."""
