"""gpt-oss in plain NumPy and float64: slow, obvious, and the oracle of every test of the native code."""
