"""Functions within jit, for all tests that need their results only.

An operation that is not within jit is a program of its own for each shape, and `init` may be made of dozens.
"""

import jax

initial = jax.jit(lambda optimizer, params: optimizer.init(params), static_argnums=0)
"""The state of an optimizer before its first step."""
