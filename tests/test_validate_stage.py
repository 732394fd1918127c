"""`validate` on the built-in model: its behaviour, its names, what a kill leaves, and pins on prompts and on text."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import circuitcli as circuit
from circuitcli import graphs, records
from circuitcli.activations.cache import ActivationCache
from circuitcli.cli.verdict import verdict
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models import loading
from circuitcli.models.taps import keep, tapped
from circuitcli.records import CurveRecord, FigureRecord, GraphRecord, ScoreRecord, ShiftRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.relu import ReluSae
from circuitcli.saes.topk import TopKSae
from circuitcli.settings.sources import load
from circuitcli.stages import collect, graph_grad, graphing, planning, trials, validate
from circuitcli.stages.request import Request
from circuitcli.validation import scores

PROMPT = "import os\nimport sys\n\ndef main(self):\n    self."
HOOKS = (HookPoint(1, "resid"), HookPoint(2, "resid"))
SMALL = {
    "model.device": "cpu",
    "data.layers": "1:3",
    "data.sites": "resid",
    "data.tokens": 800,
    "data.block_length": 40,
    "graph.method": "atp",
    "graph.down": 3,
    "graph.up": 2,
    "graph.baseline_tokens": 200,
    "validate.samples": 3,
    "validate.sequences": 4,
    "validate.curve": "none",
    "validate.shuffled": False,
}


@pytest.fixture(scope="module", autouse=True)
def _one_model():
    """The model is loaded once for all tests of this file; none changes it."""
    with pytest.MonkeyPatch.context() as patch:
        whole, kept = loading.load_model, {}

        def once(settings):
            name = repr(settings)
            if name not in kept:
                kept[name] = whole(settings)
            return kept[name]

        patch.setattr(loading, "load_model", once)
        # That random SAEs fit badly is known, and finding out why takes most of the time.
        for stage in (graphing, trials):
            patch.setattr(stage, "warn_of_misfits", lambda *given, **named: None)
        yield


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """A run with the text of 800 tokens, and beside it a random SAE for each of two hook points."""
    path = tmp_path_factory.mktemp("validate")
    run = Run(path / "run")
    collect.run(Request(load(SMALL, environment={}, directory=path).settings, Stream(), run))
    cache = ActivationCache(run.path / "activations", HOOKS)
    for hook in HOOKS:
        sae = TopKSae(SaeConfig(hook, 128, 60), k=6)
        directions = cache.rows(hook, 0, 60) - cache.rows(hook, 0, 800).mean(dim=0)
        directions /= directions.norm(dim=1, keepdim=True)
        with torch.no_grad():
            sae.W_enc.copy_(directions.T)
            sae.W_dec.copy_(directions)
            sae.b_dec.copy_(cache.rows(hook, 0, 800).mean(dim=0))
            # The last feature fires nowhere.
            sae.W_enc[:, -1], sae.b_enc[-1] = 0, -1
        files.save(sae, path / "saes" / str(hook))
    return path


@pytest.fixture
def run(collected: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(collected / "run", tmp_path / "run")))


@pytest.fixture
def ask(collected: Path, run: Run, tmp_path: Path):
    def request(force: bool = False, **changes) -> Request:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        chosen = SMALL | {"sae_path": str(collected / "saes")} | named
        return Request(load(chosen, environment={}, directory=tmp_path).settings, run.stream(), run, force)

    return request


@pytest.fixture
def graph(ask):
    """Makes a graph of the prompt with these settings, and gives its head."""

    def make(**changes) -> GraphRecord:
        made = graph_grad.run(ask(**{"graph__prompt": PROMPT} | changes))
        return graphs.from_records(Stream(made))[-1].head

    return make


def scored(made) -> dict:
    """Scores by name and error policy."""
    return {(score.name, score.errors): score for score in Stream(made).of(ScoreRecord)}


def test_a_resample_graph_is_tested_with_the_row_that_its_head_tells(ask, graph, run, caplog):
    head = graph(graph__baseline="resample", seed=3)
    empty = {seed: scored(validate.run(ask(seed=seed)))["faithfulness", "nodes"].metric_empty for seed in (0, 3)}
    for value in empty.values():
        assert value == pytest.approx(head.metric_baseline, abs=1e-5)
    assert "another one is drawn" not in caplog.text
    stream = run.stream()
    untold = Stream(
        record.model_copy(update={"baseline_ids": None}) if isinstance(record, GraphRecord) else record
        for record in stream
    )
    old = Request(ask(seed=0).settings, untold, run)
    drawn = scored(validate.run(old))["faithfulness", "nodes"].metric_empty
    assert drawn != pytest.approx(head.metric_baseline, abs=1e-3) and "another one is drawn" in caplog.text


def test_a_resample_graph_of_many_prompts_is_tested_with_the_rows_that_its_seed_draws(
    ask, graph, collected: Path, tmp_path, run, caplog
):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "import os"}\n{"prompt": "return x"}\n{"prompt": "for i in range("}\n')
    head = graph(graph__baseline="resample", graph__prompt=None, graph__prompts=str(file), seed=3)
    found = [scored(validate.run(ask(seed=0)))["faithfulness", "nodes"].metric_empty]
    model, coders = circuit.load_model("builtin:tiny", device="cpu"), circuit.load_coders(collected / "saes")
    made = circuit.CircuitGraph.load(run.path / head.path)
    cache = circuit.ActivationCache(run.path / "activations", ())
    tested = circuit.validate(model, coders, made, cache=cache, samples=0, minimality=False, seed=0)
    for value in (*found, tested["faithfulness"].metric_empty):
        assert value == pytest.approx(head.metric_baseline, abs=1e-5)
    assert "another one is drawn" not in caplog.text


def test_means_by_position_are_those_of_the_graphs_own_prompts_whatever_it_is_tested_on(
    ask, graph, collected: Path, tmp_path, run
):
    own, other = tmp_path / "own.jsonl", tmp_path / "other.jsonl"
    own.write_text("".join(f'{{"ids": [{a}, 12, 13, {b}]}}\n' for a, b in OWN))
    other.write_text('{"ids": [30, 31, 32, 33]}\n')
    head = graph(graph__baseline="mean-position", graph__prompt=None, graph__prompts=str(own))
    model, coders = circuit.load_model("builtin:tiny", device="cpu"), circuit.load_coders(collected / "saes")
    made = circuit.CircuitGraph.load(run.path / head.path)
    on_own = scored(validate.run(ask()))["faithfulness", "nodes"].metric_empty
    python = circuit.validate(model, coders, made, samples=0, minimality=False)["faithfulness"].metric_empty
    assert on_own == pytest.approx(head.metric_baseline, abs=1e-5) == python
    on_other = scored(validate.run(ask(validate__prompts=str(other), validate__name="other")))
    python = circuit.validate(model, coders, made, other, samples=0, minimality=False)["faithfulness"].metric_empty
    expected = absent_metric(circuit.load_coders(collected / "saes"), model)
    assert on_other["faithfulness", "nodes"].metric_empty == pytest.approx(expected, abs=1e-5)
    assert python == pytest.approx(expected, abs=1e-5)


OWN = ((10, 14), (11, 15), (16, 17))


def absent_metric(coders, model) -> float:
    """Log-probability of the other prompt's likeliest token with codes and errors at the means of the own prompts."""
    with torch.no_grad():
        bos = model.tokenizer.with_bos([])
        ids = torch.tensor([[*bos, 30, 31, 32, 33]])
        target = int(model.adapter.logits(ids)[0, -1].argmax())
        means: dict = {}
        for a, b in OWN:
            seen: dict = {}
            with tapped(model.adapter, {hook: keep(seen, hook) for hook in coders}):
                model.adapter.logits(torch.tensor([[*bos, a, 12, 13, b]]))
            for hook, x in seen.items():
                means[hook] = means.get(hook, 0) + x / len(OWN)

        def put(x, hook):
            value = x.clone()
            value[:, len(bos) :] = means[hook][:, len(bos) :]
            return value

        # Code and error at their means are the activation at its mean.
        with tapped(model.adapter, {hook: (lambda x, hook=hook: put(x, hook)) for hook in coders}):
            return float(model.adapter.logits(ids)[0, -1].log_softmax(-1)[target])


def test_a_graph_is_tested_on_its_own_metric_and_on_other_prompts_on_the_one_asked_for(ask, graph, tmp_path):
    graph(graph__metric="cross-entropy")
    for changes, message in (
        ({"graph__metric": "kl"}, "is about the metric cross-entropy, not kl"),
        ({"graph__chat": True}, "is about a plain text, not a chat"),
        ({"graph__metric": "log-prob"}, "is about the metric cross-entropy, not log-prob"),
    ):
        with pytest.raises(SettingsError, match=message):
            validate.run(ask(**changes))
    own = scored(validate.run(ask(graph__metric="cross-entropy")))["faithfulness", "nodes"]
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "import os\\nimport"}\n{"prompt": "class A:\\n    def"}\n', encoding="utf-8")
    asked = scored(validate.run(ask(validate__prompts=str(path), graph__metric="log-prob")))
    told = scored(validate.run(ask(validate__prompts=str(path))))
    model = loading.load_model(ask().settings.model)
    ids = [
        model.tokenizer.with_bos(model.tokenizer.encode(text)) for text in ("import os\nimport", "class A:\n    def")
    ]
    best = [float(model.adapter.logits(torch.tensor([row]))[0, -1].log_softmax(-1).max()) for row in ids]
    assert asked["faithfulness", "nodes"].metric_clean == pytest.approx(sum(best) / 2, abs=1e-5)
    assert told["faithfulness", "nodes"].metric_clean < asked["faithfulness", "nodes"].metric_clean != own.metric_clean


def test_reports_have_names_that_hit_no_other(ask, graph, run):
    graph()
    validate.run(ask())
    validate.run(ask(validate__baseline="zero"))
    validate.run(ask())
    validate.run(ask(validate__name="mine"))
    validate.run(ask(validate__pin="1:3", graph__prompt=PROMPT, validate__baseline="mean"))
    validate.run(ask(validate__pin="1:4", graph__prompt=PROMPT, validate__baseline="mean"))
    names = sorted(path.name for path in (run.path / "reports").iterdir())
    assert names == ["circuit-2.json", "circuit.json", "mine.json", "pins-2.json", "pins.json"]
    with pytest.raises(InputError, match="already has validate:mine with other settings"):
        validate.run(ask(validate__name="mine", validate__samples=2))
    with pytest.raises(SettingsError, match="cannot be the name of a report"):
        validate.run(ask(validate__name="../x"))
    assert json.loads((run.path / "reports" / "circuit-2.json").read_text(encoding="utf-8"))["graph"] == "circuit"


def test_a_killed_test_keeps_what_it_measured_and_goes_on_there(ask, graph, run, monkeypatch):
    graph()
    everything = {"validate__curve": "all", "validate__shuffled": True, "validate__basis": "neurons"}
    whole = [records.to_line(record) for record in validate.run(ask(validate__name="whole", **everything))]
    ran = scores.circuit_metric
    calls: list = []

    def counting(subject, *rest, **options):
        calls.append(subject)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return ran(subject, *rest, **options)

    monkeypatch.setattr(scores, "circuit_metric", counting)
    small = {"validate__name": "broken", "graph__batch_size": 2, **everything}
    with pytest.raises(KeyboardInterrupt):
        validate.run(ask(**small))
    (left,) = (run.path / "reports").glob("broken.*")
    kept = [json.loads(line) for line in left.read_text(encoding="utf-8").splitlines()]
    assert {line["name"] for line in kept if line.get("kind") == "score"} >= {"faithfulness", "completeness"}
    with left.open("a", encoding="utf-8") as stream:
        stream.write('{"step": "circuit less a node, no')
    n_whole = len(calls)
    calls[:] = [None] * 100
    resumed = [records.to_line(record) for record in validate.run(ask(**small))]
    again = len(calls) - 100
    calls[:] = [None] * 100
    fresh = [records.to_line(record) for record in validate.run(ask(**small | {"validate__name": "fresh"}))]
    assert again == len(calls) - 100 - (n_whole - 1), "every pass that ended was made once"
    assert [line.replace("broken", "fresh") for line in resumed] == fresh and len(fresh) == len(whole)
    assert not left.exists()


def test_an_error_policy_that_has_no_range_costs_only_its_own_scores(ask, graph, run, collected, tmp_path, caplog):
    for hook in HOOKS:
        sae = ReluSae(SaeConfig(hook, 128, 9))
        with torch.no_grad():
            sae.b_enc.fill_(-1.0)
        files.save(sae, tmp_path / "silent" / str(hook))
    silent = {"sae_path": str(tmp_path / "silent")}
    head = graph(graph__name="errors", **silent)
    assert head.metric_clean != head.metric_baseline
    made = scored(validate.run(ask(**silent)))
    assert {errors for _, errors in made} == {"nodes", "removed", None}
    assert "no scores with errors kept" in caplog.text and ("minimality", "nodes") in made
    judged = validate.run(ask(validate__errors="kept", **silent))
    assert ("minimality", "kept") not in scored(judged) and ("faithfulness", "nodes") in scored(judged)


def test_later_saes_that_cannot_be_used_are_left_out_and_said(ask, graph, run, collected, tmp_path, caplog):
    for hook in HOOKS:
        shutil.copytree(collected / "saes" / str(hook), tmp_path / "more" / str(hook))
    with_these = {"sae_path": str(tmp_path / "more")}
    graph(graph__layers="1:2", **with_these)
    files.save(ReluSae(SaeConfig(HookPoint(3, "resid"), 6, 17)), tmp_path / "more" / "resid.3")
    target = HookPoint(3, "mlp")
    transcoder = TopKSae(SaeConfig(HookPoint(3, "mlp_in"), 128, 40, target=target), k=4)
    with torch.no_grad():
        transcoder.W_enc.copy_(torch.randn(128, 40, generator=torch.Generator().manual_seed(0)))
    files.save(transcoder, tmp_path / "more" / "mlp_in.3")
    made = validate.run(ask(**with_these))
    assert ("faithfulness", "nodes") in scored(made)
    assert "features of resid.3 are not looked at: the SAE at resid.3 is for activations of width 6" in caplog.text
    report = json.loads((run.path / "reports" / "circuit.json").read_text(encoding="utf-8"))
    looked = {NodeId.parse(shift["name"]).hook for shift in report["ablated_together"]["features"]}
    assert looked & {HOOKS[1], HookPoint(3, "mlp_in")} and HookPoint(3, "resid") not in looked


def test_the_effect_is_the_mean_over_all_prompts_with_its_standard_error(ask, graph, tmp_path):
    graph()
    prompts = ["import os\nimport", "class A:\n    def", "x = ("]
    effects = []
    for prompt in [None, *prompts]:
        path = tmp_path / "prompts.jsonl"
        chosen = prompts if prompt is None else [prompt]
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in chosen), encoding="utf-8")
        effects.append(scored(validate.run(ask(validate__prompts=str(path))))["effect", None])
    each = torch.tensor([effect.value for effect in effects[1:]], dtype=torch.float64)
    assert effects[0].n_prompts == 3 and effects[0].value == pytest.approx(float(each.mean()), abs=1e-6)
    assert effects[0].standard_error == pytest.approx(float(each.std() / 3**0.5), abs=1e-6)
    assert effects[1].standard_error is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_id": 10**9}, "is token id 1000000000, but this model has ids 0 to"),
        ({"saes": {}}, "but its head names no SAE there"),
        ({"ids": (1, 10**6)}, "has token id 1000000"),
        ({"ids": (0, 5)}, "there is no position . in the prompt"),
        ({"saes": {"resid.2": "sha256:other"}}, "has other weights"),
        ({"baseline": "resample", "baseline_ids": (1, 2)}, "row of the resample baseline has 2 tokens"),
        ({"baseline": "counterfactual"}, "needs another prompt"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_and_leaves_the_run_as_it_was(ask, graph, run, changes, message):
    graph()
    before = run.manifest()
    stream = Stream(
        record.model_copy(update=changes) if isinstance(record, GraphRecord) else record for record in run.stream()
    )
    with pytest.raises(InputError, match=message):
        validate.run(Request(ask().settings, stream, run))
    assert run.manifest() == before and not list((run.path / "reports").glob("*"))


def pins_of(run: Run, *, hook: HookPoint, silent: bool, prompt: str | None = None) -> list[int]:
    """Features of the hook point that are active nowhere in the prompt, or somewhere."""
    model = loading.load_model(load(SMALL, environment={}, directory=run.path).settings.model)
    sae = files.load(run.path.parent / "saes" / str(hook)) if (run.path.parent / "saes").exists() else None
    assert sae is not None
    seen = {}
    ids = torch.tensor([model.tokenizer.with_bos(model.tokenizer.encode(prompt or PROMPT))])
    with torch.no_grad(), tapped(model.adapter, {hook: lambda x: seen.update(x=x) or None}):
        model.adapter.logits(ids)
    active = (sae.encode(seen["x"][0, 1:]) != 0).any(dim=0)
    return [index for index in range(sae.d_sae) if bool(active[index]) != silent]


@pytest.fixture
def features(collected: Path, run: Run):
    """Active and silent features of resid.1 in the prompt."""
    shutil.copytree(collected / "saes", run.path.parent / "saes")
    hook = HOOKS[0]
    return pins_of(run, hook=hook, silent=False), pins_of(run, hook=hook, silent=True)


def test_pins_that_are_active_nowhere_are_an_error_and_single_ones_are_named(ask, features, run, caplog):
    active, silent = features
    nothing = rf"nothing to ablate: resid\.1/{silent[0]} is active nowhere in the prompt"
    with pytest.raises(InputError, match=nothing) as e:
        validate.run(ask(validate__pin=f"1:{silent[0]}", graph__prompt=PROMPT))
    assert any(f"resid.1/{index}" in e.value.hint for index in active) and int(e.value.exit_status) == 3
    assert not (run.path / "reports").exists() and not run.stage("validate:pins")
    validate.run(ask(validate__pin=f"1:{silent[0]},{active[0]}", graph__prompt=PROMPT))
    assert f"resid.1/{silent[0]}: active nowhere in the prompt" in caplog.text
    with pytest.raises(InputError, match=r"resid\.1/59 is active nowhere on 8\d\d tokens of the run's text"):
        validate.run(ask(validate__pin="1:59"))
    with pytest.raises(InputError, match=r"resid\.1 has no feature 60"):
        validate.run(ask(validate__pin="1:60"))


def test_a_report_of_pins_tells_what_changed_and_no_score_of_a_circuit(ask, features, run):
    made = validate.run(ask(validate__pin=f"1:{features[0][0]},{features[0][1]}", graph__prompt=PROMPT))
    assert [score.name for score in Stream(made).of(ScoreRecord)] == ["effect"]
    shifts = Stream(made).of(ShiftRecord)
    assert {(shift.of, shift.unit) for shift in shifts} == {("token", "probability"), ("feature", "activation")}
    assert all(shift.name.startswith("resid.2/") for shift in shifts if shift.of == "feature")
    report = json.loads((run.path / "reports" / "pins.json").read_text(encoding="utf-8"))
    for name in ("tokens", "features"):
        told = [(shift["name"], shift["clean"], shift["ablated"]) for shift in report["ablated_together"][name]]
        assert told == [(s.name, s.clean, s.ablated) for s in shifts if f"{s.of}s" == name] and told
    with pytest.raises(SettingsError, match="gives no faithfulness for --at-least to judge"):
        validate.run(ask(validate__pin="1:1", validate__at_least=0.5))
    assert verdict(made)[0].startswith("ablating them together")


def slow_text_effects(run: Run, pins: list[int], *, hook: HookPoint) -> list[float]:
    """Of each block of the run's text, the last first, how much the pinned features lower its mean log-probability."""
    settings = load(SMALL, environment={}, directory=run.path).settings
    model, sae = loading.load_model(settings.model), files.load(run.path.parent / "saes" / str(hook))
    cache = ActivationCache(run.path / "activations", ())

    def mean_log_probability(ids: torch.Tensor, edit) -> float:
        with torch.no_grad(), tapped(model.adapter, {hook: edit}):
            logs = model.adapter.logits(ids)[0, :-1].log_softmax(-1)
        return float(logs.gather(1, ids[0, 1:, None]).mean())

    def without(x: torch.Tensor) -> torch.Tensor:
        coded = sae.code(x[:, 1:])
        codes = coded.codes.clone()
        codes[..., pins] = 0
        return torch.cat([x[:, :1], sae.decode(codes, coded.frame) + coded.error], dim=1)

    effects = []
    for block in reversed(list(cache.blocks(0, cache.n_tokens))):
        ids = torch.tensor([block.ids])
        effects.append(mean_log_probability(ids, lambda x: None) - mean_log_probability(ids, without))
    return effects


def test_without_a_prompt_pins_are_ablated_in_whole_blocks_of_the_runs_text(ask, features, run):
    pins = features[0][:2]
    effects = torch.tensor(slow_text_effects(run, pins, hook=HOOKS[0]), dtype=torch.float64)
    changed = (effects != 0).nonzero()[:, 0].tolist()
    seen = effects[: changed[3] + 1]
    made = validate.run(ask(validate__pin=f"1:{pins[0]},{pins[1]}"))
    (effect,) = Stream(made).of(ScoreRecord)
    assert (effect.n_blocks, effect.n_active_blocks, effect.unit) == (len(seen), 4, "nats")
    assert effect.value == pytest.approx(float(seen.mean()), abs=1e-6)
    assert effect.standard_error == pytest.approx(float(seen.std() / len(seen) ** 0.5), abs=1e-6)
    everything = validate.run(ask(validate__pin=f"1:{pins[0]},{pins[1]}", validate__sequences=999))
    assert Stream(everything).of(ScoreRecord)[0].value == pytest.approx(float(effects.mean()), abs=1e-6)
    shifts = Stream(made).of(ShiftRecord)
    assert {shift.of for shift in shifts} == {"context", "feature"} and all(s.clean != s.ablated for s in shifts)
    changes = [abs(shift.ablated - shift.clean) for shift in shifts if shift.of == "context"]
    assert changes == sorted(changes, reverse=True) and " → " in shifts[0].name
    with pytest.raises(SettingsError, match="judged by cross-entropy, not by kl"):
        validate.run(ask(validate__pin="1:1", graph__metric="kl"))
    for option, value in {"target": " x", "foil": " y", "chat": True, "counterfactual": "z"}.items():
        with pytest.raises(SettingsError, match=f"--{option} needs a prompt, but validate --pin has none"):
            validate.run(ask(validate__pin="1:1", **{f"graph__{option}": value}))


def test_a_layer_without_a_site_is_its_only_hook_point_with_an_sae(ask, run, tmp_path, caplog):
    sae = TopKSae(SaeConfig(HookPoint(2, "resid_pre"), 128, 30), k=4)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(128, 30, generator=torch.Generator().manual_seed(0)))
        sae.W_dec.copy_(sae.W_enc.T / 10)
    files.save(sae, tmp_path / "one" / "resid_pre.2")
    with caplog.at_level(logging.INFO):
        made = validate.run(ask(sae_path=str(tmp_path / "one"), validate__pin="2:" + ",".join(map(str, range(30)))))
    assert "the pins of layer 2 are features of resid_pre.2" in caplog.text
    assert Stream(made).of(ScoreRecord)[0].value != 0
    with pytest.raises(InputError, match=r"no SAE at pinned hook point resid\.1"):
        validate.run(ask(sae_path=str(tmp_path / "one"), validate__pin="1:3"))


def test_each_ablation_and_policy_has_its_scores(ask, graph, run):
    head = graph(graph__up=3)
    made = validate.run(ask(validate__ablations="zero,resample,mean", validate__name="several"))
    found = {(score.name, score.errors, score.ablation): score for score in Stream(made).of(ScoreRecord)}
    for ablation in ("mean", "zero", "resample"):
        for policy in ("nodes", "kept", "removed"):
            names = ("faithfulness", "completeness", "minimality", "faithfulness-edges")
            one, _, _, edges = (found[name, policy, ablation] for name in names)
            own = found["faithfulness", "nodes", "mean"]
            assert bool(one.judged) is (one is own) and one.metric_clean == own.metric_clean
            assert edges.n_edges == len(graphs.edges_between(graphs.from_records(run.stream())[-1])) > 3
    assert found["faithfulness", "nodes", "mean"].metric_empty == pytest.approx(head.metric_baseline, abs=1e-5)
    zero = scored(validate.run(ask(validate__baseline="zero", validate__name="zero")))
    for name in ("faithfulness", "minimality", "faithfulness-edges"):
        assert found[name, "nodes", "zero"].value == pytest.approx(zero[name, "nodes"].value, abs=1e-5)
    report = json.loads((run.path / "reports" / "several.json").read_text(encoding="utf-8"))
    first = "no_better_than" if "no better than" in verdict(made)[0] else "verdict"
    assert next(iter(report)) == first and report["verdict"]["why"] == list(made[-1].why)


def test_a_circuit_is_held_against_others_and_has_curves(ask, graph, run, caplog):
    graph(graph__name="other", graph__prompt="class A:\n    def", graph__up=3)
    graph(graph__name="circuit", graph__up=3)
    chosen = {"validate__control_graph": "other", "validate__basis": "neurons", "validate__shuffled": True}
    made = Stream(validate.run(ask(validate__curve="all", validate__graph="circuit", **chosen)))
    found = scored(made)
    own = found["faithfulness", "nodes"]
    names = ("faithfulness-control-graph", "faithfulness-neurons", "faithfulness-shuffled")
    policies = ("nodes", "nodes", "removed")
    for name, policy in zip(names, policies, strict=True):
        score, own = found[name, policy], found["faithfulness", policy]
        assert score.difference == pytest.approx(own.value - score.value, abs=1e-6) and score.difference_low is None
    own = found["faithfulness", "nodes"]
    assert found["faithfulness-neurons", "nodes"].n_nodes == own.n_nodes
    kinds = {(curve.of, curve.ranked): curve for curve in made.of(CurveRecord)}
    assert {*kinds} == {("nodes", "graph"), ("edges", "graph"), ("nodes", "all")}
    assert kinds["nodes", "graph"].values[-1] == pytest.approx(own.value, abs=1e-6)
    assert kinds["edges", "graph"].values[-1] == pytest.approx(found["faithfulness-edges", "nodes"].value, abs=1e-6)
    assert kinds["nodes", "all"].values[-1] == pytest.approx(1, abs=1e-4)
    report = json.loads((run.path / "reports" / "circuit.json").read_text(encoding="utf-8"))
    assert len(report["curves"]) == 3 and {score["name"] for score in report["scores"]} >= {*names}
    (figure,) = made.of(FigureRecord)
    drawn = (run.path / figure.path).read_text(encoding="utf-8")
    assert "edges of the graph: CMD" in drawn and "all nodes: CMD" in drawn
    said = verdict(made.records)
    assert sum(line.startswith("curve over ") for line in said) == 3 and said[-1].startswith("verdict: ")
    # On other prompts all nodes are ranked on those that the graph was found on.
    file = run.path / "prompts.jsonl"
    file.write_text('{"prompt": "import sys"}\n{"prompt": "return x"}\n', encoding="utf-8")
    held_out = Stream(validate.run(ask(validate__curve="all", validate__prompts=str(file), **chosen)))
    curve = next(curve for curve in held_out.of(CurveRecord) if curve.ranked == "all")
    assert curve.held_out and curve.n_prompts == 2 and curve.cmd_low <= curve.cmd <= curve.cmd_high
    assert all(scored(held_out)[key].held_out for key in zip(names, policies, strict=True))


def test_nodes_of_a_control_graph_count_at_all_positions_that_have_no_name_here(ask, graph, run, tmp_path):
    graph()
    other = graphs.from_records(run.stream())[-1]
    places = ("resid.1/3@2", "resid.1/4@verb", "resid.1/5@last", "resid.2/error")
    control = tmp_path / "control.jsonl"
    nodes = "".join(json.dumps({"kind": "node", "id": place}) + "\n" for place in places)
    head = other.head.model_copy(update={"target": "another"})
    control.write_text(records.to_line(head) + "\n" + nodes, encoding="utf-8")
    found = planning._control(ask(), other, str(control))
    assert [*map(str, found)] == ["resid.1/3", "resid.1/4", "resid.1/5@last", "resid.2/error"]


def test_a_control_graph_that_cannot_be_one_is_refused_before_anything_runs(ask, graph, run, collected, tmp_path):
    graph(graph__name="narrow", graph__layers="1:2")
    graph(graph__name="other", graph__prompt="class A:\n    def")
    graph(graph__name="circuit")
    with pytest.raises(InputError, match="the control graph 'circuit' is the graph that is tested"):
        validate.run(ask(validate__control_graph="circuit"))
    graph(graph__name="fewer", graph__down=1)
    with pytest.raises(InputError, match="'fewer' is about the same behaviour as graph 'circuit'") as caught:
        validate.run(ask(validate__graph="circuit", validate__control_graph="fewer"))
    assert "--against fewer" in caught.value.hint
    with pytest.raises(InputError, match="no graph named 'nothing'"):
        validate.run(ask(validate__control_graph="nothing"))
    with pytest.raises(InputError, match=r"has an SAE at resid\.2, where graph 'narrow' has none"):
        validate.run(ask(validate__graph="narrow", validate__control_graph="other"))
    file = next((run.path / "graphs").glob("narrow.jsonl"))
    head = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    for change, message in (
        ({"saes": {"resid.1": "sha256:0"}, "target": "another"}, r"has another SAE at resid\.1"),
        ({"name": "empty", "target": "another"}, "has no node"),
    ):
        (tmp_path / "control.jsonl").write_text(json.dumps(head | change) + "\n", encoding="utf-8")
        with_node = json.dumps({"kind": "node", "id": "resid.1/3"}) + "\n" if "saes" in change else ""
        with (tmp_path / "control.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(with_node)
        with pytest.raises(InputError, match=message):
            validate.run(ask(validate__control_graph=str(tmp_path / "control.jsonl")))
    assert not list((run.path / "reports").glob("*"))
