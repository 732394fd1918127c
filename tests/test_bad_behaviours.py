"""Behaviours that cannot be explained are refused in words, by every command and in Python, and leave the run alone."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_run import D_SAE, PROMPT, asking, random_saes, settings_of

import circuitcli as circuit
from circuitcli import graphs, records
from circuitcli.attribution import memory
from circuitcli.attribution.metrics import LogProb
from circuitcli.errors import CircuitError, InputError, SettingsError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models import partial
from circuitcli.records import EdgeRecord, NodeRecord, ScoreRecord, Stream
from circuitcli.stages import graph_grad, graph_naive, validate
from circuitcli.stages.request import Request

LONG = "x = 1\n" * 200
COUNTERFACTUAL = {"graph__baseline": "counterfactual"}
# By what is wrong: settings, arguments in Python, and what is said.
BAD = {
    "target of several tokens": (
        {"graph__target": "hello world"},
        {"target": "hello world"},
        r"target 'hello world' is not one token but 5: 'he' 'l' 'lo' ' wor' 'ld'",
    ),
    "foil of several tokens": (
        {"graph__metric": "logit-diff", "graph__foil": "hello world"},
        {"metric": "logit-diff", "foil": "hello world"},
        r"foil 'hello world' is not one token but 5",
    ),
    "counterfactual of another length": (
        COUNTERFACTUAL | {"graph__counterfactual": "x"},
        {"baseline": "counterfactual", "counterfactual": "x"},
        r"the counterfactual has 2 tokens, the prompt 6",
    ),
    "counterfactual past the context": (
        COUNTERFACTUAL | {"graph__counterfactual": LONG},
        {"baseline": "counterfactual", "counterfactual": LONG},
        r"the counterfactual has 801 tokens, the model's window 256",
    ),
    "prompt past the context": ({"graph__prompt": LONG}, {}, r"the prompt has 801 tokens, the model's window 256"),
    "layers without a coder": ({"graph__layers": "0:1"}, {"layers": "0:1"}, r"no (SAE|coder) at layers"),
    "layers past the last": ({"graph__layers": "7:9"}, {"layers": "7:9"}, r"goes past the last layer"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run with a gradient and a naive graph, its coders, other coders, and an active and a silent feature."""
    folder = tmp_path_factory.mktemp("bad")
    saes = random_saes(folder / "saes")
    ask = asking(saes, folder)
    graph_grad.run(ask(graph__method="atp", graph__ig_steps=None))
    naive = Stream(graph_naive.run(ask()))
    live = {NodeId.parse(e.source).index for e in naive.of(EdgeRecord) if e.source.startswith("resid.1/")}
    active = next(index for index in live if index is not None)
    silent = next(index for index in range(D_SAE) if index not in live)
    places = [NodeId.parse(edge.source) for edge in naive.of(EdgeRecord)]
    pins = {place.hook: place.index for place in places if place.index is not None}
    return SimpleNamespace(
        pins=tuple(f"{hook}:{index}" for hook, index in pins.items()),
        folder=folder,
        saes=saes,
        others=random_saes(folder / "others", seed=5),
        ask=ask,
        active=active,
        silent=silent,
        model=circuit.load_model("builtin:tiny"),
        coders=circuit.load_coders(str(saes)),
    )


@pytest.fixture(autouse=True)
def run_stays_as_it_was(house: SimpleNamespace):
    """Names of what the run holds, but for graphs that a test makes on purpose under names of its own."""
    run = house.ask().run

    def held() -> dict[str, object]:
        return {name: entry for name, entry in run.stages().items() if ":made" not in name}

    before = held()
    yield
    assert held() == before


def refused(work: Callable[[], object], match: str) -> CircuitError:
    with pytest.raises(CircuitError, match=match) as caught:
        work()
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint
    return caught.value


@pytest.mark.parametrize("wrong", BAD)
def test_a_behaviour_that_is_none_is_refused_by_every_way_to_a_graph(wrong: str, house: SimpleNamespace):
    settings, named, match = BAD[wrong]
    for stage in (graph_grad, graph_naive):
        error = refused(lambda stage=stage: stage.run(house.ask(graph__name="bad", **settings)), match)
        assert isinstance(error, SettingsError if wrong == "layers past the last" else InputError)
    prompt = settings.get("graph__prompt", PROMPT)
    for method in ("atp", "naive"):
        options = {"baseline": "zero", "method": method} | named
        refused(lambda options=options: circuit.find_circuit(house.model, house.coders, prompt, **options), match)


@pytest.mark.parametrize("wrong", [name for name in BAD if "layers" not in name])
def test_a_test_on_such_prompts_is_refused(wrong: str, house: SimpleNamespace, tmp_path: Path):
    settings, named, match = BAD[wrong]
    line = {"prompt": settings.get("graph__prompt", PROMPT)}
    line |= {name: named[name] for name in ("target", "foil", "counterfactual") if name in named}
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    about = {"validate__graph": "circuit", "validate__prompts": str(path)}
    about |= {"graph__metric": named["metric"]} if "metric" in named else {}
    about |= {"validate__baseline": named["baseline"]} if "baseline" in named else {}
    assert refused(lambda: validate.run(house.ask(graph__prompt=None, **about)), match).exit_status == 3


@pytest.mark.parametrize(
    ("pin", "match"),
    [
        ("1:300", r"resid\.1 has no feature 300"),
        ("3:1", r"pinned hook point resid\.3"),
        ("attn.1:1", r"pinned hook point attn\.1"),
        ("77:1", r"pinned hook point resid\.77"),
        (
            "1:SILENT",
            r"(is silent in this prompt, so ablating it changes nothing: its effect is exactly 0|active nowhere)",
        ),
    ],
)
def test_pins_that_are_not_there_or_silent_are_refused(pin: str, match: str, house: SimpleNamespace):
    pin = pin.replace("SILENT", str(house.silent))
    errors = [
        refused(lambda: graph_naive.run(house.ask(graph__pin=pin, graph__name="bad")), match),
        refused(lambda: validate.run(house.ask(validate__pin=pin, validate__name="bad")), match),
        refused(
            lambda: graph_naive.run(house.ask(graph__pin=pin, graph__sweep_coefficient="0:1:1", graph__name="bad")),
            match,
        ),
        refused(
            lambda: circuit.find_circuit(
                house.model, house.coders, PROMPT, method="naive", baseline="zero", settings={"pin": (pin,)}
            ),
            match,
        ),
    ]
    assert {error.exit_status for error in errors} == {3}


def about(house: SimpleNamespace, saes: Path, **changes: object) -> Request:
    """A request about the run, through other coders."""
    request = house.ask()
    return Request(settings_of(saes, **changes), request.records, request.run)


def test_pins_that_are_active_and_change_nothing_are_refused(house: SimpleNamespace, tmp_path: Path):
    """Their effect is exactly zero, however the batches that they run in are rounded."""
    idle, pin = random_saes(tmp_path / "idle", idle=house.active), f"1:{house.active}"
    match = r"changes nothing: (its|the) effect on the metric is exactly 0"
    for work in (
        lambda: graph_naive.run(about(house, idle, graph__pin=pin, graph__name="bad")),
        lambda: validate.run(about(house, idle, validate__pin=pin, validate__name="bad")),
    ):
        assert refused(work, match).exit_status == 3
    coders = circuit.load_coders(str(idle))
    settings = {"pin": (pin,), "batch_size": 7}
    naive = {"method": "naive", "baseline": "zero", "settings": settings}
    refused(lambda: circuit.find_circuit(house.model, coders, PROMPT, **naive), match)


def test_layers_that_do_not_reach_the_output_give_an_empty_graph_that_says_so_and_cannot_be_tested(
    house: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Behind the last block, at a word in front of the last one, nothing is read any more."""
    last = random_saes(tmp_path / "last", hooks=[HookPoint(3, "resid")])
    path = tmp_path / "spans.jsonl"
    path.write_text(json.dumps({"prompt": PROMPT, "spans": {"word": [0, 3]}}) + "\n", encoding="utf-8")
    spans = {"graph__prompt": None, "graph__prompts": str(path), "graph__positions": "spans"}
    for number, (stage, why) in enumerate(
        ((graph_grad, "has an effect on the metric: they do not reach"), (graph_naive, "they do not reach the output"))
    ):
        caplog.clear()
        made = Stream(stage.run(about(house, last, graph__name=f"made-{number}", **spans)))
        assert [node.id for node in made.of(NodeRecord)] == ["output"]
        assert any(why in record.getMessage() for record in caplog.records)
        test = about(house, last, graph__prompt=None, validate__graph=f"made-{number}")
        assert "has no node" in refused(lambda test=test: validate.run(test), "has no node").message
    empty = graphs.from_records(made)[-1]
    refused(lambda: circuit.validate(house.model, circuit.load_coders(str(last)), empty), "there is no node")


def test_a_graph_of_other_coders_is_neither_tested_nor_extended(house: SimpleNamespace):
    told = r"has other weights|another SAE at resid\.1"
    run = house.ask().run
    for name, stage in (("circuit", graph_grad), ("naive", graph_naive)):
        refused(lambda name=name: validate.run(about(house, house.others, validate__graph=name)), told)
        extended = {"graph__extend": str(run.path / "graphs" / f"{name}.jsonl"), "graph__name": "bad"}
        method = {"graph__method": "atp"} if name == "circuit" else {}
        request = about(house, house.others, **extended, **method)
        assert refused(lambda stage=stage, request=request: stage.run(request), told).exit_status == 3
    graph = graphs.from_records(records.read_file(run.path / "graphs" / "circuit.jsonl"))[-1]
    others = circuit.load_coders(str(house.others))
    refused(lambda: circuit.validate(house.model, others, graph), "is not the one that")


def stages_of(house: SimpleNamespace) -> list[Callable[[], object]]:
    ask = house.ask
    return [
        lambda: graph_grad.run(ask(graph__name="bad")),
        lambda: graph_grad.run(ask(graph__name="bad", graph__method="atp")),
        lambda: graph_naive.run(ask(graph__name="bad")),
        lambda: validate.run(ask(validate__graph="circuit", validate__name="bad")),
        lambda: validate.run(ask(validate__pin=f"1:{house.active}", validate__name="bad")),
        lambda: circuit.find_circuit(house.model, house.coders, PROMPT, baseline="zero", method="naive"),
    ]


@pytest.mark.parametrize("where", ["everywhere", "in edited runs"])
def test_a_metric_that_is_no_number_is_an_error_of_every_command(
    where: str, house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    plain = LogProb.value
    clean: list[torch.Tensor] = []

    def value(self, logits, texts=None):
        found = plain(self, logits, texts)
        # The first run of a command is the clean one.
        clean.append(found)
        return found if where != "everywhere" and len(clean) == 1 else found * float("nan")

    monkeypatch.setattr(LogProb, "value", value)
    for work in stages_of(house):
        clean.clear()
        assert refused(work, "not finite").exit_status == 3


def test_a_behaviour_that_all_nodes_together_hardly_change_is_not_tested(
    house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    plain = LogProb.value
    monkeypatch.setattr(LogProb, "value", lambda self, logits, texts=None: plain(self, logits, texts) * 1e-8)
    why = r"same with and without all nodes \(difference \S+\), so nothing can be explained"
    test = house.ask(validate__graph="circuit", validate__name="bad")
    assert refused(lambda: validate.run(test), why).exit_status == 3
    graph = graphs.from_records(Stream(graph_grad.run(house.ask(graph__name="made-faint"))))[-1]
    assert "nothing to explain" in caplog.text
    refused(lambda: circuit.validate(house.model, house.coders, graph), why)


def test_what_does_not_fit_the_memory_runs_in_halves_with_the_same_numbers(
    house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(memory._Halvings, "count", 0)
    pin = {"graph__pin": house.pins, "graph__sweep_coefficient": "0:1:0.2"}
    ways = {
        "naive": lambda name: graph_naive.run(house.ask(graph__name=name, **pin)),
        "grad": lambda name: graph_grad.run(house.ask(graph__name=name, graph__ig_steps=6)),
        "validate": lambda name: validate.run(
            house.ask(validate__graph="circuit", validate__name=name, validate__samples=0, validate__minimality=False)
        ),
    }
    plain = {way: numbers(make(f"made-{way}-1")) for way, make in ways.items()}
    real = partial.run_blocks

    def run_blocks(adapter, clean, residual, **options):
        if residual.shape[0] > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(adapter, clean, residual, **options)

    monkeypatch.setattr(partial, "run_blocks", run_blocks)
    for way, make in ways.items():
        caplog.clear()
        monkeypatch.setattr(memory._Halvings, "count", 0)
        found = numbers(make(f"made-{way}-2"))
        assert found.keys() == plain[way].keys()
        assert found == pytest.approx(plain[way], abs=1e-3), way
        assert any("out of memory with" in record.message for record in caplog.records), way
    assert all(record.levelno == logging.WARNING for record in caplog.records if "out of memory" in record.message)


def numbers(made) -> dict[tuple[str, ...], float]:
    """Effects, weights, curves and scores by name."""
    found: dict[tuple[str, ...], float] = {}
    for record in made:
        if isinstance(record, NodeRecord) and record.effect is not None:
            found["node", record.id] = record.effect
        elif isinstance(record, EdgeRecord):
            found[record.source, record.target] = record.weight
        elif isinstance(record, ScoreRecord) and record.errors is not None:
            found["score", record.name, record.errors] = record.value
    return found
