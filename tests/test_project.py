"""What surrounds the library: the files by which others find it, cite it and contribute."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from public import RULES

import jaxopt_adam

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
RELATIVE = re.compile(r"!?\[[^\]]*\]\((?!https?:|#)[^)]*\)")


def files():
    """The files of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return listed.stdout.split("\n")[:-1]


def test_what_waits_for_the_owner_is_listed_in_one_place():
    if not files():
        pytest.skip("this is not a clone of the repository")
    page = (ROOT / "docs" / "release.md").read_text()
    table = page.partition("## Before the first release")[2].partition("## Each release")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    marked = [
        name
        for name in files()
        if Path(name).suffix in {".md", ".toml", ".cff", ".yml", ".yaml"} and "OWNER:" in (ROOT / name).read_text()
    ]
    assert sorted(listed) == sorted(marked)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert citation["version"] == newest[1] == jaxopt_adam.__version__
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_pages_name_the_layout_of_the_states():
    page = (ROOT / "docs" / "stability.md").read_text()
    assert f"It is {jaxopt_adam.__state_layout__} in this version." in page


@pytest.mark.parametrize("name", [name for name in files() if name.endswith((".yml", ".yaml", ".cff"))])
def test_what_other_services_read_is_yaml(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_the_readme_has_no_path_of_the_repository_where_packages_are_listed():
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert [fragment["path"] for fragment in hook["fragments"]] == ["README.md"]
    text = README
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert RELATIVE.search(README)
    assert not RELATIVE.search(text)
    assert len(re.findall(r"\]\(https?:", text)) == len(re.findall(r"\]\(https?:", README))


def test_the_readme_leads_to_files_that_exist():
    for path in re.findall(r"\]\((?!https?:|#)([^)#]*)[^)]*\)", README):
        assert (ROOT / path).exists(), path


def cells(text, first):
    """The cells of the rows of Markdown tables, by the cell of each row that is numbered `first`."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[first]: row for row in rows if len(row) > first}


def test_the_figures_of_the_readme_are_those_of_the_tables():
    """The names that the README, the table of times and the table of errors have for the same thing."""
    tables = ROOT / "docs" / "tables"
    storage = (tables / "speed.md").read_text().partition("## Moments and weights in fewer bits")[2]
    times = cells(storage.partition("\n## ")[0].partition("| bfloat16 weights |")[0], 1)
    errors = cells(
        "\n".join(
            line
            for line in (tables / "moments_error.md").read_text().splitlines()
            if line.startswith("| transformer |")
        ),
        1,
    )
    shown = cells(README.partition("## Measured")[2], 0)
    names = {
        '`moments="float32"`': ("adamw, float32", None),
        '`moments="bfloat16"`': ("adamw, bfloat16", "ours, 16 bits"),
        '`moments="int8"`': ("adamw, int8", "ours, 8 bits"),
        '`moments="int4"`': ("adamw, int4", "ours, 4 bits"),
        "optax, float32": ("optax.adamw", None),
        "optax, `mu_dtype=bfloat16`": (None, "optax's mu_dtype=bfloat16"),
        "torchao, 8 bits": ("torchao's AdamW8bit", "torchao, 8 bits"),
        "torchao, 4 bits": ("torchao's AdamW4bit", "torchao, 4 bits"),
        "bitsandbytes, 8 bits": ("bitsandbytes' AdamW8bit", None),
        "FlashOptim, 8 bits": (None, "FlashOptim, 8 bits"),
    }
    assert list(shown)[2:] == list(names)
    for name, (time, error) in names.items():
        _, size, relative, off = shown[name]
        assert relative == (times[time][3] if time else "")
        assert off == (errors[error][5].split(", ")[-1] if error else "")
        assert size == (errors[error][2] if error else "8.00" if "float32" in name else "")


def test_the_readme_counts_the_rules():
    count = re.search(r"(\d+) rules", README)
    assert count
    assert int(count[1]) == len(RULES)
