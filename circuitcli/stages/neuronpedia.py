"""``circuit interp --neuronpedia``: the labels that Neuronpedia has of a run's features, only when asked for."""

import logging
import os
from collections.abc import Mapping

from circuitcli.errors import InputError, SettingsError
from circuitcli.explaining.exchange import Secret
from circuitcli.explaining.server import Limits
from circuitcli.features.label_files import NEURONPEDIA, Label, keep, read_kept
from circuitcli.hookpoints import HookPoint
from circuitcli.records import GraphRecord, Record
from circuitcli.saes.exchange.neuronpedia import is_source
from circuitcli.stages.explained_features import chosen
from circuitcli.stages.labels import coders, keep_labels
from circuitcli.stages.request import Request
from circuitcli.stages.saes import at_neuronpedia, sae_sources

logger = logging.getLogger(__name__)
KEY = "NEURONPEDIA_API_KEY"
# Labels are written after so many, so that a killed command loses no more.
_EACH = 50


def run(request: Request) -> list[Record]:
    """Labels of the chosen features where Neuronpedia shows their coders; those that are kept are not fetched again.

    Raises InputError where it is not known to show any, SettingsError for a place that is none, and ToolError where it
    cannot be asked.
    """
    from circuitcli.explaining.neuronpedia import fetch

    places = _places(request)
    features = chosen(request, places)
    known = coders(request.records)
    names = {f"{hook}/{index}": f"{places[hook]}/{index}" for hook, indices in features.items() for index in indices}
    saes = {name: known[name.partition("/")[0]].sae if name.partition("/")[0] in known else None for name in names}
    kept = {} if request.force else read_kept(request.run.path, NEURONPEDIA)
    wanted = {name: place for name, place in names.items() if not _is_there(kept.get(name), place, saes[name])}
    fetched: list[Label] = []

    def told(label: Label) -> None:
        fetched.append(label)
        if len(fetched) % _EACH == 0:
            keep(request.run.path, NEURONPEDIA, fetched)

    explain = request.settings.explain
    limits = Limits(1, None, None, explain.timeout_s, explain.retries)
    secret = Secret(os.environ.get(KEY, "").strip() or None)
    with request.run.lock(begins=False):
        try:
            fetch(wanted, explain.neuronpedia_url, secret=secret, limits=limits, sae=saes, keep=told)
        finally:
            keep(request.run.path, NEURONPEDIA, fetched)
    without = [label.id for label in fetched if not label.label]
    if without:
        logger.warning("Neuronpedia has no label of %d of %d features", len(without), len(fetched))
    return keep_labels(request, NEURONPEDIA, [label for label in fetched if label.label])


def _is_there(label: Label | None, place: str, sae: str | None) -> bool:
    """Whether what is kept is of the same place and SAE."""
    return label is not None and (label.model_extra or {}).get("place") == place and label.sae == sae


def _places(request: Request) -> dict[HookPoint, str]:
    """Where Neuronpedia shows the coder of each hook point: as set, else as is known of releases and said by graphs."""
    known: Mapping[str, str] = {}
    for graph in request.records.of(GraphRecord):
        known = {**known, **(graph.neuronpedia or {})}
    sources = {} if request.settings.sae_path is None else sae_sources(request, stage="interp --neuronpedia")
    known = {**known, **at_neuronpedia(sources)}
    if written := request.settings.explain.neuronpedia_source:
        hooks = {*known, *coders(request.records), *map(str, sources)}
        known = {hook: _written(written, HookPoint.parse(hook)) for hook in hooks}
    if not known:
        raise InputError(
            "Neuronpedia is not known to show these coders",
            hint="name a release with --sae, or where they are: --set explain.neuronpedia_source=MODEL/SOURCE",
        )
    return {HookPoint.parse(hook): place for hook, place in known.items()}


def _written(text: str, hook: HookPoint) -> str:
    place = text.replace("{layer}", str(hook.layer)).replace("{site}", hook.site)
    if not is_source(place):
        raise SettingsError(
            f"'{text[:100]}' is not a place at Neuronpedia", hint="for example gpt2-small/{layer}-res-jb"
        )
    return place
