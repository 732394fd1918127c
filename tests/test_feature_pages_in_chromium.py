"""Pages of features in a real browser: thirty thousand of them found and sorted at once, one shown, each coder told."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, worked
from test_explorer import HOSTILE

from circuitcli.render import feature_pages as pages
from circuitcli.render.text import visible

CODERS, EACH = ("resid.0", "resid.1", "mlp_in.1"), 10_000
WORDS = ("river", "bank", "Loan", "été", "东京", "of", "the")
PAPER = "getComputedStyle(document.body).backgroundColor"
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


def document(coder: str, feature: int) -> dict:
    """What the page of a feature shows; its texts are hostile."""
    text = HOSTILE[feature]
    context = {"tokens": ["a", text, "b"], "activations": [0, 4.5, 1.25], "peak": 1, "block": 2, "position": 7}
    near = [{"hook": coder, "features": [[f"{coder}/{other}", 0.5, HOSTILE[other]] for other in range(3)]}]
    told = {"id": f"{coder}/{feature}", "label": text, "density": 0.11, "n_active": 17, "max": 4.5, "mean": 2.0}
    told |= {"histogram": {"edges": [1.0, 2.0, 4.0, 8.0], "counts": [3, 5, 9]}, "quantiles": {"0.5": 2.125}}
    told |= {"contexts": [context] * 4, "promoted": [[text, 1.5]], "suppressed": [["b", -1.25]]}
    told |= {"decoders": near, "codes": near, "ablation": None}
    told |= {"after": f"{coder}/{feature + 1}"} if feature < N_SHOWN - 1 else {}
    return told | ({"before": f"{coder}/{feature - 1}"} if feature else {})


def coder_facts(coder: str) -> dict:
    """What the page of a coder shows."""
    histogram = {"edges": [0.01, 0.1, 1.0], "counts": [1.0, 9.0]}
    return {
        "places": coder,
        "architecture": "topk",
        "facts": [["features", EACH, ""], ["never active there", 76, ""], ["share", 0.25, "share"]],
        "histograms": {"density": histogram, "decoder": histogram, "encoder": histogram},
        "curves": {"step": [1, 2, 3], "loss": [1.0, 0.5, 0.25], "dead": [0.0, 0.0, 0.0], "l0": [3, 3, 3]},
    }


# Features of each coder that have a page.
N_SHOWN = 6


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of three coders with ten thousand features each, the first of which can be opened."""
    folder = tmp_path_factory.mktemp("site")
    about = {"n_live": EACH, "d_sae": EACH, "dead": 0.0, "empty": []}
    told = [{"hook": coder, "page": pages.coder_page(coder), "places": coder, **about} for coder in CODERS]
    pages.write_data(folder, "index", {"run": "run", "model": "model", "chunk": pages.CHUNK, "coders": told})
    for coder in CODERS:
        pages.write_data(folder, f"{coder}/rows", ROWS[coder])
        pages.write_data(folder, f"{coder}/0", {feature: document(coder, feature) for feature in range(N_SHOWN)})
        pages.write_data(folder, f"{coder}/coder", coder_facts(coder))
        pages.write_page(folder, pages.coder_page(coder), pages.html("coder", coder, {"hook": coder}))
    pages.write_page(folder, pages.INDEX, pages.html("index", "features"))
    pages.write_page(folder, pages.FEATURE, pages.html("feature", "a feature"))
    return folder


@pytest.fixture
def tab(shared: Tab) -> Iterator[Tab]:
    del shared.requests[:], shared.faults[:]
    yield shared
    assert shared.faults == []


def ids(tab: Tab) -> list[str]:
    """The features whose rows are seen, from top to bottom."""
    seen = "all => all.sort((a, b) => a.dataset.row - b.dataset.row).map(one => one.dataset.id)"
    return tab.page.eval_on_selector_all("a.row", seen)


def test_thirty_thousand_features_are_searched_and_sorted_without_a_stop(tab: Tab, site: Path):
    with worked(tab) as opening:
        tab.open(site / pages.INDEX)
    assert opening.ms < DRAWN and tab.page.inner_text("#counts") == "30,000 of 30,000 features"
    assert len(ids(tab)) < 200 and ids(tab)[:5] == [one["id"] for one in ALL[:5]]
    with worked(tab) as typing:
        tab.page.fill("#search", "loan resid.1")
    found = [one for one in ALL if "loan" in one["label"].lower() and one["id"].startswith("resid.1")]
    assert typing.ms < QUICK and tab.page.inner_text("#counts") == f"{len(found):,} of 30,000 features"
    assert ids(tab)[:20] == [one["id"] for one in found[:20]]
    tab.page.fill("#search", "")
    for name, falls in (("density", True), ("max", True), ("score", True), ("label", False), ("id", False)):
        with worked(tab) as sorting:
            tab.page.click(f"[data-sort={name}]")
        assert sorting.ms < QUICK, name
        values = [value_of(one["id"], name) for one in ALL if value_of(one["id"], name) is not None]
        # Features of one value may come in any order.
        assert [value_of(one, name) for one in ids(tab)[:20]] == sorted(values, reverse=falls)[:20]


def value_of(feature: str, column: str) -> Any:
    """What a feature is sorted by."""
    coder, _, index = feature.partition("/")
    if column == "id":
        return CODERS.index(coder) * EACH + int(index)
    value = ROWS[coder][column][int(index)]
    return value.lower() if isinstance(value, str) else value


def test_keys_and_the_wheel_lead_through_the_list(tab: Tab, site: Path):
    tab.open(site / pages.INDEX)
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


def test_hostile_labels_of_the_index_stay_text(tab: Tab, site: Path):
    tab.open(site / pages.INDEX)
    for label in HOSTILE[:6]:
        tab.page.fill("#search", label[:40])
    tab.page.fill("#search", "")
    assert tab.page.evaluate("window.hit") is None
    assert tab.count("img, iframe, [onload], [onerror], [href^=javascript]") == 0
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "\\ud83d" not in tab.page.inner_text("#list")
    heights = tab.page.eval_on_selector_all("a.row", "all => all.map(one => one.offsetHeight)")
    assert max(heights) == min(heights)


def test_from_the_index_to_a_feature_and_through_the_others(tab: Tab, site: Path):
    tab.open(site / pages.INDEX)
    tab.page.click("a.row >> nth=2")
    for feature, key in ((2, "ArrowRight"), (3, "ArrowRight"), (4, "ArrowLeft"), (3, "Escape")):
        tab.page.wait_for_selector(f"html[data-ready='1'] article[data-feature='{CODERS[0]}/{feature}']")
        assert visible(HOSTILE[feature])[:40] in tab.page.inner_text("#label")
        sections = tab.page.eval_on_selector_all("section", "all => all.map(one => one.dataset.section)")
        assert {"contexts", "logits", "histogram", "decoders", "codes"} <= set(sections)
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.page.keyboard.press(key)
    tab.page.wait_for_selector("body[data-page=index]")
    assert tab.page.evaluate("window.hit") is None
    assert tab.count("img, iframe, [onload], [onerror], [href^=javascript]") == 0


def test_a_feature_that_is_not_there_is_said_to_be_missing(tab: Tab, site: Path):
    for missing in (f"resid.0/{EACH + 1}", "resid.9/1", "<b>", "%E0%A4%A", ""):
        tab.page.goto("about:blank")
        tab.page.goto((site / pages.FEATURE).as_uri() + "#" + missing)
        tab.page.wait_for_selector("#problem:visible")
        assert len(tab.page.inner_text("#problem")) > 20
    # A file that is not there is a failed request.
    tab.faults[:] = [fault for fault in tab.faults if "ERR_FILE_NOT_FOUND" not in fault and "data/" not in fault]


def test_a_page_of_single_features_is_one_file(tab: Tab, tmp_path: Path):
    path = tmp_path / "single.html"
    path.write_text(pages.feature_page([document("resid.0", 0), document("resid.0", 3)], run="run"), encoding="utf-8")
    tab.open(path)
    assert [url for url in tab.requests if not url.startswith("data:")] == [path.as_uri()]
    assert tab.count("article") == 2


PRINTED = """() => {
    const style = getComputedStyle(document.body);
    const bars = [...document.querySelectorAll(".chart rect")].map((one) => getComputedStyle(one).display);
    return [style.color, style.backgroundColor, new Set(bars).size === 1 ? bars[0] : bars];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_printed_is_black_on_white_with_its_charts(tab: Tab, scheme: str, tmp_path: Path):
    path = tmp_path / "single.html"
    path.write_text(pages.feature_page([document("resid.0", 0)], run="run"), encoding="utf-8")
    tab.open(path)
    tab.page.emulate_media(media="print", color_scheme=scheme)
    assert tab.page.evaluate(PRINTED) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)", "inline"]
    tab.page.emulate_media(media="screen", color_scheme="light")


def test_the_page_of_a_coder_draws_its_numbers_and_leads_to_its_features(tab: Tab, site: Path):
    tab.open(site / pages.coder_page(CODERS[1]))
    sections = tab.page.eval_on_selector_all("section", "all => all.map(one => one.dataset.section)")
    assert {"facts", "histograms", "curves"} <= set(sections)
    assert tab.count("section[data-section=histograms] svg") == 3
    ticks = tab.page.locator("section[data-section=curves] .tick").all_text_contents()
    assert len(ticks) == 3 * 4 and not any(tick.startswith("-") for tick in ticks)
    tab.page.click("#features")
    tab.page.wait_for_selector("html[data-ready='1'] body[data-page=index]")
    assert {one.partition("/")[0] for one in ids(tab)} == {CODERS[1]}


def test_an_index_without_scores_has_no_column_of_them(tab: Tab, site: Path, tmp_path: Path):
    coder = CODERS[0]
    about = {"hook": coder, "page": pages.coder_page(coder), "places": coder, "n_live": 3, "d_sae": 3, "empty": []}
    few = {name: column[:3] for name, column in ROWS[coder].items()}
    pages.write_data(tmp_path, "index", {"run": "run", "model": "model", "chunk": pages.CHUNK, "coders": [about]})
    pages.write_data(tmp_path, f"{coder}/rows", few | {"score": [None] * 3})
    pages.write_page(tmp_path, pages.INDEX, (site / pages.INDEX).read_text(encoding="utf-8"))
    for folder, is_scored in ((tmp_path, False), (site, True)):
        tab.open(folder / pages.INDEX)
        assert tab.page.locator(".heads .max").is_visible()
        assert tab.page.locator(".heads .score").is_visible() == is_scored


def test_light_and_dark_follow_the_button(tab: Tab, site: Path):
    tab.open(site / pages.INDEX)
    seen = []
    for _ in range(3):
        tab.page.click("#theme")
        seen.append((tab.page.get_attribute("html", "data-theme"), tab.page.evaluate(PAPER)))
    papers = dict(seen)
    assert len(papers) == 3 and papers.pop("dark") not in papers.values() and len(set(papers.values())) == 1


def test_a_text_shows_the_features_of_a_token_and_the_tokens_of_a_feature(tab: Tab, tmp_path: Path):
    """Tokens and labels are hostile; every feature is active at its own token and, more strongly, at the next one."""
    last = len(HOSTILE) - 1
    features = [
        {
            "id": f"resid.{n % 2}/{n}",
            "hook": f"resid.{n % 2}",
            "label": text,
            "activations": [[n, 1.5], [min(n + 1, last), 3]],
        }
        for n, text in enumerate(HOSTILE[:-1])
    ]
    content = {"run": HOSTILE[0], "title": HOSTILE[0], "tokens": HOSTILE, "positions": [*range(1, last + 2)]}
    pages.write_page(tmp_path, "text.html", pages.text_page({**content, "features": features, "left_out": 3}))
    tab.open(tmp_path / "text.html")
    assert tab.count("#passage [data-token]") == len(HOSTILE) and "3 weaker ones" in tab.texts("#counts")[0]
    tab.locator('[data-token="1"]').click()
    assert tab.texts("#token td:first-child") == ["resid.0/0", "resid.1/1"]
    assert tab.texts("#token td:nth-child(2)") == ["3", "1.5"]
    tab.locator('#features [data-feature="resid.1/1"]').click()
    strengths = tab.page.eval_on_selector_all(
        "#passage .positive", "all => all.map(one => [one.dataset.token, one.style.getPropertyValue('--strength')])"
    )
    assert strengths == [["1", "50%"], ["2", "100%"]]
    tab.locator("#coder").select_option("resid.1")
    assert tab.texts("#token td:first-child") == ["resid.1/1"]
    tab.locator("#coder").blur()
    tab.page.keyboard.press("ArrowLeft")
    assert tab.texts("#token td:first-child") == [] and tab.page.evaluate("window.hit === undefined")


def test_what_ablating_does_stands_beside_the_contexts_that_it_was_tried_on(tab: Tab, tmp_path: Path):
    told = document("resid.0", 0)
    contexts = [{**told["contexts"][0], "quantile": quantile} for quantile in (1.0, 0.97, 0.4)]
    change = {"divergence": 0.25, "loss": None, "following": HOSTILE[0]}
    ablation = {"divergence": 0.2, "loss": 0.125, "raised": [[HOSTILE[1], 0.5]], "lowered": [["b", -0.25]]}
    ablation["contexts"] = [change, {**change, "divergence": 0.15, "loss": 0.125}, None]
    page = pages.feature_page([{**told, "contexts": contexts, "ablation": ablation}], run="run")
    pages.write_page(tmp_path, "one.html", page)
    tab.open(tmp_path / "one.html")
    headings = tab.texts('[data-section="contexts"] h2')
    assert headings == ["Where it is strongest", "At lower quantiles of its activation"]
    assert tab.count(".changed") == 2 and "KL 0.15, loss +0.125" in tab.texts(".changed")[1]
    told_of = tab.texts('[data-section="ablation"]')[0]
    assert "KL 0.2 nats" in told_of and "+0.125 nats" in told_of and "-0.25" in told_of
