"""Benchmarks, behind `gptoss-native bench`: kernels one by one, whole models, a server, the start.

Nothing of the engine imports this package. docs/benchmarks.md says what the figures mean.
"""
