"""The graph of a search by resampling: `graph-naive --search`."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from circuitcli import records
from circuitcli.attribution.examples import Example
from circuitcli.errors import InputError, SettingsError
from circuitcli.graphs import CircuitGraph, to_records
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, GraphRecord, Record, SearchRecord
from circuitcli.runs import Fingerprint, atomic, digest
from circuitcli.settings.graph import BY_INFLUENCE, OF_FROZEN
from circuitcli.stages.graph_task import Task, task_of
from circuitcli.stages.graphing import baseline_rule, encoded_prompts, load_coders
from circuitcli.stages.inputs import activation_digests, open_cache
from circuitcli.stages.request import Request, resumable
from circuitcli.stages.saes import at_neuronpedia

if TYPE_CHECKING:
    from circuitcli.attribution.search.circuit import PromptSearch
    from circuitcli.attribution.search.codes import TextCodes
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.coders import Coders

logger = logging.getLogger(__name__)

# Settings of graphs that the search does not read.
_UNREAD = (
    *("down", "up", "strongest", "min_share", "min_effect", "edge_points", "edges_exact", "method", "ig_steps"),
    *("refine", "heads", "qk", "pairs", "threshold_exp", "thin", "to", "sweep_readers", *OF_FROZEN, *BY_INFLUENCE),
)
FOLDER = "codes"


@dataclass(frozen=True)
class _Loaded:
    """What all prompts are searched with."""

    model: "LanguageModel"
    coders: "Coders"
    digests: Mapping[HookPoint, str]
    neuronpedia: Mapping[str, str]
    codes: "Mapping[HookPoint, TextCodes]"
    length: int


def run(request: Request) -> list[Record]:
    """Head, nodes and edges of each prompt's circuit, and what they come to, found now or before; a killed run goes on
    at the next hook point.

    Raises SettingsError for settings that a search has no use for, InputError without SAEs or text to draw from.
    """
    request = _with_kl(request)
    task = task_of(request, "graph-naive", name="search", positions="all", baseline="mean", foreign=_UNREAD)
    if not request.records.of(ActivationsRecord):
        raise InputError(
            "a search by resampling takes values from the run's text, and the run has none",
            hint="run `circuit collect` before it",
        )
    print_ = task.fingerprint()
    return resumable(
        request, task.entry, print_, lambda resumes: _work(task, print_, resumes), partial=_parts(task), keeps=True
    )


def _with_kl(request: Request) -> Request:
    """The request with the metric that a search looks at. Raises SettingsError for what it cannot go with."""
    graph = request.settings.graph
    given = graph.model_fields_set
    if "metric" in given and graph.metric != "kl":
        raise SettingsError(
            f"--search keeps the next token's probabilities, so it has the metric kl, not {graph.metric}",
            hint="leave out --metric, or --search",
        )
    unfit = {
        "--pin": bool(graph.pin),
        "--sweep-coefficient": graph.sweep_coefficient is not None,
        "--extend": graph.extend is not None,
        "--target": graph.target is not None,
        "--foil": graph.foil is not None,
        f"--positions {graph.positions}": graph.positions not in (None, "all"),
    }
    for name, is_given in unfit.items():
        if is_given:
            raise SettingsError(
                f"{name} does not go with --search, which finds one whole circuit with nodes at positions",
                hint=f"leave out {name}, or --search",
            )
    changed = graph.model_copy(update={"metric": "kl"})
    return replace(request, settings=request.settings.model_copy(update={"graph": changed}))


def _parts(task: Task) -> Path:
    """Where what an unfinished search has found is kept."""
    return task.path.with_suffix(".parts")


def _work(task: Task, print_: Fingerprint, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.models.loading import load_model

    folder = _parts(task)
    if not resumes:
        shutil.rmtree(folder, ignore_errors=True)
    model = load_model(task.request.settings.model)
    loaded = _loaded(task, model)
    examples, prompts = encoded_prompts(task, model)
    names = [task.name] if len(prompts) == 1 else [f"{task.name}-{n}" for n in range(1, len(prompts) + 1)]
    graphs = []
    for number, (name, example) in enumerate(zip(names, examples, strict=True)):
        search, head = _of_prompt(task, loaded, example, prompts[number], name)
        keep = _Keeping(folder / str(number), print_.digest)
        graphs.append(_searched(search, head, keep))
    made = [record for graph in graphs for record in to_records(graph)]
    made.append(_summary(task, graphs))
    with atomic(task.path) as stream:
        records.write(made, stream)
    shutil.rmtree(folder, ignore_errors=True)
    facts = {"n_nodes": sum(len(graph.nodes) for graph in graphs), "n_edges": sum(len(graph.edges) for graph in graphs)}
    return made, facts


def _loaded(task: Task, model: "LanguageModel") -> _Loaded:
    """Coders, and the codes of the run's text, kept there for the next search."""
    from circuitcli.attribution.search.circuit import check_coders
    from circuitcli.attribution.search.codes import kept_codes

    request, settings = task.request, task.request.settings
    coders, sources, _ = load_coders(request, task.sources, settings.graph, model)
    check_coders(coders)
    digests = {hook: source.digest for hook, source in sources.items()}
    cache = open_cache(request, coders.hooks, purpose="a search by resampling")
    n_rows = task.n_search_rows
    text = activation_digests(request)
    codes = {}
    for hook, coder in coders.items():
        key = digest([digests[hook], text[f"activations at {hook}"], n_rows]).rpartition(":")[2][:16]
        path = request.run.path / FOLDER / f"{hook}-{key}.safetensors"
        codes[hook] = kept_codes(cache, coder.cpu(), hook, n_rows=n_rows, path=path)
        coder.to(model.adapter.device)
    length = max(int(one.positions.max()) for one in codes.values()) + 1
    return _Loaded(model, coders, digests, at_neuronpedia(sources), codes, length)


def _of_prompt(
    task: Task, loaded: _Loaded, example: Example, prompt: Any, name: str
) -> "tuple[PromptSearch, GraphRecord]":
    """What is searched for one prompt, and its graph's head."""
    from circuitcli.attribution import heads
    from circuitcli.attribution.method import panel_of
    from circuitcli.attribution.search.circuit import PromptSearch

    settings = task.request.settings
    rule = baseline_rule(task.request, task.baseline, loaded.coders, settings.graph)
    panel = panel_of(loaded.model, loaded.coders, [prompt], settings.graph, rule=rule, usual="all")
    head = heads.head_of(
        panel,
        loaded.model,
        name=name,
        method=f"search-{settings.search.by}",
        baseline=task.baseline,
        model=settings.model.name,
        dtype=settings.model.dtype,
        digests=loaded.digests,
        seed=settings.seed,
        baseline_tokens=settings.graph.baseline_tokens,
        chat=settings.graph.chat or None,
        path=f"graphs/{task.name}.jsonl",
        neuronpedia=loaded.neuronpedia or None,
        counterfactual=example.counterfactual if isinstance(example.counterfactual, str) else None,
    )
    subject, _ = panel.subject(0)
    return PromptSearch(subject, settings.search, loaded.codes, loaded.length, settings.seed), head


def _searched(search: "PromptSearch", head: GraphRecord, keep: "_Keeping") -> CircuitGraph:
    """The graph of one prompt, each hook point taken from an earlier, killed run where that found it."""
    from circuitcli.attribution.search.edges import Link
    from circuitcli.attribution.search.nodes import Found
    from circuitcli.attribution.search.patching import Place

    def found_of(content: dict[str, Any]) -> Found:
        places = tuple(Place(*pair) for pair in content["places"])
        return Found(**{**content, "places": places, "effects": tuple(content["effects"])})

    def link_of(content: dict[str, Any]) -> Link:
        return Link(**{**content, **{end: Place(*content[end]) for end in ("source", "target")}})

    found: dict[HookPoint, Found] = {}
    before: Found | None = None
    for hook in search.hooks:
        content = keep(f"{hook}", lambda hook=hook, before=before: asdict(search.nodes(hook, before)))  # type: ignore[misc]
        before = found[hook] = found_of(content)
    between: dict[HookPoint, list[Link]] = {}
    for hook, other in zip(search.hooks, search.hooks[1:], strict=False):

        def make(hook: HookPoint = hook, other: HookPoint = other) -> list[dict[str, Any]]:
            return [asdict(link) for link in search.links(hook, found[hook], other, found[other])]

        between[hook] = [link_of(content) for content in keep(f"{hook}.edges", make)]
    return search.graph(head, found, between)


@dataclass(frozen=True)
class _Keeping:
    """What was made for one prompt, a file for each part of it."""

    folder: Path
    digest: str

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """What a file holds; made now where it is not there, of another fingerprint, or damaged."""
        path = self.folder / f"{name}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["fingerprint"] == self.digest:
                return content["made"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        with atomic(path) as stream:
            json.dump({"fingerprint": self.digest, "made": make()}, stream)
        # As a later run reads it.
        return json.loads(path.read_text(encoding="utf-8"))["made"]


def _summary(task: Task, graphs: list[CircuitGraph]) -> SearchRecord:
    """What the circuits come to, said to people where a hook point stays above the limit."""
    limit = task.request.settings.search.max_kl
    sizes = [len(graph.nodes) - 1 for graph in graphs]
    tables = [graph.head.searched or {} for graph in graphs]
    divergences = [fmean(float(row["kl"] or 0.0) for row in table.values()) for table in tables]
    floors = [max(float(row["kl_all"] or 0.0) for row in table.values()) for table in tables]
    reached = [all(float(row["kl"] or 0.0) <= limit for row in table.values()) for table in tables]
    if max(floors) > limit:
        logger.warning(
            "the KL of all features of a hook point is %.3g nats already, above --max-kl %g: that is what its SAE "
            "misses; --errors kept leaves it out of account",
            *(max(floors), limit),
        )
    return SearchRecord(
        name=task.name,
        by=str(task.request.settings.search.by),
        max_kl=limit,
        n_prompts=len(graphs),
        median_nodes=float(median(sizes)),
        mean_nodes=fmean(sizes),
        n_edges=fmean(len(graph.edges) for graph in graphs),
        median_kl=float(median(divergences)),
        mean_kl=fmean(divergences),
        reached=fmean(reached),
    )
