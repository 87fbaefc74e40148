"""Sphinx configuration; the pages' code is executed when they are built."""

import jaxopt_adam

project = "jaxopt_adam"
author = "the jaxopt_adam authors"
copyright = author  # noqa: A001
release = jaxopt_adam.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "jaxopt_adam"
html_static_path = []

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True
# Names that the docstrings use of other projects, whose pages are not linked.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|numpy|np|optax|chex|typing|collections)\..*"),
    ("py:class", r"(GradientTransformationExtraArgs|Array|ArrayLike|optional)"),
]
