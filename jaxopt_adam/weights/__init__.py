"""Wrappers for low-precision weights, which keep or dither the part that rounding drops."""
