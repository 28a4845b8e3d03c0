"""The page and the files of the explorer, and the check that decides if they must be built again."""

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headwater.graphql.explorer.examples import Example
from headwater.graphql.explorer.page import NOT_BUILT, explorer_page, explorer_routes

EXPLORER = Path(__file__).parents[2] / "explorer"
EXAMPLES = [
    Example("Who is it", "query Who($id: ID!) { node(id: $id) { id } }", '{"id": "1"}'),
    Example("All", "query All { users { totalCount } }"),
]


Get = Callable[[str], httpx.Response]


def server(static: Path) -> Get:
    """Return a function that requests a path from an application with the explorer in `static`."""

    async def page(request: Request) -> Response:
        return explorer_page(static)

    application = Starlette(routes=[Route("/graphql", page), *explorer_routes(EXAMPLES, static)])

    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path)

    return lambda path: asyncio.run(ask(path))


@pytest.fixture
def built(tmp_path: Path) -> Get:
    static = tmp_path / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<title>Headwater</title>")
    (static / "assets" / "index-4f2a.js").write_text("start()")
    return server(static)


def test_the_explorer_page_has_a_strict_policy_and_is_not_cached(built: Get) -> None:
    answer = built("/graphql")

    assert (answer.status_code, answer.text) == (200, "<title>Headwater</title>")
    assert dict(answer.headers) == {
        "content-length": "24",
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self' 'unsafe-inline'; "
            "font-src 'self' data:; img-src 'self' data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }


def test_an_asset_of_the_explorer_may_be_cached_for_ever(built: Get) -> None:
    answer = built("/explorer/assets/index-4f2a.js")

    assert (answer.status_code, answer.text) == (200, "start()")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/explorer/assets/gone.js", "/explorer/assets/..%2Findex.html", "/explorer/index.html"]
)
def test_the_explorer_serves_no_other_files(built: Get, path: str) -> None:
    assert built(path).status_code == 404


def test_the_examples_are_listed_in_their_order(built: Get) -> None:
    answer = built("/explorer/examples.json")

    assert answer.headers["cache-control"] == "no-cache"
    assert answer.json() == [
        {
            "name": "Who is it",
            "query": "query Who($id: ID!) { node(id: $id) { id } }",
            "variables": '{"id": "1"}',
        },
        {"name": "All", "query": "query All { users { totalCount } }", "variables": None},
    ]


def test_an_explorer_that_is_not_built_returns_the_command_that_builds_it(tmp_path: Path) -> None:
    unbuilt = server(tmp_path / "static")
    answer = unbuilt("/graphql")

    assert (answer.status_code, answer.text) == (503, NOT_BUILT)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "make explorer" in answer.text
    assert unbuilt("/explorer/assets/index-4f2a.js").status_code == 404


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("headwater_explorer_build", EXPLORER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(tmp_path: Path, build: ModuleType) -> Path:
    explorer = tmp_path / "a explorer"
    (explorer / "src").mkdir(parents=True)
    for name in (*build.SOURCES, "src/main.tsx"):
        (explorer / name).write_text(name)
    return explorer


@pytest.fixture
def static(tmp_path: Path, build: ModuleType, sources: Path) -> Path:
    """Return a folder with the result of a build of `sources`."""
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "index.html").write_text("<title>Headwater</title>")
    (folder / ".built-from").write_text(build.digest(sources))
    return folder


def test_an_explorer_is_not_built_again_while_its_sources_are_unchanged(
    build: ModuleType, sources: Path, static: Path
) -> None:
    assert build.is_current(sources, static)
    assert build.build(sources, static) == "explorer: up to date"


@pytest.mark.parametrize("name", ["package.json", "package-lock.json", "vite.config.ts", "index.html", "src/main.tsx"])
def test_a_changed_source_makes_the_build_stale(build: ModuleType, sources: Path, static: Path, name: str) -> None:
    (sources / name).write_text("changed")

    assert not build.is_current(sources, static)


def test_a_new_and_a_renamed_source_make_the_build_stale(build: ModuleType, sources: Path, static: Path) -> None:
    (sources / "src" / "new.ts").write_text("")
    assert not build.is_current(sources, static)

    (sources / "src" / "new.ts").unlink()
    assert build.is_current(sources, static)

    (sources / "src" / "main.tsx").rename(sources / "src" / "start.tsx")
    assert not build.is_current(sources, static)


@pytest.mark.parametrize("name", ["index.html", ".built-from"])
def test_a_missing_file_makes_the_build_stale(build: ModuleType, sources: Path, static: Path, name: str) -> None:
    (static / name).unlink()

    assert not build.is_current(sources, static)


def test_files_beside_the_sources_do_not_make_the_build_stale(build: ModuleType, sources: Path, static: Path) -> None:
    (sources / "node_modules").mkdir()
    (sources / "node_modules" / ".installed").write_text("something")

    assert build.is_current(sources, static)


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("v20.18.9", False),
        ("v20.19.0", True),
        ("v21.7.0", False),
        ("v22.11.0", False),
        ("v22.12.0", True),
        ("v24.0.0", True),
        ("not a version", False),
    ],
)
def test_the_build_accepts_recent_versions_of_node_only(build: ModuleType, version: str, accepted: bool) -> None:
    assert build.satisfies(version) is accepted


def test_the_accepted_versions_of_node_are_those_that_vite_requires(build: ModuleType) -> None:
    lock = json.loads((EXPLORER / "package-lock.json").read_text())

    assert lock["packages"]["node_modules/vite"]["engines"]["node"] == build.NODE_RANGE


def test_the_lock_file_names_no_download_address() -> None:
    lock = json.loads((EXPLORER / "package-lock.json").read_text())

    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
