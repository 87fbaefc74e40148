"""Experiments on real data, their reports, and the command ``jaxopt-adam``; needs the ``lab`` extra."""
