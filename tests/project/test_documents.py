"""README, guides and generated files agree with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, TypeVar

import pytest
from graphql import build_schema

from headwater.cli import main
from headwater.errors import HeadwaterError, PublicError
from headwater.graphql.schema import print_schema

ROOT = Path(__file__).parents[2]
E = TypeVar("E", bound=HeadwaterError)
SKETCH_IMPORTS = """
from decimal import Decimal
from typing import Annotated
from uuid import UUID
from bank.accounts.domain import Account
from headwater import App, Command, Decider, Event, Exact, Feature, ReadModel, Recorded, Refusal, View
"""
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands_of_the_cli(capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    return set(re.findall(r"^ {4}([\w-]+)\s", capsys.readouterr().out, re.MULTILINE))


def test_the_page_of_commands_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `headwater ([\w-]+)[ `]", page, re.MULTILINE))
    assert listed == commands_of_the_cli(capsys)


@pytest.mark.parametrize(
    "arguments",
    ["sagas list --limit 0", "verify --sample -1", "events tail --after -1", f"dead-letters list --position {10**20}"],
)
def test_a_number_out_of_range_is_refused_with_the_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert "must be from" in capsys.readouterr().err


def test_the_code_on_the_first_screen_of_the_readme_is_an_app() -> None:
    found = re.search(r"```python\n(class Deposit\(.*?)```", README, re.DOTALL)
    assert found is not None
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(SKETCH_IMPORTS + found[1], "README.md", "exec", dont_inherit=True), namespace)
    schema = build_schema(print_schema(namespace["app"].schema))
    assert schema.mutation_type is not None
    assert schema.subscription_type is not None
    assert schema.mutation_type.fields["deposit"].description == "Put money into an account."
    assert schema.type_map["Account"].description == "An account, as its owner sees it."
    assert {"account", "accountChanges"} <= schema.subscription_type.fields.keys()


def test_documents_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make (\w+)|^make (\w+)", documents, re.MULTILINE))
    assert {"dev", "test"} <= {either or other for either, other in named} <= targets


@pytest.mark.parametrize("document", sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/**/*.md")), ids=str)
def test_files_that_guides_link_to_exist(document: Path) -> None:
    _links_exist(ROOT / document)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_that_top_level_documents_link_to_exist(name: str) -> None:
    _links_exist(ROOT / name)


def test_tests_that_the_operating_guide_names_exist() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)`", (ROOT / "docs" / "operating.md").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def _all(cls: type[E]) -> list[type[E]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_all(sub))]


def _links_exist(document: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", document.read_text(encoding="utf-8"))  # code may look like a link
    for target in re.findall(r"\]\(([^):]+)\)", prose):
        name, _, heading = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        assert not heading or heading in _headings(linked), target


def _headings(document: Path) -> set[str]:
    """Return the anchors of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_error_class_has_a_docstring() -> None:
    errors = _all(HeadwaterError)
    assert set(_all(PublicError)) < set(errors)
    for error in errors:
        assert error.__doc__, error


def test_contributing_shows_every_package() -> None:
    picture = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Find your way")[2]
    shown = re.findall(r"^ ([a-z]+) {2,}", picture, re.MULTILINE)
    packages = {path.parent.name for path in (ROOT / "src" / "headwater").glob("*/__init__.py")}
    assert sorted(shown) == sorted(packages | {"app"})


def test_the_glossary_gives_each_word_one_meaning() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\*\*.+?) \|", glossary, re.MULTILINE)
    words = [word for row in rows for word in re.findall(r"\*\*(.+?)\*\*", row)]
    assert len(words) > 50
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    "face", sorted((ROOT / "src" / "headwater").glob("*/__init__.py")), ids=lambda face: face.parent.name
)
def test_each_package_says_where_to_begin_reading(face: Path) -> None:
    docstring = ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))) or ""
    named = re.findall(r"`(\w+)(?:\.py)?`", docstring)
    modules = {path.stem for path in face.parent.iterdir()}
    assert modules.intersection(named), "it names no module to begin with"
