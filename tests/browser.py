"""A real Chromium for tests of pages: Debian's program, driven by Playwright; pages are files, and there is no network.

What a page complains of is collected: errors on its console, exceptions, requests that fail or that go elsewhere.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page, Request

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Whoever runs the tests may be root, and shared memory small.
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--force-prefers-reduced-motion")
# For a machine that is busy with other things.
TIMEOUT_MS = 60_000
# Until what was drawn last is on the screen: then how long the page is open, in milliseconds.
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
LOCAL = ("file:", "data:", "blob:", "about:")


@dataclass(frozen=True)
class Tab:
    """A page in a window of its own, and what it complained of."""

    page: "Page"
    session: "CDPSession"
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """All that Playwright's page offers."""
        return getattr(self.page, name)

    def open(self, path: Path, *, fragment: str = "") -> None:
        """Load a file and wait until its script says that it is drawn."""
        if fragment:
            # Another fragment alone would not load the page again.
            self.page.goto("about:blank")
        self.page.goto(path.resolve().as_uri() + fragment)
        self.page.wait_for_selector("html[data-ready='1']", state="attached")

    def texts(self, selector: str) -> list[str]:
        """The text of all elements that match."""
        return self.page.locator(selector).all_inner_texts()

    def count(self, selector: str) -> int:
        """How many elements match."""
        return self.page.locator(selector).count()


class Chromium:
    """A running browser without windows."""

    def __init__(self, browser: "Browser") -> None:
        self.browser = browser

    @contextmanager
    def tab(self, **options: Any) -> Iterator[Tab]:
        """An empty page in a context of its own: nothing is kept from another."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "offline": True, **options})
        context.set_default_timeout(TIMEOUT_MS)
        try:
            page = context.new_page()
            yield _listening(Tab(page, context.new_cdp_session(page)))
        finally:
            context.close()


@contextmanager
def launched() -> Iterator[Chromium]:
    """Chromium for the time of the block; tests that need it are skipped where it is missing."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("the program 'chromium' is missing: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[test]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield Chromium(browser)
        finally:
            browser.close()


@dataclass
class Work:
    """What a page's thread worked in a block, in milliseconds; other work of the machine counts little."""

    ms: float = 0.0


@contextmanager
def worked(tab: Tab) -> Iterator[Work]:
    """Measure the page's own thread through the block and until what it drew is on the screen."""
    found, before = Work(), thread_ms(tab)
    yield found
    tab.page.evaluate(PAINTED)
    found.ms = thread_ms(tab) - before


def thread_ms(tab: Tab) -> float:
    """Processor time of the page's main thread since the tab was opened, in milliseconds."""
    metrics = tab.session.send("Performance.getMetrics")["metrics"]
    return float(1000 * next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def _listening(tab: Tab) -> Tab:
    page = tab.page
    tab.session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.on("console", lambda told: told.type in ("error", "warning") and tab.faults.append(told.text))
    page.on("pageerror", lambda error: tab.faults.append(str(error)))
    page.on("requestfailed", lambda request: tab.faults.append(f"failed: {request.url[:200]}"))
    page.on("dialog", lambda dialog: (tab.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: _note(tab, request))
    return tab


def _note(tab: Tab, request: "Request") -> None:
    tab.requests.append(request.url)
    if not request.url.startswith(LOCAL):
        tab.faults.append(f"asks for {request.url[:200]}")
