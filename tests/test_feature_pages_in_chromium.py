"""Pages of features in a real browser: thirty thousand of them found and sorted at once, one shown, each coder told."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Chromium, Tab, worked
from test_explorer import HOSTILE
from test_interp_pages import HOOKS, described, site  # noqa: F401

from circuitcli.render import feature_pages as pages
from circuitcli.render.text import number

CODERS, EACH = ("resid.0", "resid.1", "mlp_in.1"), 10_000
WORDS = ("river", "bank", "Loan", "été", "东京", "of", "the")
# Milliseconds of the page's own thread: less than what people feel as a stop.
QUICK, DRAWN = 500, 2000


def rows_of(coder: str) -> dict[str, list]:
    """What the index holds of a coder: labels from a seed, some of them hostile, some scores not known."""
    generator = random.Random(coder)
    labels = [" ".join(generator.choices(WORDS, k=3)) for _ in range(EACH)]
    labels[: len(HOSTILE)] = HOSTILE
    scores = [round(generator.random(), 3) if generator.random() < 0.5 else None for _ in range(EACH)]
    density = [round(generator.lognormvariate(-6, 2), 6) for _ in range(EACH)]
    peaks = [round(generator.uniform(0, 50), 2) for _ in range(EACH)]
    return {"index": list(range(EACH)), "label": labels, "density": density, "max": peaks, "score": scores}


ROWS = {coder: rows_of(coder) for coder in CODERS}
ALL = [
    {"id": f"{coder}/{index}", **{name: column[index] for name, column in ROWS[coder].items()}}
    for coder in CODERS
    for index in range(EACH)
]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of thirty thousand features."""
    folder = tmp_path_factory.mktemp("large")
    told = [
        {
            "hook": coder,
            "page": f"{coder}.html",
            "n_live": EACH,
            "d_sae": EACH,
            "dead": 0.0,
            "empty": [],
            "places": coder,
        }
        for coder in CODERS
    ]
    pages.write_data(folder, "index", {"run": "run", "model": "model", "chunk": pages.CHUNK, "coders": told})
    for coder in CODERS:
        pages.write_data(folder, f"{coder}/rows", ROWS[coder])
    pages.write_page(folder, pages.INDEX, pages.html("index", "features"))
    return folder / pages.INDEX


@pytest.fixture(scope="module")
def shared(chromium: Chromium) -> Iterator[Tab]:
    with chromium.tab() as opened:
        yield opened


@pytest.fixture
def tab(shared: Tab) -> Iterator[Tab]:
    del shared.requests[:], shared.faults[:]
    yield shared
    assert shared.faults == []


def ids(tab: Tab) -> list[str]:
    """The features whose rows are seen, from top to bottom."""
    seen = "all => all.sort((a, b) => a.dataset.row - b.dataset.row).map(one => one.dataset.id)"
    return tab.page.eval_on_selector_all("a.row", seen)


def test_thirty_thousand_features_are_searched_and_sorted_without_a_stop(tab: Tab, large: Path):
    with worked(tab) as opening:
        tab.open(large)
    assert opening.ms < DRAWN and tab.page.inner_text("#counts") == "30,000 of 30,000 features"
    assert len(ids(tab)) < 200 and ids(tab)[:5] == [one["id"] for one in ALL[:5]]
    with worked(tab) as typing:
        tab.page.fill("#search", "loan resid.1")
    found = [one for one in ALL if "loan" in one["label"].lower() and one["id"].startswith("resid.1")]
    assert typing.ms < QUICK and tab.page.inner_text("#counts") == f"{len(found):,} of 30,000 features"
    assert ids(tab)[:20] == [one["id"] for one in found[:20]]
    tab.page.fill("#search", "")
    for name, falls in (("density", True), ("max", True), ("score", True), ("label", False), ("id", True)):
        with worked(tab) as sorting:
            tab.page.click(f"[data-sort={name}]")
        known = [one for one in ALL if name == "id" or one[name] is not None]
        order = {"label": lambda one: one["label"].lower(), "id": ALL.index}.get(name, lambda one: one[name])
        wanted = known[::-1] if name == "id" else sorted(known, key=order, reverse=falls)
        assert sorting.ms < QUICK, name
        if name != "label":
            assert [key(ALL, one, name) for one in ids(tab)[:20]] == [key(ALL, one["id"], name) for one in wanted[:20]]


def key(rows: list[dict], name: str, by: str) -> object:
    """What a feature is sorted by: ties may come in any order."""
    coder, _, index = name.partition("/")
    return rows[CODERS.index(coder) * EACH + int(index)][by]


def test_keys_and_the_wheel_lead_through_the_list(tab: Tab, large: Path):
    tab.open(large)
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("river")
    tab.page.keyboard.press("Enter")
    first = tab.page.evaluate("document.activeElement.dataset.id")
    tab.page.keyboard.press("ArrowDown")
    second = tab.page.evaluate("document.activeElement.dataset.id")
    found = [one["id"] for one in ALL if "river" in one["label"].lower()]
    assert [first, second] == found[:2]
    tab.page.eval_on_selector("#list", "one => { one.scrollTop = one.scrollHeight; }")
    tab.page.wait_for_selector(f'a.row[data-id="{found[-1]}"]')
    assert len(ids(tab)) < 200
    tab.reload()
    tab.page.wait_for_selector("html[data-ready='1']", state="attached")
    assert tab.page.input_value("#search") == "river"


def test_hostile_labels_of_the_index_stay_text(tab: Tab, large: Path):
    tab.open(large)
    for label in HOSTILE[:6]:
        tab.page.fill("#search", label[:40])
    tab.page.fill("#search", "")
    assert tab.page.evaluate("window.hit") is None
    assert tab.count("img, iframe, [onload], [onerror], [href^=javascript]") == 0
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = tab.page.eval_on_selector_all("a.row", "all => all.map(one => one.offsetHeight)")
    assert max(heights) == min(heights)


def test_from_the_index_to_a_feature_and_through_the_others(tab: Tab, site: Path):  # noqa: F811
    tab.open(site / pages.INDEX)
    tab.page.click("a.row >> nth=2")
    tab.page.wait_for_selector("article[data-feature]")
    first = tab.page.get_attribute("article", "data-feature")
    assert {"contexts", "logits", "histogram"} <= set(
        tab.page.eval_on_selector_all("section", "all => all.map(one => one.dataset.section)")
    )
    tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_selector(f"article:not([data-feature='{first}'])")
    tab.page.keyboard.press("ArrowLeft")
    tab.page.wait_for_selector(f"article[data-feature='{first}']")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("body[data-page=index]")


def test_a_feature_that_is_not_there_is_said_to_be_missing(tab: Tab, site: Path):  # noqa: F811
    for missing in ("resid.0/99999", "resid.9/1", "<b>", "%E0%A4%A"):
        tab.page.goto("about:blank")
        tab.page.goto((site / pages.FEATURE).as_uri() + "#" + missing)
        tab.page.wait_for_selector("#problem:visible")
    # A file that is not there is a failed request.
    tab.faults[:] = [
        fault for fault in tab.faults if "ERR_FILE_NOT_FOUND" not in fault and "failed: file:" not in fault
    ]


def test_the_page_of_a_coder_draws_its_numbers_and_leads_to_its_features(tab: Tab, site: Path):  # noqa: F811
    for hook in HOOKS:
        tab.open(site / pages.coder_page(str(hook)))
        sections = tab.page.eval_on_selector_all("section", "all => all.map(one => one.dataset.section)")
        assert {"facts", "histograms", "curves"} <= set(sections)
        assert tab.count("section[data-section=histograms] svg") > 0
    tab.page.click("#features")
    tab.page.wait_for_selector("body[data-page=index]")
    tab.page.wait_for_selector("html[data-ready='1']", state="attached")
    assert set(one.partition("/")[0] for one in ids(tab)) == {str(HOOKS[-1])}
    assert number(1.0) == "1"
