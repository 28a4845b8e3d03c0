"""What the documents say, held equal to what there is."""

from __future__ import annotations

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
SKETCHED_WITH = """
from decimal import Decimal
from typing import Annotated
from uuid import UUID
from bank.accounts.domain import Account, AccountNotFound, AccountNotOpen
from headwater import App, Command, Decider, Event, Exact, Feature, ReadModel, Recorded, View
"""
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands_of_the_cli(capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    return set(re.findall(r"^ {4}([\w-]+)\s", capsys.readouterr().out, re.MULTILINE))


def test_the_readme_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    listed = set(re.findall(r"^\| `headwater ([\w-]+)[ `]", README, re.MULTILINE))
    assert listed == commands_of_the_cli(capsys)


@pytest.mark.parametrize(
    "arguments",
    ["sagas list --limit 0", "verify --sample -1", "events tail --after -1", f"dead-letters list --position {10**20}"],
)
def test_a_number_that_can_be_none_is_refused_with_the_usage(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert "must be from" in capsys.readouterr().err


def test_the_readmes_first_screen_is_an_app() -> None:
    found = re.search(r"```python\n(class Deposit\(.*?)```", README, re.DOTALL)
    assert found is not None
    said: dict[str, Any] = {"__name__": "readme"}
    exec(compile(SKETCHED_WITH + found[1], "README.md", "exec", dont_inherit=True), said)  # it is our own
    schema = build_schema(print_schema(said["app"].schema))
    assert schema.mutation_type is not None
    assert schema.subscription_type is not None
    assert schema.mutation_type.fields["deposit"].description == "Put money into an account."
    assert schema.type_map["Account"].description == "An account, as its owner sees it."
    assert {"account", "accountChanges"} <= schema.subscription_type.fields.keys()


def test_the_readme_names_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)", README))
    assert {"dev", "test"} <= named <= targets


@pytest.mark.parametrize("document", sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/**/*.md")), ids=str)
def test_files_that_documents_name_exist(document: Path) -> None:
    _links_exist(ROOT / document)


def test_files_that_the_readme_names_exist() -> None:
    _links_exist(ROOT / "README.md")


def test_tests_that_the_operators_guide_names_exist() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)`", (ROOT / "docs" / "operating.md").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def test_the_api_guide_lists_the_error_codes() -> None:
    listed = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", (ROOT / "docs" / "api.md").read_text()))
    ours = [error for error in _all(PublicError) if error.__module__.startswith("headwater.")]
    assert {error.code for error in ours} <= listed


def _all(cls: type[E]) -> list[type[E]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_all(sub))]


def _links_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^):]+)\)", document.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        linked = document.parent / name if name else document
        assert linked.exists(), target
        assert not heading or heading in _headings(linked), target


def _headings(document: Path) -> set[str]:
    """What links to a place in a document can name, spelt as the web does."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_error_says_what_it_is() -> None:
    errors = _all(HeadwaterError)
    assert set(_all(PublicError)) < set(errors)
    for error in errors:
        assert error.__doc__, error
