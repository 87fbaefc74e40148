"""The public names, and those of them that are rules."""

import inspect

import jaxopt_adam

PUBLIC = {
    name: value for name, value in vars(jaxopt_adam).items() if not name.startswith("_") and not inspect.ismodule(value)
}
RULES = {
    name: value
    for name, value in PUBLIC.items()
    if value.__module__.startswith("jaxopt_adam.rules.") and hasattr(value, "__wrapped__")
}
