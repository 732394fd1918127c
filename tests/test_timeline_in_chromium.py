"""The page of circuits through training in a real browser: its slider, what it follows, and text that is only text."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Chromium, Tab
from test_through_page import HOSTILE, LINES, NAMES, THERE, report

from circuitcli.render.text import visible
from circuitcli.render.timeline_page import timeline_page


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of circuits at four checkpoints, whose names and labels are hostile."""
    path = tmp_path_factory.mktemp("pages") / "timeline.html"
    path.write_text(timeline_page(report(text=HOSTILE)), encoding="utf-8")
    return path


@pytest.fixture
def tab(chromium: Chromium, written: Path) -> Iterator[Tab]:
    with chromium.tab() as opened:
        opened.open(written)
        yield opened
        assert opened.faults == []


def frames_shown(tab: Tab) -> list[int]:
    """Indices of the checkpoints whose circuits can be seen."""
    shown = "all => all.filter(one => one.checkVisibility()).map(one => Number(one.dataset.index))"
    return tab.page.eval_on_selector_all("figure.frame", shown)


def test_the_slider_and_the_keys_show_one_checkpoint_at_a_time(tab: Tab):
    assert frames_shown(tab) == [3]
    tab.fill("#slider", "1")
    assert frames_shown(tab) == [1]
    tab.page.keyboard.press("Home")
    assert frames_shown(tab) == [0]
    tab.page.keyboard.press("ArrowRight")
    tab.click("#after")
    assert frames_shown(tab) == [2]
    tab.page.keyboard.press("End")
    assert frames_shown(tab) == [3]
    tab.goto(tab.page.url + f"#{NAMES[1]}")
    tab.reload()
    assert frames_shown(tab) == [1]


def test_a_click_follows_a_feature_through_all_checkpoints(tab: Tab):
    tab.locator("figure.frame[data-index='3'] [data-line='0']").first.click()
    rows = tab.texts("#detail tr")
    assert len(rows) == 1 + len(NAMES)
    for number, row in enumerate(rows[1:]):
        assert (f"{LINES[0].hook}/{LINES[0].indices[number]}" in row) and ("not in the circuit" in row) != (
            0 in THERE[number]
        )
    assert visible(HOSTILE) in rows[1]
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("#detail").is_visible()


def test_in_print_all_checkpoints_are_there(tab: Tab):
    tab.page.emulate_media(media="print")
    assert frames_shown(tab) == [0, 1, 2, 3]
    assert tab.page.pdf().startswith(b"%PDF")


def test_nothing_hostile_runs(tab: Tab):
    assert tab.count("img") == 0
    assert tab.count("script") == 2
    assert len(tab.requests) == 1
