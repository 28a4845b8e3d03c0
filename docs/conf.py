"""Settings of the documentation site, which `make docs` builds with Sphinx into build/docs.

The pages are Markdown. The reference is made from the docstrings, which are Markdown, too. Nothing is fetched while the
site is built or read.
"""

from __future__ import annotations

import re
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import headwater
from headwater import errors, testing

project = "Headwater"
author = "The Headwater authors"
copyright = "The Headwater authors, Apache-2.0"  # noqa: A001 - Sphinx gives the setting this name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

nitpicky = True  # an unresolved reference is a warning, and `make docs` fails on a warning
nitpick_ignore_regex = [("py:.*", r"(?!headwater\b).*")]  # other projects' sites are not asked for their names

default_role = "code"  # docstrings write code between single backticks
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "Headwater"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
pygments_style = "friendly"
pygments_dark_style = "monokai"

_PUBLIC = {id(getattr(headwater, name)): f"headwater.{name}" for name in headwater.__all__}
_PUBLIC |= {
    id(each): f"{each.__module__}.{name}"
    for face in (testing, errors)
    for name, each in vars(face).items()
    if not name.startswith("_") and getattr(each, "__module__", "") == face.__name__
}


def _shape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Read a docstring as an editor shows it: an indented paragraph is code, `name: ...` describes a parameter."""
    if getattr(obj, "__module__", "headwater").partition(".")[0] != "headwater":
        return  # `replace` is msgspec's, with a docstring of another style
    known = _parameters(obj)
    shaped: list[str] = []
    in_code = False
    for paragraph in "\n".join(lines).split("\n\n"):
        if paragraph.startswith("    "):
            shaped += [paragraph] if in_code else [".. code-block:: python", paragraph]
            in_code = True
        else:
            shaped += _described(paragraph, known)
            in_code = False
    lines[:] = "\n\n".join(shaped).split("\n")


def _described(paragraph: str, known: set[str]) -> list[str]:
    """Return the paragraph, with an entry of a list for each parameter that it describes."""
    begins = [
        found
        for found in re.finditer(r"(?:^|(?<=[.;)] )|(?<=\n))(\w+(?:, \w+)*): ", paragraph)
        if known.issuperset(found[1].split(", "))
    ]
    if not begins:
        return [paragraph]
    ends = [*(found.start() for found in begins[1:]), len(paragraph)]
    entries = [
        f"- **{found[1]}**: {' '.join(paragraph[found.end() : end].split())}"
        for found, end in zip(begins, ends, strict=True)
    ]
    return [*filter(None, [paragraph[: begins[0].start()].strip()]), "\n".join(entries)]


def _parameters(obj: object) -> set[str]:
    try:
        return set(signature(obj).parameters) if callable(obj) else set()
    except (TypeError, ValueError):  # of what C code has made
        return set()


def _refer_by_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Node | None:
    """Resolve `headwater.domain.messages.Event` of a signature to `headwater.Event` of the reference."""
    target = node.get("reftarget", "")
    if not target.startswith("headwater."):
        return None
    named = _object_named(target)
    if isinstance(named, TypeVar):
        return contnode  # a type parameter has no page
    public = _PUBLIC.get(id(named))
    if public is None or public == target:
        return None
    python = env.domains.python_domain
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)


def _object_named(dotted: str) -> object:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _draw(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the drawings into the page, where they take the colours of its dark or light theme."""
    for image in doctree.findall(nodes.image):
        uri = image["uri"]
        if uri.endswith(".svg"):
            image.replace_self(nodes.raw("", Path(app.srcdir, uri).read_text(encoding="utf-8"), format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _shape, priority=100)  # before napoleon
    app.connect("missing-reference", _refer_by_public_name)
    app.connect("doctree-resolved", _draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
