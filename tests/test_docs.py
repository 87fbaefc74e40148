"""The documentation and what the package offers, held against each other."""

import inspect
import re
from pathlib import Path

import pytest

import jaxopt_adam
from jaxopt_adam import rules

ROOT = Path(__file__).parent.parent
FACTORIES = [name for name in rules.__all__ if inspect.isfunction(getattr(rules, name))]


def test_every_public_name_has_an_entry_in_the_reference():
    reference = (ROOT / "docs" / "reference.md").read_text()
    reference = reference.partition("## For rules of your own")[0]
    assert set(re.findall(r"auto(?:function|class):: (\w+)", reference)) == set(jaxopt_adam.__all__)


def test_all_lists_are_complete():
    assert set(rules.__all__) <= set(jaxopt_adam.__all__)
    assert all(hasattr(jaxopt_adam, name) for name in jaxopt_adam.__all__)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_rule_says_all_that_a_reader_needs(name):
    factory = getattr(jaxopt_adam, name)
    text = inspect.getdoc(factory)
    assert ".. math::" in text
    assert "Choose it " in text
    for section in ("Args:", "Returns:", "References:", "Example:"):
        assert section in text
    described = re.findall(r"^    (\w+): ", text[text.index("Args:") : text.index("Returns:")], re.MULTILINE)
    assert described == list(inspect.signature(factory).parameters)


def test_no_rule_is_longer_than_a_screen_or_two():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "jaxopt_adam/rules").glob("*.py")}
    assert max(lengths.values()) <= 120, lengths


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
