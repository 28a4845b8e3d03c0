"""GraphiQL at /graphql in a real browser: the examples run by a click and show results."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

WATCH_VIOLATIONS = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push(event.violatedDirective + " " + event.blockedURI));
"""


@dataclass
class Tab:
    """A page with what it requested, which requests failed, and what it logged as errors or warnings."""

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

    async def run_example(self, example: str, showing: str) -> None:
        await self.choose(example)
        await self.run()
        await self.shows(showing)

    async def shows(self, text: str) -> None:
        await expect(self.page.locator(".graphiql-response .view-lines")).to_contain_text(text, timeout=15_000)


@pytest.fixture
async def tab(browser: Browser) -> Callable[..., Any]:
    async def open_tab(url: str) -> Tab:
        # A context of its own has an empty local storage, as on a first visit.
        opened = Tab(await (await browser.new_context()).new_page())
        await opened.open(url)
        return opened

    return open_tab


async def test_a_second_tab_shows_a_deposit_and_a_transfer_made_in_the_first(
    headwater: Callable[..., Any], tab: Callable[..., Any], blank_dsn: str
) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    first, second = await tab(dev.url), await tab(dev.url)
    await first.run_example("Register", "ada@example.org")
    await first.run_example("Open", "OPEN")
    await second.run_example("Watch", '"balance": "0"'.replace(" ", "\u00a0"))

    await first.run_example("Deposit", "12.50")
    await second.shows("12.50")

    await second.run_example("Follow", "null")
    await first.run_example("Transfer", '"status"')  # the transfer may be under way or complete by now
    await second.shows("COMPLETED")
    for each in (first, second):
        assert each.hosts == {dev.url.removeprefix("http://")}
        assert each.failed == []
        assert each.complaints == []
        assert await each.page.evaluate("window.__violations") == []


async def test_a_header_entered_in_the_editor_is_sent(
    headwater: Callable[..., Any], tab: Callable[..., Any], blank_dsn: str
) -> None:
    dev = await headwater("dev", DATABASE_URL=blank_dsn)
    opened = await tab(dev.url)
    await opened.choose("Accounts")
    await opened.page.get_by_role("button", name="Headers").click()
    await opened.page.locator(".graphiql-editor-tool .graphiql-editor:visible").click()
    await opened.page.keyboard.insert_text('{"X-Request-Id": "42"}')
    async with opened.page.expect_request(lambda request: request.method == "POST") as sent:
        await opened.run()
    assert (await (await sent.value).all_headers())["x-request-id"] == "42"
