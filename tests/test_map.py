"""The tables of rooms and files in the documentation's page on design, held against the modules and their imports."""

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from public import PUBLIC, RULES

import jaxopt_adam

ROOT = Path(jaxopt_adam.__file__).parent
REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "design.md"
OUTSIDE = {"jax", "numpy", "optax", "chex"} | sys.stdlib_module_names
EXTRA = {"checkpoint": {"etils", "orbax"}}
"""Packages of extras, by the room that imports them besides those."""
PUBLIC_NAMES = "public names"


class Row(NamedTuple):
    """A row of the table: the rooms that it is about, those that they may import, and whether all above are meant."""

    rooms: list[str]
    imports: list[str]
    or_any_above: bool


class Import(NamedTuple):
    """An imported name: the module that has it, the room of that, and the name where it is one of the module's."""

    module: str
    room: str
    name: str | None


def rows():
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"(`\w+(\.py|/)`(, )?)+", cells[0]):
            rooms, imports = (
                [name.removesuffix(".py").rstrip("/") for name in re.findall(r"`([^`]+)`", cell)]
                for cell in (cells[0], cells[2])
            )
            if PUBLIC_NAMES in cells[2]:
                imports.append(PUBLIC_NAMES)
            found.append(Row(rooms, imports, "the ones above" in cells[2]))
    return found


TABLE = rows()
NAMES = [room for row in TABLE for room in row.rooms]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imports(module):
    """The imports of a module, anywhere in its text."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield imported(alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                yield imported(node.module, alias.name)


def imported(module, name):
    top, _, inner = module.partition(".")
    if top != "jaxopt_adam":
        return Import(module, top, name)
    if name is not None and not inner and (name in MODULES or f"{name}.__init__" in MODULES):
        inner, name = name, None
    return Import(inner, inner.partition(".")[0] if inner else PUBLIC_NAMES, name)


def room_of(module):
    return module.partition(".")[0]


def in_the_library(each):
    return each.room in NAMES or each.room == PUBLIC_NAMES


def inside(room):
    return [module for module in MODULES if room_of(module) == room]


def test_every_module_is_in_one_room():
    assert TABLE, f"{PAGE.name} has no table of rooms"
    assert len(NAMES) == len(set(NAMES))
    assert {room_of(module) for module in MODULES} == set(NAMES), f"the table in {PAGE.name}"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "_and_".join(row.rooms))
class TestRow:
    def test_rooms_import_what_the_table_says(self, row):
        found = {
            each.room
            for room in row.rooms
            for module in inside(room)
            for each in imports(module)
            if in_the_library(each) and each.room not in row.rooms
        }
        if row.or_any_above:
            found -= set(NAMES[: NAMES.index(row.rooms[0])])
        assert found == set(row.imports), f"the row of {row.rooms} in {PAGE.name}"

    def test_rooms_import_from_above_only(self, row):
        above = NAMES[: NAMES.index(row.rooms[0])]
        assert set(row.imports) <= {*above, PUBLIC_NAMES}


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) != "lab"])
def test_the_library_needs_jax_numpy_optax_and_chex_only(module):
    assert {each.room for each in imports(module) if not in_the_library(each)} <= OUTSIDE | EXTRA.get(
        room_of(module), set()
    )
    assert not [each for each in imports(module) if each.room == "lab"]


@pytest.mark.parametrize("module", inside("lab"))
def test_the_lab_uses_public_names_only(module):
    for each in imports(module):
        if each.room == PUBLIC_NAMES:
            assert each.name is None or each.name in PUBLIC
        elif in_the_library(each):
            assert not each.module.startswith("_")
            assert "._" not in each.module
            assert not (each.name or "").startswith("_")
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxopt_adam":
            assert node.attr in {*PUBLIC, "__version__", "__state_layout__"}, f"jaxopt_adam.{node.attr}"


@pytest.mark.parametrize("module", inside("rules"))
def test_a_rule_knows_neither_storage_nor_what_another_rule_hides(module):
    for each in imports(module):
        assert each.room != "storage"
        assert each.room != "rules" or not (each.name or "").startswith("_")


PLACES = {
    "jaxopt_adam/__init__.py": " import {0} as {0}\n",
    "tests/oracles/__init__.py": '    "{0}": ',
    "tests/test_family.py": '    "{0}": Row(',
    "docs/rule_table.py": '    "{0}": Texts(',
    "docs/reference.md": "\nreference/{0}\n",
    "README.md": "`{0}`",
}
"""The files that name every rule, each with the text by which it does."""


@pytest.mark.parametrize("path", PLACES)
def test_every_rule_is_in_each_place_that_names_all(path):
    text = (REPOSITORY / path).read_text()
    missing = [rule for rule in RULES if PLACES[path].format(rule) not in text]
    assert not missing, f"{path} lacks {missing}"


def test_every_rule_of_a_file_is_public():
    files = {module.partition(".")[2] for module in inside("rules")} - {"__init__"}
    defined = {
        node.name
        for module in files
        for node in ast.parse((ROOT / "rules" / f"{module}.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(each, ast.Name) and each.id == "optimizer" for each in node.decorator_list)
    }
    assert defined == set(RULES), "jaxopt_adam/__init__.py lists each rule"


def test_the_table_of_storage_has_each_file():
    section = PAGE.read_text().partition("## Inside `storage/`")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(_\w+)\.py` \|", section, re.MULTILINE)
    files = {module.partition(".")[2] for module in inside("storage")} - {"__init__"}
    assert sorted(named) == sorted(files), f"the table of files in {PAGE.name}"


def test_the_page_names_each_place():
    section = PAGE.read_text().partition("## Add a rule")[2].partition("\n## ")[0]
    assert all(f"`{path}`" in section for path in PLACES)
