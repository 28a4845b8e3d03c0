"""The import of the app that a command needs, and the errors when that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import run_command

from bank.main import app
from headwater.cli import main
from headwater.cli.application import limits, load
from headwater.errors import SettingsError
from headwater.graphql.schema import print_schema


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["bank/main.py:app", "bank..main:app", ".bank:app", "..:app", ".:app", ":app", "bank.main:", "bank.main"]
)
def test_a_malformed_app_name_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(SettingsError, match=r"must be MODULE:NAME, such as bank\.main:app"):
        load(name)


def test_the_app_of_pyproject_toml_is_the_default(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.headwater]\napp = "bank.main:app"\n')
    assert load(None) is app


@pytest.mark.parametrize("project", ["", "[tool]\n", "[tool.headwater]\n", "[tool.other]\nx = 1\n", "[project]\n"])
def test_without_any_app_named_the_error_says_how_to_name_one(folder: Path, project: str) -> None:
    assert limits(None) is None
    (folder / "pyproject.toml").write_text(project)
    assert limits(None) is None
    with pytest.raises(SettingsError, match="no app is named; add --app MODULE:NAME"):
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
def test_an_app_of_the_wrong_type_in_pyproject_toml_is_one_line_of_error(
    folder: Path, project: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pyproject.toml").write_text(project)
    assert main(["schema"]) == 1
    out, complaint = capsys.readouterr()
    assert (out, complaint.count("\n")) == ("", 1)
    assert complaint.startswith("headwater: pyproject.toml does not name the app as app = ")


def test_schema_check_compares_the_app_with_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["schema", "--app", "bank.main:app", "--check", "held"]
    contents = {b"": 1, b"\xff\xfe\x00": 1, print_schema(app.schema).encode(): 0}
    for content, code in contents.items():
        (folder / "held").write_bytes(content)
        assert main(check) == code
        out, complaint = capsys.readouterr()
        assert out == ""
        assert complaint.startswith("headwater: held differs from the schema of the app") is bool(code)
    assert main([*check[:-1], "."]) == 1


IMPORT_FAILURES = {
    "the module does not exist": (
        {},
        "mine:app",
        "there is no module mine; run the command from the folder that holds it, or correct the name",
    ),
    "its package does not exist": ({}, "no.mine:app", "there is no module no; run the command from"),
    "the module is missing in its package": ({"mine.py": ""}, "mine.main:app", "there is no module mine.main; run"),
    "an import in the module is missing": (
        {"mine.py": "\n\nimport nothing_there\n"},
        "mine:app",
        "mine.py, line 3 imports nothing_there, which does not exist here; install it, or correct the import",
    ),
    "an import in its package is missing": (
        {"mine/__init__.py": "import nothing_there", "mine/main.py": ""},
        "mine.main:app",
        "mine/__init__.py, line 1 imports nothing_there, which",
    ),
    "an import in a module that it imports is missing": (
        {"mine.py": "import other", "other.py": "\nimport nothing.there"},
        "mine:app",
        "other.py, line 2 imports nothing, which",
    ),
    "a name is missing in an imported module": (
        {"mine.py": "from other import app", "other.py": ""},
        "mine:app",
        "importing mine fails at mine.py, line 1: ImportError: cannot import name 'app' from 'other'",
    ),
    "a syntax error": (
        {"mine.py": "import other", "other.py": "\ndef f(:\n"},
        "mine:app",
        "other.py, line 2 cannot be parsed: invalid syntax; correct that line",
    ),
    "a null byte": ({"mine.py": "\0"}, "mine:app", "cannot be parsed: source code string cannot contain null bytes"),
    "an unknown name": (
        {"mine.py": "\nx = y\n"},
        "mine:app",
        "importing mine fails at mine.py, line 2: NameError: name 'y' is not defined; correct that line",
    ),
    "a circular import": (
        {"mine.py": "import other\napp = 1", "other.py": "from mine import app"},
        "mine:app",
        "importing mine fails at other.py, line 1: ImportError: cannot import name 'app' from partially initialized",
    ),
    "a wrong declaration": (
        {"mine.py": "from headwater import App\nfrom bank.users.feature import users\n\n\napp = App([users, users])"},
        "mine:app",
        "importing mine fails at mine.py, line 5: DefinitionError: ",
    ),
    "an error within a library": (
        {"mine.py": "import json\njson.loads('{')"},
        "mine:app",
        "importing mine fails at mine.py, line 2: JSONDecodeError: ",
    ),
    "an exit": ({"mine.py": "import sys\nsys.exit(3)"}, "mine:app", "fails at mine.py, line 2: SystemExit: 3"),
    "an error of several lines": (
        {"mine.py": "raise ValueError('a\\nb')"},
        "mine:app",
        "line 1: ValueError: a b; correct",
    ),
    "the attribute is missing": (
        {"mine.py": "from headwater import App\napplication = App([])"},
        "mine:app",
        "mine (mine.py) has no attribute 'app'; its App is application",
    ),
    "the module holds no app": (
        {"mine.py": ""},
        "mine:app",
        "mine (mine.py) has no attribute 'app'; it holds no App; assign one, such as app = App(features=[...])",
    ),
    "the attribute is not an app": (
        {"mine.py": "app = 5"},
        "mine:app",
        "app in mine (mine.py) is of type int, not an App; it holds no App",
    ),
}


@pytest.mark.parametrize("failure", IMPORT_FAILURES)
async def test_an_app_that_cannot_be_imported_names_the_place_of_the_fault_and_what_to_do(
    folder: Path, failure: str
) -> None:
    files, name, expected = IMPORT_FAILURES[failure]
    for file, text in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)
    code, out, err = await run_command("schema", "--app", name, cwd=folder)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"headwater: --app '{name}': ")
    assert expected in err


async def test_the_debug_log_holds_the_traceback_of_a_failed_import(folder: Path) -> None:
    (folder / "mine.py").write_text("x = y")
    _, _, err = await run_command("schema", "--app", "mine:app", cwd=folder, HEADWATER_LOG_LEVEL="debug")
    assert "Traceback" in err
