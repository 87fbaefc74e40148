"""The documentation and what the package offers, held against each other."""

import ast
import dataclasses
import enum
import importlib
import inspect
import itertools
import re
import runpy
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from docstring_parser.google import DEFAULT_SECTIONS, GoogleParser, Section, SectionType
from public import PUBLIC, RULES

import jaxopt_adam
from jaxopt_adam import schedules

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RULE_TABLE = runpy.run_path(str(DOCS / "rule_table.py"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "tables"} & set(path.relative_to(DOCS).parts))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# A cell, its options left out; and any fenced block with the word that follows the fence.
CELL = re.compile(
    r"^```\{code-cell\} python\n(---\n.*?^---\n)?((?::\w+:[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL
)
FENCE = re.compile(r"^(`{3,}|:{3,})([^\n`]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)

# What the documentation links to outside: hosts, and on hosts where anyone may have an address, the part before.
KNOWN = [
    "arxiv.org",
    "distill.pub",
    "docs.jax.dev",
    "docs.kidger.site",
    "docs.pytorch.org",
    "doi.org",
    "github.com/bitsandbytes-foundation/bitsandbytes",
    "github.com/databricks/flashoptim",
    "github.com/google/jaxopt",
    "github.com/pytorch/ao",
    "optax.readthedocs.io",
    "orbax.readthedocs.io",
    "proceedings.mlr.press",
    "www.3blue1brown.com",
    "www.cs.toronto.edu",
    "www.mathnet.ru",
]
# What has addresses: the pages and the article, and the docstrings, which the reference shows.
WITH_ADDRESSES = [*TEXTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "jaxopt_adam").rglob("*.py"))]
WITH_ADDRESSES += sorted((ROOT / "jaxopt_adam").rglob("*.html"))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
texts = pytest.mark.parametrize("page", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))


def entries(page):
    """The names that a page of the reference has entries for, with the module of each."""
    module = None
    for kind, name in re.findall(
        r"^\.\. (currentmodule|autofunction|autoclass|autodata):: (\S+)$", page.read_text(), re.MULTILINE
    ):
        if kind == "currentmodule":
            module = importlib.import_module(name)
        else:
            yield module, name


ENTRIES = [entry for page in PAGES for entry in entries(page)]
FUNCTIONS = [(module, name) for module, name in ENTRIES if inspect.isfunction(getattr(module, name))]
CLASSES = [(module, name) for module, name in ENTRIES if inspect.isclass(getattr(module, name))]


def named(those):
    return pytest.mark.parametrize(("module", "name"), those, ids=[name for _, name in those])


STYLE = GoogleParser([*DEFAULT_SECTIONS, Section("References", "references", SectionType.SINGULAR)])


def parts(value):
    """The parts of a docstring: the names and texts of each section, by the section's kind."""
    text = inspect.getdoc(value)
    assert text, "no docstring"
    found = {}
    for part in STYLE.parse(text).meta:
        kind, *names = part.args
        assert (part.description or "").strip(), part.args
        found.setdefault(kind, {})[names[0] if names else ""] = part.description
    return found


class TestReference:
    def test_every_public_name_has_an_entry(self):
        public = [name for module, name in ENTRIES if module is jaxopt_adam]
        assert len(public) == len(set(public))
        assert set(public) == set(PUBLIC)

    def test_every_schedule_has_an_entry(self):
        listed = [name for module, name in ENTRIES if module is schedules]
        found = [
            name
            for name, value in vars(schedules).items()
            if getattr(value, "__module__", None) == schedules.__name__ and callable(value) and not name.startswith("_")
        ]
        assert sorted(listed) == sorted(found)

    def test_entries_are_in_the_reference(self):
        assert {page.parent for page in PAGES if any(entries(page))} == {DOCS / "reference"}

    @pytest.mark.parametrize("rule", RULES)
    def test_a_rule_has_a_page_with_its_state_and_links_to_others(self, rule):
        page = DOCS / "reference" / f"{rule}.md"
        text = page.read_text()
        names = [name for _, name in entries(page)]
        state = RULE_TABLE["state"](RULES[rule])
        users = [each for each in RULES if RULE_TABLE["state"](RULES[each]) == state]
        described = [each for each in users if f".. autoclass:: {state}\n" in (page.parent / f"{each}.md").read_text()]
        assert text.startswith(f"# {rule}\n")
        assert names[0] == rule
        assert not set(names[1:]) & set(RULES)
        assert len(described) == 1, f"{state} has its entry with one of the rules that have such a state"
        linked = re.findall(r"^- \{func\}`~jaxopt_adam\.(\w+)` .*\.$", text.partition("## See also")[2], re.MULTILINE)
        assert linked
        assert set(linked) <= set(RULES) - {rule}

    def test_the_page_of_the_command_line_has_each_command(self):
        from jaxopt_adam.lab.commands import app

        text = (DOCS / "reference" / "command_line.md").read_text()
        commands = [command.callback.__name__ for command in app.registered_commands]
        assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == commands
        assert re.findall(r'usage\("(\w+)"\)', text) == commands

    @named(FUNCTIONS)
    def test_a_function_describes_its_arguments_its_result_and_its_errors(self, module, name):
        function = getattr(module, name)
        found = parts(function)
        described = [argument.lstrip("*") for argument in found.get("param", {})]
        assert described == list(inspect.signature(function).parameters)
        assert found["returns"]
        # A composition of any number of parts is written around the rule.
        source = function if function in (jaxopt_adam.chain, jaxopt_adam.named_chain) else inspect.unwrap(function)
        assert raised(source) <= set(found.get("raises", {}))
        if module is jaxopt_adam:
            assert ">>>" in found["examples"][""]

    @named(CLASSES)
    def test_a_class_describes_its_fields(self, module, name):
        kind = getattr(module, name)
        found = parts(kind)
        if issubclass(kind, enum.Enum):
            assert all(described_in_source(kind, member.name) for member in kind)
        elif issubclass(kind, tuple) and "_factory" not in kind.__annotations__:
            assert list(found["attribute"]) == list(kind._fields)
        elif dataclasses.is_dataclass(kind) and dataclasses.fields(kind):
            assert list(found["param"]) == [field.name for field in dataclasses.fields(kind)]

    @named([(module, name) for module, name in FUNCTIONS if name in RULES])
    def test_a_rule_has_its_source(self, module, name):
        assert parts(getattr(module, name))["references"]

    def test_each_rule_has_its_texts_in_the_table_of_rules(self):
        assert set(RULE_TABLE["TEXTS"]) == set(RULES)
        for summary, choice in RULE_TABLE["TEXTS"].values():
            assert summary
            assert choice

    def test_the_tables_of_rules_have_each_rule_once(self):
        groups = re.findall(r'^Markdown\(table\("(\w+)"\)\)$', (DOCS / "rules.md").read_text(), re.MULTILINE)
        assert groups == list(RULE_TABLE["GROUPS"])
        rows = [
            row for group in groups for row in RULE_TABLE["table"](group).splitlines() if row.startswith("| {func}")
        ]
        names = [row.split("`")[1].removeprefix("~jaxopt_adam.") for row in rows]
        assert names[:2] == ["adam", "adamw"]
        assert sorted(names) == sorted(RULES)
        assert all(row.count("|") == 6 for row in rows)


def raised(function):
    """The names of the exceptions that the body of a function raises itself, without those of functions in it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__))).body[0]
    found, rest = set(), list(tree.body)
    while rest:
        node = rest.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            rest.extend(ast.iter_child_nodes(node))
    return found


def described_in_source(kind, member):
    """True if a string follows the member of a class, which autodoc takes for its documentation."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    for one, other in itertools.pairwise(body):
        if isinstance(one, ast.Assign) and one.targets[0].id == member:
            return isinstance(other, ast.Expr) and isinstance(other.value.value, str)
    return False


class TestCode:
    """All Python in the documentation is run: a page's cells by the build, the README's blocks here."""

    @pages
    def test_python_on_a_page_is_in_cells(self, page):
        text = page.read_text()
        for _, word, body in FENCE.findall(text):
            assert word.split()[:1] not in (["python"], ["py"], ["pycon"], ["{code-block}"]), body
        if CELL.search(text):
            assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n")
        assert text.count("{code-cell}") == len(CELL.findall(text))
        for _, options, code in CELL.findall(text):
            assert "raises-exception" not in options
            compile(code, str(page), "exec")

    def test_the_build_runs_each_cell_and_ends_at_an_error(self):
        settings = {}
        for node in ast.parse((DOCS / "conf.py").read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    settings[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
        assert settings["nb_execution_mode"] == "force"
        assert settings["nb_execution_raise_on_error"] is True
        assert settings["nitpicky"] is True
        assert "sphinx.ext.viewcode" in settings["extensions"]  # entries link to their source
        assert not settings.keys() & {"nb_execution_excludepatterns", "nb_execution_allow_errors"}
        # Equations are converted by the build; a script that does so in the browser comes from elsewhere.
        assert settings["html_math_renderer"] == "mathml"
        assert "sphinx.ext.mathjax" not in settings["extensions"]
        # Neither what is left out of the build has pages of its own.
        assert settings["exclude_patterns"] == ["_build", "jupyter_execute", "tables"]

    def test_the_readme_runs(self):
        def cost(params, batch):
            return jnp.mean((params["w"] * batch - 1.0) ** 2)

        def train(optimizer):
            return jaxopt_adam.descend(lambda x: x**2, 1.0, optimizer, steps=5).value[-1]

        def rosenbrock(x):
            return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

        names = PUBLIC | {
            "cost": cost,
            "params": {"w": jnp.zeros(3)},
            "batches": [jnp.ones(3)] * 3,
            "matrices": lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params),
            "train": train,
            "rosenbrock": rosenbrock,
            "start": jnp.zeros(2),
        }
        blocks = [body for _, word, body in FENCE.findall((ROOT / "README.md").read_text()) if word == "python"]
        assert len(blocks) == (ROOT / "README.md").read_text().count("```python")
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
        assert jnp.all(names["params"]["w"] > 0)
        assert len(names["losses"]) == len(names["table"]) == 6
        assert names["result"].status_name == "CONVERGED"
        low = {"w": jnp.zeros((64, 64), jnp.bfloat16)}
        assert jax.eval_shape(names["optimizer"].init, low).correction["w"].dtype == np.int8


class TestLinks:
    @texts
    def test_files_and_anchors_are_there(self, page):
        text = FENCE.sub("", page.read_text())
        for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target

    @pages
    def test_pages_and_names_that_are_referred_to_are_there(self, page):
        for role, target in re.findall(r"\{(doc|func|class|meth|attr)\}`(?:[^`<]*<)?~?([^`>]+)>?`", page.read_text()):
            if role == "doc":
                start = DOCS if target.startswith("/") else page.parent
                assert (start / f"{target.lstrip('/')}.md").exists(), target
            else:
                found = jaxopt_adam
                for name in target.removeprefix("jaxopt_adam.").split("."):
                    found = getattr(found, name)

    @pytest.mark.parametrize("path", WITH_ADDRESSES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_addresses_outside_are_of_known_places(self, path):
        for address in re.findall(r"\bhttps?://[^\s\"'`<>)\]]+", path.read_text()):
            scheme, _, place = address.partition("://")
            assert scheme == "https", address
            assert any(place == known or place.startswith(f"{known}/") for known in KNOWN), address

    def test_every_page_is_in_one_table_of_contents(self):
        listed = []
        for page in PAGES:
            for _, word, body in FENCE.findall(page.read_text()):
                if word == "{toctree}":
                    rows = [row for row in body.splitlines() if row and not row.startswith(":")]
                    listed += [(page.parent / f"{row}.md").resolve() for row in rows]
        assert sorted(listed) == sorted(page.resolve() for page in PAGES if page != DOCS / "index.md")

    @pages
    def test_files_that_are_included_are_there(self, page):
        for _, word, _ in FENCE.findall(page.read_text()):
            if word.startswith("{include}"):
                assert (page.parent / word.split()[1]).exists(), word

    @pytest.mark.parametrize("table", sorted((DOCS / "tables").glob("*.md")), ids=lambda path: path.stem)
    def test_a_table_of_a_benchmark_is_shown_beside_its_command(self, table):
        shown = [text for page in PAGES if f"{{include}} tables/{table.name}\n" in (text := page.read_text())]
        assert shown
        script = Path("benchmarks") / f"{table.stem}.py"
        if not (ROOT / script).exists():  # a table of the scenes
            assert f'"{table.stem}": ' in (ROOT / "benchmarks" / "report.py").read_text()
            script = r"python -m benchmarks (--only \w+ )?--tables"
        assert all(re.search(f"`(python )?{script}`", text) for text in shown)


def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


class TestFigures:
    @texts
    def test_images_have_alternative_text(self, page):
        text = page.read_text()
        for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert len(alternative.split()) >= 4, target
        for tag in re.findall(r"<img\b[^>]*>", text):
            assert re.search(r'\balt="[^"]{10,}"', tag), tag
        for tag in re.findall(r"<iframe\b[^>]*>", text):
            assert re.search(r'\btitle="[^"]{10,}"', tag), tag

    @pages
    def test_images_that_cells_make_have_alternative_text(self, page):
        for options, _, code in CELL.findall(page.read_text()):
            if re.search(r"\bImage\(|\bSVG\(|pyplot|\bfigure\(|Figure\(", code):
                # Of IPython's Image the build takes the bytes and not the alt.
                alternative = re.search(r"^mystnb:\n  image:\n    alt: (.+(?:\n      .+)*)", options, re.MULTILINE)
                assert alternative, code
                assert len(alternative[1].split()) >= 4, code

    @pytest.mark.parametrize("path", sorted(DOCS.glob("*.py")), ids=lambda path: path.name)
    def test_helpers_make_no_images(self, path):
        assert not re.search(r"\bImage\(|pyplot", path.read_text())


class TestGallery:
    TEXT = (DOCS / "gallery.md").read_text()
    RUN = re.compile(r"^```sh\npython examples/(\w+)\.py([^\n]*)\n```\n\n```text\n(.+?)^```$", re.MULTILINE | re.DOTALL)

    def test_each_example_has_its_command_and_its_output(self):
        names = [name for name, _, _ in self.RUN.findall(self.TEXT)]
        assert sorted(names) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

    def test_figures_that_the_commands_draw_are_shown(self):
        drawn = [
            path for _, arguments, _ in self.RUN.findall(self.TEXT) for path in re.findall(r"docs/(\S+)", arguments)
        ]
        assert drawn == re.findall(r"^!\[.+\]\((\S+)\)$", self.TEXT, re.MULTILINE)
