"""Which app a command is about, and what is said when that is not to be made out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bank.main import app
from headwater.cli import main
from headwater.cli.application import limits, load
from headwater.errors import SettingsError
from headwater.graphql.schema import print_schema


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [".bank:app", "..:app", ".:app", ":app", "bank.main:", "bank.main"])
def test_an_app_is_a_module_and_a_name_in_it(name: str) -> None:
    with pytest.raises(SettingsError, match=r"must be MODULE:NAME, such as bank\.main:app"):
        load(name)


def test_the_project_names_its_app(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.headwater]\napp = "bank.main:app"\n')
    assert load(None) is app


@pytest.mark.parametrize("project", ["", "[tool]\n", "[tool.headwater]\n", "[tool.other]\nx = 1\n", "[project]\n"])
def test_a_project_that_names_none(folder: Path, project: str) -> None:
    assert limits(None) is None
    (folder / "pyproject.toml").write_text(project)
    assert limits(None) is None
    with pytest.raises(SettingsError, match="no app: say --app MODULE:NAME"):
        load(None)


@pytest.mark.parametrize(
    "project",
    [
        '[tool]\nheadwater = "bank.main:app"\n',
        'tool = "x"\n',
        "tool = []\n",
        '[[tool.headwater]]\napp = "bank.main:app"\n',
        '[tool.headwater]\napp = ["bank.main:app"]\n',
        "[tool.headwater]\napp = 5\n",
    ],
)
def test_a_project_that_names_it_wrongly(folder: Path, project: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pyproject.toml").write_text(project)
    assert main(["schema"]) == 1
    out, complaint = capsys.readouterr()
    assert (out, complaint.count("\n")) == ("", 1)
    assert complaint.startswith("headwater: pyproject.toml names no app as it should")


def test_a_schema_is_held_equal_to_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["schema", "--app", "bank.main:app", "--check", "held"]
    contents = {b"": 1, b"\xff\xfe\x00": 1, print_schema(app.schema).encode(): 0}
    for content, code in contents.items():
        (folder / "held").write_bytes(content)
        assert main(check) == code
        out, complaint = capsys.readouterr()
        assert out == ""
        assert complaint.startswith("headwater: held holds another schema than the app") is bool(code)
    assert main([*check[:-1], "."]) == 1
