"""Graphs of circuit-tracer, feature-circuits and EAP-IG: read as they are, and nothing in them is run."""

import json
import math
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import here
from test_sharing import Shared, transcoded, written

import circuitcli
from circuitcli.errors import InputError
from circuitcli.graphs import Edge, Node
from circuitcli.graphs.exchange import formats, torch_files
from circuitcli.graphs.exchange.torch_files import Inert, Sparse
from circuitcli.render.attributions import effect_bars
from circuitcli.render.drawing import draw
from circuitcli.render.page import embedded, page
from circuitcli.render.state import State


def foreign(module: str, name: str, made: Callable[[type], type] | None = None) -> type:
    """A class of another program, as a pickle names it."""
    kind = made(object) if made else type(name, (), {"__init__": lambda self, **fields: vars(self).update(fields)})
    kind.__module__, kind.__qualname__ = module, name
    return kind


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The classes that those programs write, importable under their names while a file is written."""
    kinds = {
        ("activation_utils", "SparseAct"): foreign("activation_utils", "SparseAct"),
        ("circuit_tracer.utils.tl_nnsight_mapping", "UnifiedConfig"): foreign(
            "circuit_tracer.utils.tl_nnsight_mapping", "UnifiedConfig"
        ),
        ("circuit_tracer.attribution.targets", "LogitTarget"): foreign(
            "circuit_tracer.attribution.targets",
            "LogitTarget",
            lambda _: namedtuple("LogitTarget", "token_str vocab_idx"),
        ),
    }
    for (module, name), kind in kinds.items():
        parts = module.split(".")
        for n in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
        setattr(sys.modules[module], name, kind)
    return types.SimpleNamespace(**{name: kind for (_, name), kind in kinds.items()})


# torch's files, against torch.


def test_tensors_are_those_that_torch_reads(tmp_path: Path):
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "view": base[1:3, ::2].T,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "parameter": torch.nn.Parameter(base.clone()),
        "half": base.to(torch.bfloat16),
        "types": [base.to(kind) for kind in (torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)],
        "plain": {"text": "é😀", "numbers": (1, 2.5, None, True), "set": {3}, "size": base.shape, "dtype": base.dtype},
    }
    torch.save(content, tmp_path / "file.pt")
    read, wanted = torch_files.read(tmp_path / "file.pt"), torch.load(tmp_path / "file.pt", weights_only=True)
    for name in ("view", "empty", "scalar", "half", "parameter"):
        np.testing.assert_array_equal(read[name], wanted[name].detach().float().numpy())
    for mine, theirs in zip(read["types"], wanted["types"], strict=True):
        assert mine.dtype == theirs.numpy().dtype and (mine == theirs.numpy()).all()
    assert read["plain"] == {**content["plain"], "size": (4, 6), "dtype": "float32"}


def test_sparse_tensors_keep_all_their_values(tmp_path: Path):
    made = torch.sparse_coo_tensor(torch.tensor([[0, 2, 0], [1, 0, 1]]), torch.tensor([1.0, 2.0, 3.0]), (3, 4))
    torch.save(made, tmp_path / "file.pt")
    read = torch_files.read(tmp_path / "file.pt")
    assert isinstance(read, Sparse) and read.shape == (3, 4)
    dense = np.zeros(read.shape)
    np.add.at(dense, tuple(read.indices), read.values)
    np.testing.assert_array_equal(dense, made.to_dense().numpy())


class Runs:
    """What a hostile file calls when it is loaded."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


HOSTILE = {
    "a shell": Runs(os.system, "touch was-run"),
    "eval": Runs(eval, "open('was-run', 'w')"),
    "getattr": Runs(getattr, "text", "upper"),
    "torch.load": Runs(torch.load, "other.pt"),
    "open": Runs(open, "was-run", "w"),
    "bytes without end": Runs(bytearray, 2**40),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["alone", "in a graph"])
def test_a_hostile_file_is_one_error_and_nothing_runs(payload: Runs, place: str, tmp_path: Path):
    content = payload if place == "alone" else {"nodes": {"embed": payload}, "edges": {}, "examples": []}
    torch.save(content, tmp_path / "graph.pt")
    done = here("render", "graph.pt", "-o", "x.html", cwd=tmp_path)
    assert done.status == 3 and len(done.errors) == 2 and "is refused: it asks for" in done.errors[0], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["graph.pt"]


def _outside() -> dict[str, tuple[object, ...]]:
    """Arguments of `_rebuild_tensor` that lead past the end of what the file holds."""
    base = torch.arange(100.0)
    return {
        "a view as storage": (base.as_strided((100,), (0,), 99), 0, (100,), (1,)),
        "a turned view as storage": (base.reshape(10, 10).T, 9, (2,), (100,)),
        "strides that overflow": (base, 0, torch.tensor([2, 2]), torch.tensor([2**62, 2**62])),
        "an offset that overflows": (base, torch.tensor(1), (2,), (2**63 - 1,)),
        "an offset past the end": (base, 100, (1,), (1,)),
        "an offset before the beginning": (base, -1, (1,), (1,)),
        "steps past the end": (base, 0, (2,), (100,)),
        "no storage": ([1.0, 2.0], 0, (2,), (1,)),
    }


@pytest.mark.parametrize("arguments", _outside().values(), ids=_outside())
@pytest.mark.filterwarnings("error")
def test_no_tensor_reaches_past_what_the_file_holds(arguments: tuple[object, ...], tmp_path: Path):
    torch.save(Runs(torch._utils._rebuild_tensor, *arguments), tmp_path / "graph.pt")
    with pytest.raises(InputError, match="is damaged"):
        torch_files.read(tmp_path / "graph.pt")


def rezipped(path: Path, change: Callable[[str, bytes], bytes], *, compressed: bool = False) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


def _shape_of(size: int) -> Callable[[str, bytes], bytes]:
    """A pickle that says that a vector of five numbers has this many."""
    tuple_of_five = pickle.dumps((5,), protocol=2)[2:-3]
    return lambda name, content: content.replace(tuple_of_five, pickle.dumps((size,), protocol=2)[2:-3])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no pickle": lambda path: rezipped(path, lambda name, content: b"" if name.endswith("data.pkl") else content),
    "nonsense": lambda path: rezipped(path, lambda name, content: b"\x80\x02cos\n" if "pkl" in name else content),
    "a short tensor": lambda path: rezipped(path, lambda name, content: content[:3] if "/data/" in name else content),
    "compressed": lambda path: rezipped(path, lambda name, content: content, compressed=True),
    "a large shape": lambda path: rezipped(path, _shape_of(200)),
    "big-endian": lambda path: rezipped(path, lambda name, content: b"big" if "byteorder" in name else content),
    "only a zip": lambda path: rezipped(path, lambda name, content: content) or _emptied(path),
}


def _emptied(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_one_error(damage: Callable[[Path], object], tmp_path: Path):
    torch.save({"adjacency_matrix": torch.arange(5.0)}, tmp_path / "graph.pt")
    damage(tmp_path / "graph.pt")
    with pytest.raises(InputError) as caught:
        formats.read(tmp_path / "graph.pt")
    assert "\n" not in caught.value.message and caught.value.hint


# circuit-tracer, against its own definition on dense matrices.

N_LAYERS, N_TOKENS, N_FEATURES, N_LOGITS = 3, 4, 12, 2


def traced(programs: types.SimpleNamespace, seed: int = 0) -> dict[str, object]:
    """What circuit-tracer writes: 20 active features of which 12 are selected, and all direct effects."""
    torch.manual_seed(seed)
    places = (torch.randint(0, N_LAYERS, (20,)), torch.randint(0, N_TOKENS, (20,)), torch.randperm(900)[:20])
    active, selected = torch.stack(places, 1), torch.randperm(20)[:N_FEATURES].sort().values
    rest = [torch.arange(N_LAYERS).repeat_interleave(N_TOKENS) + 1, torch.zeros(N_TOKENS)]
    order = torch.cat([active[selected, 0] + 1, *rest, torch.full((N_LOGITS,), N_LAYERS + 1)])
    n = len(order)
    matrix = torch.randn(n, n) * (torch.rand(n, n) < 0.5) * (order[:, None] > order[None, :])
    matrix[N_FEATURES : n - N_LOGITS] = 0
    return {
        "input_string": "a b <c> d",
        "adjacency_matrix": matrix,
        "cfg": programs.UnifiedConfig(n_layers=N_LAYERS, model_name="google/gemma-2-2b", dtype=torch.bfloat16),
        "active_features": active,
        "logit_targets": [programs.LogitTarget(' "x"', 17), programs.LogitTarget("y", 3)],
        "logit_probabilities": torch.tensor([0.5, 0.25]),
        "vocab_size": 1000,
        "input_tokens": torch.tensor([5, 6, 7, 8]),
        "selected_features": selected,
        "activation_values": torch.rand(20),
        "scan": "gemma",
    }


def influences(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As circuit-tracer has it: w N + w N^2 + ..., until nothing is left."""
    shares = matrix.abs() / matrix.abs().sum(1, keepdim=True).clamp(min=1e-10)
    found, term = torch.zeros(len(matrix), dtype=matrix.dtype), weights @ shares
    while term.any():
        found, term = found + term, term @ shares
    return found


@pytest.mark.parametrize("seed", range(3))
def test_circuit_tracers_graphs_have_its_influences_and_edges(programs, seed: int, tmp_path: Path):
    content = traced(programs, seed)
    torch.save(content, tmp_path / "dallas.pt")
    graph = circuitcli.read_graph(tmp_path / "dallas.pt")
    matrix, active, selected = (content[name] for name in ("adjacency_matrix", "active_features", "selected_features"))
    names = [f"mlp_in.{layer}/{index}@{position}" for layer, position, index in active[selected].tolist()]
    names += [f"mlp.{layer}/error@{position}" for layer in range(N_LAYERS) for position in range(N_TOKENS)]
    names += [f"embed/token@{position}" for position in range(N_TOKENS)] + ["logit/17", "logit/3"]
    weights = torch.zeros(len(names), dtype=torch.float64)
    weights[-N_LOGITS:] = content["logit_probabilities"].double()
    wanted = dict(zip(names, influences(matrix.double(), weights).tolist(), strict=True))
    numbers = {name: number for number, name in enumerate(names)}
    assert len(graph.nodes) > N_TOKENS and {node.id for node in graph.nodes} <= set(names)
    for node in graph.nodes:
        if node.token_id is None:
            assert node.influence == pytest.approx(wanted[node.id], rel=1e-9)
    for edge in graph.edges:
        assert edge.weight == matrix[numbers[edge.target], numbers[edge.source]].item()
        assert edge.unit == ("logits" if edge.target.startswith("logit/") else "pre-activation")
    # All that 0.8 of the influence comes from, and tokens and logits.
    ranked = sorted(wanted.values(), reverse=True)
    least = next(value for n, value in enumerate(ranked) if sum(ranked[: n + 1]) >= 0.8 * sum(ranked))
    assert all(node.influence is None or node.influence >= least or "token" in node.id for node in graph.nodes)
    values = dict(zip(names, content["activation_values"][selected].tolist(), strict=False))
    assert all(node.activation == values[node.id] for node in graph.nodes if node.kind == "feature")
    head = graph.head
    assert (head.model, head.prompt, head.ids, head.n_active) == ("google/gemma-2-2b", "a b <c> d", (5, 6, 7, 8), 20)
    assert head.logits == {"logit/17": ' "x"', "logit/3": "y"} and head.origin == "circuit-tracer"
    assert graph.by_id["logit/17"].probability == 0.5


def test_older_files_of_circuit_tracer_name_logits_by_number(programs, tmp_path: Path):
    content = traced(programs)
    torch.save({**content, "logit_targets": torch.tensor([17, 3]), "cfg": None}, tmp_path / "old.pt")
    graph = circuitcli.read_graph(tmp_path / "old.pt")
    assert {"logit/17", "logit/3"} <= graph.by_id.keys() and graph.head.model == "unknown"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adjacency_matrix", torch.zeros(3, 3), "does not fit the nodes"),
        ("adjacency_matrix", "text", "does not fit|another shape"),
        ("active_features", torch.full((20, 3), 99), "outside the model"),
        ("active_features", torch.zeros(20, 2, dtype=torch.long), "no layer, position and index"),
        ("selected_features", torch.tensor([99]), "another shape|out of bounds"),
        ("activation_values", torch.full((20,), torch.nan), "not finite"),
        ("logit_probabilities", torch.tensor([0.5]), "another shape|shorter|longer"),
        ("input_tokens", torch.tensor([], dtype=torch.long), "does not fit"),
    ],
)
def test_parts_that_do_not_fit_are_refused(programs, name: str, value: object, message: str, tmp_path: Path):
    torch.save({**traced(programs), name: value}, tmp_path / "graph.pt")
    with pytest.raises(InputError, match=message):
        circuitcli.read_graph(tmp_path / "graph.pt")


def test_edges_that_lead_backwards_or_nowhere_are_refused(programs, tmp_path: Path):
    content = traced(programs)
    for place, value, message in (((0, -1), 1.0, "backwards"), ((-1, 0), torch.inf, "not finite")):
        matrix = content["adjacency_matrix"].clone()
        matrix[place] = value
        torch.save({**content, "adjacency_matrix": matrix}, tmp_path / "graph.pt")
        with pytest.raises(InputError, match=message):
            circuitcli.read_graph(tmp_path / "graph.pt")


def anything(programs: types.SimpleNamespace) -> dict[str, object]:
    """What may stand where a file should have something else."""
    tensors = {
        "not numbers": torch.full((20, 3), torch.nan),
        "not two numbers": torch.full((2,), torch.nan),
        "below zero": torch.full((2,), -5.0),
        "no axis": torch.tensor(3.0),
        "without end": torch.full((2, 6), torch.inf),
        "sparse": torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (3,)),
    }
    plain = {"a number": 7, "nothing": None, "a text": "x", "pairs": [("a", -4), ("b", 2)], "large": [10**30, 2]}
    return {**tensors, **plain, "names": {"a": 1}, "another program's": programs.UnifiedConfig(a=1)}


@pytest.mark.parametrize("kind", ["circuit-tracer", "feature-circuits", "EAP-IG"])
def test_whatever_stands_where_a_part_should_be_is_a_graph_or_one_error(programs, kind: str, tmp_path: Path):
    eap = {"cfg": {"n_layers": 1, "n_heads": 1}, "src_nodes": ["input", "m0"], "dst_nodes": ["m0", "logits"]}
    eap |= {"edges_scores": torch.ones(2, 2), "edges_in_graph": torch.ones(2, 2).bool(), "nodes_scores": torch.ones(2)}
    circuit = marks(programs, positions=True)
    content = {"circuit-tracer": traced(programs), "feature-circuits": circuit, "EAP-IG": eap}[kind]
    refused = 0
    changes = [{name: value} for name in content for value in anything(programs).values()]
    for value in anything(programs).values() if kind == "feature-circuits" else ():
        changes.append({"nodes": {**circuit["nodes"], "embed": programs.SparseAct(act=value, res=None, resc=value)}})
        changes += [{"edges": {"resid_0": value}}, {"edges": {"resid_0": {"y": value}}}, {"examples": [value]}]
    for change in changes:
        torch.save({**content, **change}, tmp_path / "graph.pt")
        try:
            found = formats.read(tmp_path / "graph.pt")
        except InputError as error:
            assert "\n" not in error.message and error.hint
            refused += 1
        else:
            assert found is not None and found.records()
    assert 0 < refused < len(changes)


NUMBERS = (math.nan, math.inf, -math.inf, 1e308, -1e308, -7, 2**31, 2**62, 10**400, "x", "9" * 400, None, True)


def numbers(content: object, place: tuple = ()) -> Iterator[tuple]:
    """The places of all numbers in what a file holds, of tensors one."""
    if isinstance(content, dict | list | tuple):
        for key, one in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers(one, (*place, key))
    elif isinstance(content, torch.Tensor) and content.numel() and content.layout == torch.strided:
        yield (*place, (0,) * content.ndim)
    elif isinstance(content, int | float):
        yield place


def with_number(content: object, place: tuple, value: object) -> object:
    """The same with another value there; tensors hold what they can."""
    if not place:
        return value
    if isinstance(content, torch.Tensor):
        made = content.clone().double() if isinstance(value, float) else content.clone()
        made[place[0]] = value
        return made
    items = dict(content) if isinstance(content, dict) else list(content)
    items[place[0]] = with_number(content[place[0]], place[1:], value)
    return items if isinstance(content, dict | list) else type(content)(items)


@pytest.mark.parametrize("kind", ["circuit-tracer", "feature-circuits", "EAP-IG .pt", "EAP-IG", "Neuronpedia"])
def test_any_number_in_a_file_is_read_or_refused_without_a_warning(programs, kind: str, tmp_path: Path):
    eap = {"cfg": {"n_layers": 1, "n_heads": 1}, "src_nodes": ["input", "m0"], "dst_nodes": ["m0", "logits"]}
    eap |= {"edges_scores": torch.ones(2, 2), "edges_in_graph": torch.ones(2, 2).bool(), "nodes_scores": torch.ones(2)}
    made = json.loads(written(Shared(transcoded()), tmp_path).read_text()) if kind == "Neuronpedia" else None
    content = {
        **{"circuit-tracer": traced(programs), "feature-circuits": marks(programs, positions=True)},
        **{"EAP-IG .pt": eap, "EAP-IG": scored(), "Neuronpedia": made},
    }[kind]
    path, refused, every = tmp_path / "graph", 0, [*product(numbers(content), NUMBERS)]
    # Each kind of number at some places: their count is no multiple of the step.
    for place, value in every[:: 1 + 2 * (len(every) // 80)]:
        try:
            changed = with_number(content, place, value)
        except (TypeError, RuntimeError, ValueError, OverflowError):
            continue
        if kind in ("EAP-IG", "Neuronpedia"):
            path.write_text(json.dumps(changed))
        else:
            torch.save(changed, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                found = formats.read(path)
            except InputError as error:
                assert "\n" not in error.message and error.hint, (place, value)
                refused += 1
            else:
                assert found is not None and found.records(), (place, value)
    # There a number that is not finite is no node.
    assert refused or kind == "feature-circuits"


# feature-circuits.


def marks(programs: types.SimpleNamespace, *, positions: bool) -> dict[str, object]:
    """A circuit as circuit.py saves it: 5 features and an error at each place; downstream places come first."""
    shape = (2, 5) if positions else (5,)
    nodes = {}
    for n, name in enumerate(("embed", "attn_0", "resid_0")):
        act, error = torch.zeros(shape), torch.zeros(*shape[:-1], 1)
        act[..., n], act[..., 4], error[..., 0] = 0.5 + n, 0.15, -0.5
        nodes[name] = programs.SparseAct(act=act, res=None, resc=error)
    last = (1,) if positions else ()
    sizes = (2, 6) if positions else (6,)

    def sparse(values: dict[tuple[int, ...], float], shape: tuple[int, ...]) -> torch.Tensor:
        return torch.sparse_coo_tensor(torch.tensor([*values]).T, torch.tensor([*values.values()]), shape)

    edges = {
        "embed": {"resid_0": sparse({(*last, 2, *last, 0): 0.25, (*last, 5, *last, 0): 0.01}, (*sizes, *sizes))},
        "attn_0": {"resid_0": sparse({(*last, 2, *last, 5): -0.75, (*last, 2, *last, 3): 9.0}, (*sizes, *sizes))},
        "resid_0": {"y": sparse({(*last, 2): 2.5, (*last, 5): -0.5}, sizes)},
    }
    examples = [{"clean_prefix": "The man", "patch_prefix": "The men", "clean_answer": " is", "patch_answer": " are"}]
    return {"examples": examples, "nodes": nodes, "edges": edges}


@pytest.mark.parametrize("positions", [False, True])
def test_circuits_of_feature_circuits_have_their_nodes_and_edges(programs, positions: bool, tmp_path: Path):
    path = tmp_path / "pythia-70m_rc_n1_node0.2_edge0.02_aggsum.pt"
    torch.save(marks(programs, positions=positions), path)
    graph = circuitcli.read_graph(path)
    at = "@1" if positions else ""
    effects = {"embed/0": 0.5, "attn.0/1": 1.5, "resid.0/2": 2.5} | dict.fromkeys(
        ("embed/error", "attn.0/error", "resid.0/error"), -0.5
    )
    places = ("@0", "@1") if positions else ("",)
    assert {node.id: node.effect for node in graph.nodes if node.id != "output"} == {
        name + place: effect for name, effect in effects.items() for place in places
    }
    assert {(edge.source, edge.target): edge.weight for edge in graph.edges} == {
        (f"embed/0{at}", f"resid.0/2{at}"): 0.25,
        (f"attn.0/error{at}", f"resid.0/2{at}"): -0.75,
        (f"resid.0/2{at}", "output"): 2.5,
        (f"resid.0/error{at}", "output"): -0.5,
    }
    head = graph.head
    assert (head.origin, head.model, head.prompt, head.baseline) == (
        *("feature-circuits", "pythia-70m", "The man"),
        "counterfactual",
    )
    assert here("render", path.name, "-o", "x.html", "-o", "x.graphml", cwd=tmp_path).status == 0
    assert circuitcli.read_graph(tmp_path / "x.graphml") == graph


def test_a_circuit_whose_effects_are_all_small_keeps_its_strongest_nodes(programs, tmp_path: Path):
    content = marks(programs, positions=False)
    for act in content["nodes"].values():
        act.act, act.resc = act.act / 1000, act.resc / 1000
    torch.save({**content, "edges": None}, tmp_path / "circuit.pt")
    assert len(circuitcli.read_graph(tmp_path / "circuit.pt").nodes) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["nodes"].update(where=content["nodes"]["embed"]), "not a hook point"),
        (lambda content: content["nodes"].update(embed=torch.zeros(3)), "act of one or two axes"),
        (lambda content: setattr(content["nodes"]["embed"], "resc", None), "resc"),
        (lambda content: content["edges"].update(attn_0={"resid_0": torch.zeros(2, 2)}), "do not fit"),
        (lambda content: content["edges"].update(attn_0={"mlp_7": torch.zeros(6, 6)}), "an edge from"),
        (lambda content: content.update(nodes=[1]), "by the names"),
        (lambda content: setattr(content["nodes"]["embed"], "act", torch.full((5,), torch.nan)), "not finite"),
    ],
)
def test_parts_of_circuits_that_do_not_fit_are_refused(programs, change, message: str, tmp_path: Path):
    content = marks(programs, positions=False)
    change(content)
    torch.save(content, tmp_path / "circuit.pt")
    with pytest.raises(InputError, match=message):
        circuitcli.read_graph(tmp_path / "circuit.pt")


# EAP-IG and MIB.

CFG = {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": False, "d_model": 24}


def scored() -> dict[str, object]:
    """What Graph.to_json writes, with scores that were not measured, and parts of a head's edge."""
    edges = {
        "input->a0.h1<q>": (0.5, True),
        "input->a0.h1<k>": (-0.25, True),
        "input->a0.h1<v>": (0.125, False),
        "a0.h1->m1": (1.5, True),
        "m1->logits": (-2.0, True),
        "m0->logits": (9.0, False),
    }
    return {
        "cfg": CFG,
        "nodes": {
            "input": {"in_graph": True, "score": 0.5},
            "a0.h1": {"in_graph": True, "score": float("nan")},
            "m0": {"in_graph": False},
            "m1": {"in_graph": True, "score": -1.0},
            "logits": {"in_graph": True},
        },
        "edges": {name: {"score": score, "in_graph": is_in} for name, (score, is_in) in edges.items()},
    }


def test_graphs_of_eap_are_read_and_written_as_their_circuit(tmp_path: Path):
    path = tmp_path / "ioi.json"
    path.write_text(json.dumps(scored()))
    graph = circuitcli.read_graph(path)
    assert set(graph.nodes) == {
        Node("embed/token", effect=0.5, unit="score"),
        Node("attn.0/1"),
        Node("mlp.1/0", effect=-1.0, unit="score"),
        Node("output"),
    }
    assert Edge("embed/token", "attn.0/1", 0.25, "score", heads={"q": 0.5, "k": -0.25}) in graph.edges
    assert {card.id: card.label for card in circuitcli.read_cards(path)} == {
        **{"embed/token": "input", "attn.0/1": "a0.h1", "mlp.1/0": "m1"}
    }
    done = here("render", "ioi.json", "--as", "eap", "-o", "again.json", cwd=tmp_path)
    assert done.status == 0, done.stderr
    written, wanted = json.loads((tmp_path / "again.json").read_text()), scored()
    assert written["cfg"] == CFG
    assert written["edges"] == {name: one for name, one in wanted["edges"].items() if one["in_graph"]}
    assert written["nodes"] == {
        "input": {"in_graph": True, "score": 0.5},
        **{"a0.h1": {"in_graph": True}, "m1": {"in_graph": True, "score": -1.0}, "logits": {"in_graph": True}},
    }
    assert graph.head.noun == "nodes" and embedded(page(draw(graph)))["noun"] == "nodes"
    assert next(title for title, _ in effect_bars(graph).panels) == "nodes of the graph (score)"
    shown = here("render", "ioi.json", "--as", "mermaid", "-o", "-", cwd=tmp_path).stdout
    assert "a0.h1" in shown and "output" in shown


def test_without_a_circuit_all_edges_are_read_and_arrays_are_as_json(tmp_path: Path):
    content = scored()
    for one in content["edges"].values():
        one["in_graph"] = False
    (tmp_path / "ioi.json").write_text(json.dumps(content))
    graph = circuitcli.read_graph(tmp_path / "ioi.json")
    sources = ["input", "a0.h1", "m0", "m1"]
    targets = ["a0.h1<q>", "a0.h1<k>", "a0.h1<v>", "m1", "logits"]
    scores = torch.zeros(len(sources), len(targets))
    for name, one in content["edges"].items():
        source, _, target = name.partition("->")
        scores[sources.index(source), targets.index(target)] = one["score"]
    arrays = {
        **{"cfg": CFG, "src_nodes": sources, "dst_nodes": targets, "edges_scores": scores},
        **{"edges_in_graph": torch.zeros_like(scores, dtype=torch.bool), "nodes_in_graph": torch.ones(4)},
        "nodes_scores": torch.tensor([0.5, torch.nan, torch.nan, -1.0]),
    }
    torch.save(arrays, tmp_path / "ioi.pt")
    same = circuitcli.read_graph(tmp_path / "ioi.pt")
    assert {node.id for node in graph.nodes} == {"embed/token", "attn.0/1", "mlp.0/0", "mlp.1/0", "output"}
    assert set(same.nodes) == set(graph.nodes) and sorted(map(str, same.edges)) == sorted(map(str, graph.edges))


# Bad input, of all formats.


def neuronpedia(**changes: object) -> str:
    node = {"node_id": "1_5_0", "feature": 17, "layer": "1", "ctx_idx": 0, "feature_type": "cross layer transcoder"}
    content = {
        "metadata": {"slug": "s", "scan": "m", "prompt_tokens": ["a"], "prompt": "a"},
        "qParams": {},
        "nodes": [{**node, "jsNodeId": "1_5-0", "clerp": ""}],
        "links": [],
    }
    return json.dumps({**content, **changes})


BAD = {
    "no nodes": (neuronpedia(nodes=[]), "holds no node"),
    "nodes of a wrong type": (neuronpedia(nodes=3), "nodes"),
    "a node without an id": (neuronpedia(nodes=[{"feature": 3}]), "nodes.0.node_id"),
    "a layer that is none": (neuronpedia().replace('"layer": "1"', '"layer": [1]'), "layer"),
    "a position below 0": (neuronpedia().replace('"ctx_idx": 0', '"ctx_idx": -3'), "position -3"),
    "metadata without a slug": (neuronpedia(metadata={}), "metadata.slug"),
    "a weight that is no number": (neuronpedia(links=[{"source": "a", "target": "b", "weight": "x"}]), "weight"),
    "a weight that is not finite": (
        neuronpedia(links=[{"source": "1_5_0", "target": "1_5_0", "weight": float("nan")}]),
        "weight",
    ),
    "cut": (neuronpedia()[:-20], "not JSON"),
    "too deep": (neuronpedia(more=[])[:-3] + "[" * 5000 + "]" * 5001, "deep"),
    "half a character": (neuronpedia().replace('"slug": "s"', '"slug": "\\ud800"'), "surrogate"),
    "metadata only": ('{"graphs": []}', "lists graphs"),
    "other JSON": ('{"nodes": []}', "no graph that is known"),
    "eap without sizes": (json.dumps({**scored(), "cfg": {}}), "n_layers"),
    "eap with a head that the model lacks": (json.dumps(scored()).replace("a0.h1", "a0.h7"), "no node 'a0.h7'"),
    "eap with no edge": (json.dumps({**scored(), "edges": {"m0 m1": {"score": 1}}}), "not an edge"),
    "eap without scores": (json.dumps({**scored(), "edges": {"m0->m1": {}}}), "no score"),
    "XML with entities": ('<!DOCTYPE x [<!ENTITY a "b">]><graphml>&a;</graphml>', "document type"),
    "GraphML of another program": ("<graphml><graph><node id='a'/></graph></graphml>", "not of a circuit"),
    "GEXF of another program": ("<gexf><graph><nodes/></graph></gexf>", "not of a circuit"),
    "XML that ends": ("<graphml><graph>", "not XML"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_files_are_one_error_that_says_where(text: str, message: str, tmp_path: Path):
    (tmp_path / "graph.json").write_text(text)
    done = here("render", "graph.json", "-o", "x.html", cwd=tmp_path)
    assert done.status == 3 and len(done.errors) == 2 and message in done.errors[0], done.stderr
    assert not (tmp_path / "x.html").exists()


def test_labels_of_the_run_are_not_those_of_another_programs_features(tmp_path: Path):
    (tmp_path / "run" / "features").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"format": 1, "stages": {}}))
    line = {"id": "mlp_in.1/5", "label": "of our own coder"}
    (tmp_path / "run" / "features" / "mlp_in.1.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "graph.json").write_text(neuronpedia())
    done = here("render", "graph.json", "--run", "run", "--as", "mermaid", "-o", "-", cwd=tmp_path)
    assert done.status == 0 and "mlp_in.1/5" in done.stdout and "our own" not in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("circuit.html", b"<!DOCTYPE html>", "GraphML"),
        ("circuit.svg", b"<?xml version='1.0'?><svg/>", "GraphML"),
        ("circuit.png", b"\x89PNG\r\n\xff", "GraphML"),
        ("circuit.pdf", b"%PDF-1.4\n\xff", "GraphML"),
        ("circuit.dot", b"digraph circuit {}", "GraphML"),
        ("circuit.csv", b"source,target\n", "GraphML"),
        ("circuit.mmd", b"graph BT\n", "GraphML"),
        ("circuit.state.json", State(graph="circuit").model_dump_json(indent=1).encode(), "--state"),
    ],
)
def test_what_render_or_a_page_wrote_and_nothing_reads_is_named(name: str, content: bytes, hint: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    done = here("render", name, "-o", "x.svg", cwd=tmp_path)
    assert done.status == 3 and len(done.errors) == 2 and hint in done.errors[1], done.stderr
    assert "JSON" not in done.errors[0]


def test_values_of_other_programs_do_nothing():
    made = type("Graph", (Inert,), {})(1, "a")
    assert made.arguments == (1, "a") and not callable(made)
