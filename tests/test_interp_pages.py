"""Pages of features: what is in which file, what is made again and what is not, what is refused."""

import json
import re
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import here
from support_collect import save_model, texts

import circuitcli as circuit
from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.features import label_files
from circuitcli.hookpoints import HookPoint
from circuitcli.records import FigureRecord, SaeRecord, Stream
from circuitcli.render import feature_pages as pages
from circuitcli.runs import Fingerprint, Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.settings import Settings
from circuitcli.stages import collect, interp, interp_pages
from circuitcli.stages.request import Request

D_SAE, DEAD = 120, range(50, 104)
HOOKS = tuple(map(HookPoint.parse, ("resid.0", "mlp_in.1", "resid.1")))
EVIL = '</script><img src=x onerror="boom()">\u2028"\\'


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A run with two SAEs, one above the other, and a transcoder; no feature of the second file of each is active."""
    folder = tmp_path_factory.mktemp("pages")
    text = folder / "text.txt"
    text.write_text("\n".join(texts(40, 7, 60, 33)), encoding="utf-8")
    data = {"text": str(text), "layers": "0:2", "sites": ["resid", "mlp_in"], "block_length": 16, "dtype": "float32"}
    settings = Settings.model_validate({"model": {"name": str(save_model(folder / "model"))}, "data": data})
    request = Request(settings, Stream(), Run(folder / "run"))
    made = collect.run(request)
    request = replace(request, records=Stream([*made, *(save_coder(request.run.path, hook) for hook in HOOKS)]))
    interp.run(request)
    return request


def save_coder(run: Path, hook: HookPoint) -> SaeRecord:
    target = HookPoint(hook.layer, "mlp") if hook.site == "mlp_in" else None
    coder, generator = (
        TopKSae(SaeConfig(hook, 24, D_SAE, target=target), k=6),
        torch.Generator().manual_seed(hook.layer),
    )
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            if name.startswith("W_"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        coder.b_enc[list(DEAD)] = -1e6
    digest, path = files.save(coder, run / "saes" / str(hook)), f"saes/{hook}"
    log = [{"step": step, "loss": 1 / step, "fvu": float("nan")} for step in range(1, 5)]
    (run / path / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)) + '\n{"step": 5, "lo', encoding="utf-8")
    return SaeRecord(hook=str(hook), architecture="topk", d_in=24, d_sae=D_SAE, path=path, digest=digest)


def handed_over(folder: Path, key: str) -> Any:
    """The value in a data file."""
    text = pages.data_path(folder, key).read_text(encoding="utf-8")
    match = re.fullmatch(r"circuitData\((\".*?\"), (.*)\);\n", text, re.DOTALL)
    assert match is not None and json.loads(match[1]) == key
    return json.loads(match[2])


def lines(request: Request, hook: HookPoint) -> dict[int, dict[str, Any]]:
    found = map(json.loads, interp.file_of(request, hook).read_text(encoding="utf-8").splitlines())
    return {int(line["id"].partition("/")[2]): line for line in found}


@pytest.fixture(scope="module")
def site(described: Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "new"
    made = interp_pages.run(described, str(folder))
    assert made[-1] == FigureRecord(path=str(folder / "index.html"))
    return folder


def test_each_feature_stands_in_the_file_of_its_number_with_what_its_line_says(described: Request, site: Path) -> None:
    for hook in HOOKS:
        known = lines(described, hook)
        assert known and not set(DEAD) & set(known)
        for number, line in known.items():
            shown = handed_over(site, f"{hook}/{number // pages.CHUNK}")[str(number)]
            assert shown["id"] == line["id"] and shown["label"] == line["label"]
            assert shown["max"] == pytest.approx(line["max"], rel=1e-3)
            assert [one["tokens"] for one in shown["contexts"]] == [one["tokens"] for one in line["contexts"]]
            assert sum(shown["histogram"]["counts"]) == line["n_active"]
            assert shown["ablation"] is None
        assert not pages.data_path(site, f"{hook}/1").exists()


def test_features_that_are_near_stand_beside_their_labels_nearest_first(described: Request, site: Path) -> None:
    labels = {line["id"]: line["label"] for hook in HOOKS for line in lines(described, hook).values()}
    for hook, near in (("resid.0", ["resid.0", "resid.1"]), ("mlp_in.1", ["mlp_in.1"])):
        for number in lines(described, HookPoint.parse(hook)):
            shown = handed_over(site, f"{hook}/{number // pages.CHUNK}")[str(number)]
            assert [one["hook"] for one in shown["decoders"]] == near
            for one in (*shown["decoders"], *shown["codes"]):
                values = [value for _, value, _ in one["features"]]
                assert values == sorted(values, reverse=True)
                assert all(labels[name] == label and name != shown["id"] for name, _, label in one["features"])


def test_the_way_from_feature_to_feature_goes_through_all_of_them(described: Request, site: Path) -> None:
    for hook in HOOKS:
        way, at = [], f"{hook}/{min(lines(described, hook))}"
        while at is not None:
            way.append(at)
            number = int(at.partition("/")[2])
            at = handed_over(site, f"{hook}/{number // pages.CHUNK}")[str(number)].get("after")
        assert way == [f"{hook}/{number}" for number in sorted(lines(described, hook))]


def test_the_index_lists_all_features_and_coders(described: Request, site: Path) -> None:
    index = handed_over(site, "index")
    assert [one["hook"] for one in index["coders"]] == [str(hook) for hook in HOOKS]
    for one in index["coders"]:
        known = lines(described, HookPoint.parse(one["hook"]))
        rows = handed_over(site, f"{one['hook']}/rows")
        assert (one["n_live"], one["d_sae"], one["empty"]) == (len(known), D_SAE, [1])
        assert rows["index"] == sorted(known) and rows["label"] == [known[n]["label"] for n in sorted(known)]
        page = (site / one["page"]).read_text(encoding="utf-8")
        assert 'data-page="coder"' in page and one["hook"] in page
    assert all((site / name).is_file() for name in ("index.html", "feature.html"))


def test_the_page_of_a_coder_has_its_numbers_and_its_training_as_far_as_the_log_goes(site: Path) -> None:
    sae, transcoder = (handed_over(site, f"{hook}/coder") for hook in ("resid.0", "mlp_in.1"))
    assert sae["curves"] == {"step": [1, 2, 3, 4], "loss": [1, 0.5, 0.3333, 0.25]}
    assert sae["histograms"]["encoder"] and transcoder["histograms"]["encoder"] is None
    n_live = handed_over(site, "index")["coders"][0]["n_live"]
    for name in ("density", "decoder"):
        assert sum(sae["histograms"][name]["counts"]) == n_live
    assert transcoder["places"] == "mlp_in.1 → mlp.1"


def test_a_finished_directory_is_not_made_again_and_an_interrupted_one_goes_on(
    described: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[str] = []

    def counted(request: Request, facts: Any, hook: HookPoint, folder: Path) -> None:
        worked.append(str(hook))
        if len(worked) == 2:
            raise KeyboardInterrupt
        pages.write_data(folder, f"{hook}/coder", {})

    monkeypatch.setattr(interp_pages, "_write_coder", counted)
    with pytest.raises(KeyboardInterrupt):
        interp_pages.run(described, str(tmp_path / "out"))
    made = interp_pages.run(described, str(tmp_path / "out"))
    assert worked == ["resid.0", "mlp_in.1", "mlp_in.1", "resid.1"]
    assert interp_pages.run(described, str(tmp_path / "out")) == made and len(worked) == 4
    interp_pages.run(replace(described, force=True), str(tmp_path / "out"))
    assert len(worked) == 7


def test_other_settings_are_named_and_other_files_are_left_alone(
    described: Request, site: Path, tmp_path: Path
) -> None:
    section = described.settings.pages.model_copy(update={"neighbours": 2, "correlation_tokens": 0})
    fewer = replace(described, settings=described.settings.model_copy(update={"pages": section}))
    with pytest.raises(InputError, match=r"pages\.neighbours|pages\.correlation_tokens"):
        interp_pages.run(fewer, str(site))
    (tmp_path / "data").mkdir()
    for name in ("mine.txt", "data/mine.txt"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds other files: data mine\.txt"):
        interp_pages.run(fewer, str(tmp_path))
    assert {path.name for path in tmp_path.rglob("*")} == {"data", "mine.txt"}
    interp_pages.run(replace(fewer, force=True), str(tmp_path))
    assert {path.read_text(encoding="utf-8") for path in tmp_path.rglob("mine.txt")} == {"mine"}
    assert len([*tmp_path.rglob("mine.txt")]) == 2 and (tmp_path / "index.html").is_file()
    shown = handed_over(tmp_path, "resid.0/0")
    assert all(one["codes"] == [] and len(one["decoders"][0]["features"]) == 2 for one in shown.values())
    with pytest.raises(InputError, match="is a file"):
        interp_pages.run(described, str(tmp_path / "mine.txt"))
    with pytest.raises(SettingsError, match="are a directory"):
        interp_pages.run(described, "-")


def carried(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return dict(json.loads(match[1]))


def test_one_page_of_named_features_tells_what_ablating_them_does(described: Request, tmp_path: Path) -> None:
    ids = [f"{hook}/{min(lines(described, hook))}" for hook in HOOKS]
    out = StringIO()
    assert interp_pages.single(described, ids, "-", stdout=out) == []
    shown = carried(out.getvalue())["features"]
    assert [one["id"] for one in shown] == ids
    for one in shown:
        assert len(one["ablation"]["contexts"]) == len(one["contexts"]) and one["ablation"]["divergence"] > 0
        told = zip(one["ablation"]["contexts"], one["contexts"], strict=True)
        assert all((change is None) == (context["quantile"] < 0.95) for change, context in told)
        changes = [change["divergence"] for change in one["ablation"]["contexts"] if change is not None]
        assert one["ablation"]["divergence"] == pytest.approx(sum(changes) / len(changes), rel=1e-2)
    made = interp_pages.single(described, ids[:1], str(tmp_path / "one.html"), stdout=out)
    assert carried((tmp_path / "one.html").read_text(encoding="utf-8"))["features"] == shown[:1]
    assert made == [FigureRecord(path=str(tmp_path / "one.html"))]


def test_labels_by_hand_count_on_pages_and_make_a_finished_directory_out_of_date(described: Request) -> None:
    before = interp_pages._labels(described)
    id_ = f"resid.1/{min(lines(described, HOOKS[2]))}"
    try:
        label_files.keep(described.run.path, label_files.HAND, [label_files.Label(id=id_, label=EVIL)])
        facts = interp_pages.FeatureFacts(described, interp_pages._sources(described), ablates=False)
        assert {row.label for row in facts.rows[HOOKS[2]] if f"resid.1/{row.index}" == id_} == {EVIL}
        assert interp_pages._labels(described) != before
        out = StringIO()
        section = described.settings.pages.model_copy(update={"ablate": False})
        settings = described.settings.model_copy(update={"pages": section})
        interp_pages.single(replace(described, settings=settings), [id_], "-", stdout=out)
        shown = carried(out.getvalue())["features"][0]
        assert (shown["label"], shown["label_source"], shown["ablation"]) == (EVIL, "hand", None)
    finally:
        label_files.kept_in(described.run.path, label_files.HAND).unlink()


@pytest.mark.parametrize(
    ("feature", "output", "message"),
    [
        (f"resid.1/{DEAD[0]}", "-", "never fired"),
        (f"resid.1/{D_SAE}", "-", "there is no feature"),
        ("resid.2/1", "-", "nothing is known"),
        ("resid.1/error", "-", "error term"),
        ("resid.1", "-", "is not a feature"),
        ("resid.1/0", "page.svg", "is not a name of a page"),
    ],
)
def test_what_has_no_page_is_refused(described: Request, feature: str, output: str, message: str) -> None:
    out = StringIO()
    with pytest.raises(CircuitError, match=message):
        interp_pages.single(described, [feature], output, stdout=out)
    assert out.getvalue() == ""


def test_text_from_outside_ends_no_script_and_no_string(tmp_path: Path) -> None:
    page = pages.feature_page([{"id": "resid.0/1", "label": EVIL}], run=EVIL)
    assert page.count("</script>") == 3 and "<img" not in page
    assert carried(page) == {"run": EVIL, "features": [{"id": "resid.0/1", "label": EVIL}]}
    pages.write_data(tmp_path, "resid.0/0", {"1": {"label": EVIL}})
    assert handed_over(tmp_path, "resid.0/0") == {"1": {"label": EVIL}}


def test_python_writes_the_pages_that_the_command_writes(described: Request, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(described.run.path, tmp_path / "run")))
    run.begin("train", Fingerprint({}, {}), force=True)
    run.finish("train", [*described.records.of(SaeRecord)], seconds=0.0)
    words = ["--set", "pages.neighbours=2", "--set", "pages.correlation_tokens=200"]
    assert here("interp", "--html", str(tmp_path / "a"), "--run", str(run.path), *words, cwd=tmp_path).status == 0
    settings = {"neighbours": 2, "correlation_tokens": 200}
    index = circuit.write_pages(run.path, tmp_path / "b", settings=settings, device="cpu")
    assert index == tmp_path / "b" / pages.INDEX
    found, wanted = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".html", ".js")}
        for folder in (tmp_path / "b", tmp_path / "a")
    )
    assert found == wanted and len(found) > 10
    with pytest.raises(InputError, match="other files"):
        circuit.write_pages(run.path, run.path / "saes")
    with pytest.raises(InputError, match="is not a run"):
        circuit.write_pages(tmp_path, tmp_path / "c")
