"""The reference on the site has every public name, and every public name has a docstring to make it from."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import headwater

ROOT = Path(__file__).parents[2]


def test_the_reference_lists_every_public_name_once() -> None:
    pages = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md"))]
    entry = re.compile(r"^\.\. auto(?:class|data|exception|function):: (\w+)(?:\(\))?$", re.MULTILINE)
    listed = entry.findall("\n".join(pages))
    assert sorted(listed) == sorted(headwater.__all__)


@pytest.mark.parametrize("name", headwater.__all__)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    named = getattr(headwater, name)
    docstring = named.__dict__.get("__doc__") if inspect.isclass(named) else inspect.getdoc(named)
    assert docstring, "it has none"
    assert not docstring.startswith(f"{name}("), "dataclass made it from the fields"


@pytest.mark.parametrize("name", headwater.__all__)
def test_the_docstring_of_a_public_name_has_an_example(name: str) -> None:
    docstring = inspect.getdoc(getattr(headwater, name)) or ""
    code = re.findall(r"^ {4}.*|^>>> .*|`[^`]+`", docstring, re.MULTILINE)
    assert any(re.search(rf"\b{name}\b", each) for each in code), "no code in it uses the name"
