"""Sphinx extension: equations as MathML, which browsers show without a script and without a network."""

import logging as plain_logging
from pathlib import Path

import ziamath
from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
# The characters that equations may have. The font has ten times as many, and readers download it.
CHARACTERS = {
    chr(code)
    for first, last in [
        (0x20, 0x7E),  # ASCII
        (0xA0, 0xF7),  # ·, ±, ×
        (0x2C6, 0x2DC),  # accents
        (0x391, 0x3F5),  # Greek
        (0x2010, 0x2064),  # dashes, dots, primes, and operators that are not seen
        (0x210E, 0x210E),  # ℎ, the italic h
        (0x2190, 0x21A6),  # arrows
        (0x2200, 0x22FF),  # operators
        (0x2308, 0x230B),  # ⌈ and ⌊
        (0x27E8, 0x27E9),  # ⟨ and ⟩
        (0x1D434, 0x1D467),  # italic, as a browser shows a letter
        (0x1D6E2, 0x1D71B),  # italic Greek
    ]
    for code in range(first, last + 1)
}
CONVERTER = LatexToMathML(fancy_error=False)
LOG = logging.getLogger(__name__)
plain_logging.getLogger("fontTools").setLevel("WARNING")


def mathml(node, display):
    """The MathML of an equation; one that cannot be converted is a warning, which ends the build."""
    latex = node.astext()
    # As Sphinx has it: lines in an equation that has no environment of its own are aligned.
    if display and r"\\" in latex and r"\begin{align" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        text = CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        LOG.warning("%s: %s", error, latex, location=node)
        return ""
    if missing := set(text) - CHARACTERS:
        LOG.warning("equations.py lists no such characters: %s", " ".join(sorted(missing)), location=node)
    return text


def visit_inline(translator, node):
    """Write an equation within a line."""
    translator.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_display(translator, node):
    """Write an equation that stands by itself."""
    translator.body.append(f'<div class="equation">{mathml(node, display=True)}</div>\n')
    raise nodes.SkipNode


def write_the_font(app, error):
    """Write the font with the characters of equations beside the style sheet."""
    if error is None and app.builder.format == "html":
        options = subset.Options(name_IDs=["*"])  # its names have its licence
        font = subset.load_font(FONT, options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(text="".join(CHARACTERS))
        subsetter.subset(font)
        subset.save_font(font, Path(app.outdir) / "_static" / "equations.ttf", options)


def setup(app):
    """Make MathML the form of equations in HTML."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.add_css_file("equations.css")
    app.connect("build-finished", write_the_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
