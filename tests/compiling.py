"""The options that the tests compile with: quick ones, or those of users where a test counts loops or compares bits."""

import importlib.metadata
import re

# Nearly all the time of the tests is compilation. An XLA that optimizes less is done in half of it, and in a quarter
# less again if it does not part a program for several threads: each worker has one.
_DEFAULTS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_parallel_codegen_split_count": 32,
}
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# XLA ends the process at a flag that it does not know, and from JAX 0.12 on it has but one way to compile a loop.
if tuple(map(int, re.findall(r"\d+", importlib.metadata.version("jax"))[:2])) < (0, 12):
    _DEFAULTS["xla_cpu_use_fusion_emitters"] = True
    _QUICK["xla_cpu_use_fusion_emitters"] = False

AS_USERS_DO = _DEFAULTS
"""Options of jit and compile for a test that compares bits."""
FUSED_AS_FOR_USERS = _QUICK | {
    name: value for name, value in _DEFAULTS.items() if name == "xla_cpu_use_fusion_emitters"
}
"""Options for a test that counts loops, copies, temporaries or communication."""


def flags(given: str, *, quick: bool) -> str:
    """`XLA_FLAGS` for eight devices, and for quick compilation; a flag that is given already stays as it is."""
    wanted = {"xla_force_host_platform_device_count": 8} | (_QUICK if quick else {})
    ours = (f"--{name}={str(value).lower()}" for name, value in wanted.items() if f"--{name}" not in given)
    return " ".join([*given.split(), *ours])
