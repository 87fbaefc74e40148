"""Sphinx configuration; the pages' code is executed when they are built."""

import os
import subprocess
import sys
from pathlib import Path

import jaxopt_adam

sys.path.insert(0, str(Path(__file__).parent))
from rule_table import bytes_a_parameter, moments, state
from sphinx.pycode import ModuleAnalyzer

from jaxopt_adam import _hyperparameters as KINDS  # noqa: N812
from jaxopt_adam.lab.memory import RULES

# For the pages' kernels, each of which starts in the folder of its page.
HERE = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
# Most of the build's time is compilation, which is quicker if LLVM optimizes less. XLA's own programs and their
# temporaries stay the same.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"

project = "jaxopt_adam"
author = "the jaxopt_adam authors"
copyright = author  # noqa: A001
release = jaxopt_adam.__version__

extensions = [
    "equations",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "tables"]
html_theme = "furo"
html_title = "jaxopt_adam"
html_static_path = ["static"]
html_css_files = ["beside.css", "tables.css"]
html_math_renderer = "mathml"

myst_heading_anchors = 3
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True
# Names that the docstrings use of other projects, whose pages are not linked.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|numpy|np|optax|chex|typing|collections)\..*"),
    ("py:class", r"(GradientTransformationExtraArgs|Array|ArrayLike|optional)"),
    ("py:class", r"jaxopt_adam\._hyperparameters\._Node"),  # part of the aliases' types, and private
]


def say_what_rules_share(app, what, name, factory, options, lines):
    """Add to the entry of a rule what it keeps, how much that is, and the errors that all rules raise."""
    if what == "function" and factory in RULES.values():
        kept = ", ".join(f"``{moment}``" for moment in moments(factory)) or "no moments"
        size = f"{bytes_a_parameter(factory):.3g} bytes"
        text = (
            f"**Memory:** {kept}, in :class:`{state(factory)}`; {size} for each parameter of a float32 matrix of "
            "1,024 × 1,024."
        )
        first = next(i for i, line in enumerate(lines) if line.startswith(":param"))
        lines[first:first] = [text, ""]
        end = next(i for i, line in enumerate(lines) if line.lower().startswith(":return"))
        lines[end:end] = [
            ":raises TypeError: if an argument, a leaf or the state is of another kind than it must be.",
            ":raises ValueError: if a number is out of its range, or trees or shapes do not go with each other. "
            "All errors name the argument or the path of the leaf.",
        ]


def say_what_a_kind_is(app, what, name, kind, options, lines):
    """Give the entry of a kind of arguments the text below it in its module; the kind itself has that of `typing`."""
    if what == "data":
        texts = ModuleAnalyzer.for_module(KINDS.__name__).find_attr_docs()
        lines[:] = texts["", name.rpartition(".")[2]]


def say_where_a_kind_is(app, module, name):
    """Give the module of a kind of arguments; the kind itself has that of the type that it is made of."""
    return KINDS.__name__ if hasattr(KINDS, name) else None


def write_the_article(app):
    """Have the command write the interactive page beside the others, while they are read; a failure ends the build."""
    if app.builder.format == "html":
        run = "from jaxopt_adam.lab.cli import main; main()"
        writing = subprocess.Popen([sys.executable, "-c", run, "explain", "--out", app.outdir])

        def wait(app, error):
            if writing.wait() and error is None:
                raise subprocess.CalledProcessError(writing.returncode, writing.args)

        app.connect("build-finished", wait)


def spread(app, env, pages):
    """Put every tenth page next to each other: a process reads a run of pages, and the tutorials take longest."""
    pages[:] = [page for first in range(10) for page in pages[first::10]]


def setup(app):
    """Connect what the build adds; the docstrings after napoleon, which makes the fields of the arguments."""
    app.connect("builder-inited", write_the_article)
    app.connect("env-before-read-docs", spread)
    app.connect("autodoc-process-docstring", say_what_rules_share, priority=900)
    app.connect("autodoc-process-docstring", say_what_a_kind_is)
    app.connect("viewcode-follow-imported", say_where_a_kind_is)
