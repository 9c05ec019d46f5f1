"""Benchmarks: each gives the ratio of two programs, which run in turns in one call."""
