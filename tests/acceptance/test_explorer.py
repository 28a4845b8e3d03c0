"""GraphiQL at /graphql, in a real browser: a newcomer clicks, and sees something."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A machine without a network, a display or a second user: nothing that looks for one.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH_VIOLATIONS = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push(event.violatedDirective + " " + event.blockedURI));
"""


@dataclass
class Tab:
    """A page, and what went wrong on it."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def open(self, url: str) -> None:
        page = self.page
        page.on("request", lambda request: self.hosts.add(re.sub(r"^\w+://([^/]+)/.*", r"\1", request.url)))
        page.on("requestfailed", lambda request: self.failed.append(request.url))
        page.on("response", lambda r: self.failed.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        await page.add_init_script(WATCH_VIOLATIONS)
        await page.goto(f"{url}/graphql")
        await expect(page.get_by_role("tab").first).to_be_visible(timeout=30_000)

    async def choose(self, name: str) -> None:
        await self.page.get_by_role("tab").locator(".graphiql-tab-button", has_text=re.compile(f"^{name}$")).click()

    async def run(self) -> None:
        await self.page.get_by_role("button", name=re.compile("^Execute query")).click()

    async def does(self, example: str, showing: str) -> None:
        await self.choose(example)
        await self.run()
        await self.shows(showing)

    async def shows(self, text: str) -> None:
        await expect(self.page.locator(".graphiql-response .view-lines")).to_contain_text(text, timeout=15_000)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"needs one of {', '.join(BROWSERS)}; on Debian: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def tab(browser: Browser) -> Callable[..., Any]:
    async def open_tab(url: str) -> Tab:
        # A context of its own: nothing is stored from before, as on a first visit.
        opened = Tab(await (await browser.new_context()).new_page())
        await opened.open(url)
        return opened

    return open_tab


async def test_a_newcomer_clicks_and_sees_a_deposit_and_a_transfer_in_a_second_tab(
    headwater: Callable[..., Any], tab: Callable[..., Any], blank_dsn: str
) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    first, second = await tab(dev.url), await tab(dev.url)
    await first.does("Register", "ada@example.org")
    await first.does("Open", "OPEN")
    await second.does("Watch", '"balance": "0"'.replace(" ", "\u00a0"))

    await first.does("Deposit", "12.50")
    await second.shows("12.50")

    await second.does("Follow", "null")
    await first.does("Transfer", '"status"')  # it is on its way, and may have arrived by now
    await second.shows("COMPLETED")
    for each in (first, second):
        assert each.hosts == {dev.url.removeprefix("http://")}
        assert each.failed == []
        assert each.complaints == []
        assert await each.page.evaluate("window.__violations") == []


async def test_headers_can_be_edited(headwater: Callable[..., Any], tab: Callable[..., Any], blank_dsn: str) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    opened = await tab(dev.url)
    await opened.choose("Accounts")
    await opened.page.get_by_role("button", name="Headers").click()
    await opened.page.locator(".graphiql-editor-tool .graphiql-editor:visible").click()
    await opened.page.keyboard.insert_text('{"X-Request-Id": "42"}')
    async with opened.page.expect_request(lambda request: request.method == "POST") as sent:
        await opened.run()
    assert (await (await sent.value).all_headers())["x-request-id"] == "42"
