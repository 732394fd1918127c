"""What Python offers of commands that work on a run and nowhere else: labels by a language model, pages of features.

`circuitcli.explain` and `circuitcli.write_pages` are these; they do what `circuit interp` does, on the same files.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

from circuitcli.api.arguments import Path, checked, others_of, wrong_type
from circuitcli.errors import InputError
from circuitcli.features.label_files import MODEL, Label, read_kept
from circuitcli.reading import as_path
from circuitcli.runs import Run
from circuitcli.settings.explain import ExplainSettings
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.pages import PagesSettings
from circuitcli.settings.section import Section
from circuitcli.settings.settings import Settings
from circuitcli.stages import interp, interp_pages
from circuitcli.stages.request import Request

S = TypeVar("S", bound=Section)


def explain(
    run: Path,
    explainer: str,
    features: str | Iterable[str] | None = None,
    *,
    base_url: str | None = None,
    max_usd: float = 1.0,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
) -> dict[str, Label]:
    """What a language model says features of a run mean, by feature; kept there, as `circuit interp --explain` does.

        labels = circuit.explain("runs/gpt2", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "random:20")
        labels = circuit.explain("runs/gpt2", "qwen3", ["resid.2/17"], base_url="http://127.0.0.1:8080/v1")
        labels["resid.2/17"].label, labels["resid.2/17"].label_score

    explainer: a Hugging Face model or directory, which runs in this process on ``device``; or with base_url the name of
    a model at an OpenAI-compatible server, whose key is in OPENAI_API_KEY. features: names, or graph, graph:NAME,
    best:N, random:N, all; by default those of the last graph, or random:20. max_usd: most dollars that may be spent.
    settings: all others of ``circuit --set explain.*``, for example {"score": ["detection"]}. Answers are kept: nothing
    is asked, or paid for, twice. Features that are not described yet are described first.

    Raises InputError for what is no run, and SettingsError where prices are not known or more would be spent.
    """
    asked = _section(
        ExplainSettings,
        settings,
        example="{'score': ['detection']}",
        called={"model": "explainer"},
        model=explainer,
        base_url=base_url,
        features=features if features is None or isinstance(features, str) else [*features],
        max_usd=max_usd,
    )
    from circuitcli.stages import explain as stage
    from circuitcli.stages.explained_features import chosen
    from circuitcli.stages.explainer import check
    from circuitcli.stages.saes import sae_sources

    check(asked, asks=True)
    _, request = interp.described(_request(run, device, explain=asked))
    stage.run(request)
    wanted = chosen(request, sae_sources(request, stage=stage.NAME))
    names = {f"{hook}/{index}" for hook, indices in wanted.items() for index in indices}
    return {name: label for name, label in read_kept(request.run.path, MODEL).items() if name in names}


def write_pages(
    run: Path,
    folder: Path,
    *,
    ablate: bool = False,
    force: bool = False,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
) -> FilePath:
    """Write pages of all features of a run into a folder, as `circuit interp --html` does; returns the index's path.

        index = circuit.write_pages("runs/gpt2", "pages")

    ablate: also what happens on each feature's own contexts without it, which takes hours for thousands. force: write
    among other files. settings: all others of ``circuit --set pages.*``, for example {"neighbours": 4}. Features that
    are not described yet are described first; a folder that was begun is gone on with.

    Raises InputError for what is no run, and for a folder that holds other files.
    """
    asked = _section(PagesSettings, settings, example="{'neighbours': 4}", ablate=ablate or None)
    request = _request(run, device, force=force, pages=asked)
    place = str(as_path(folder))
    interp_pages.run(request, place, describes=False)
    return FilePath(place) / interp_pages.pages.INDEX


def _section(
    kind: type[S],
    settings: Mapping[str, object] | None,
    *,
    example: str,
    called: Mapping[str, str] | None = None,
    **named: Any,
) -> S:
    free = sorted(set(kind.model_fields) - set(named))
    return checked(kind, called=called, **{**others_of(settings, example=example, known=free), **named})


def _request(run: Path, device: str, *, force: bool = False, **sections: Section) -> Request:
    """The request of a command on this run, with the run's own model. Raises InputError for what is no run."""
    if not isinstance(run, str) and not hasattr(run, "__fspath__"):
        raise wrong_type("run", run, "the directory of a run", hint="for example 'runs/gpt2'")
    place = Run(as_path(run), option="run=")
    if not place.exists:
        raise InputError(f"{place.path} is not a run directory", hint="name one that `circuit collect` began")
    manifest = place.manifest()
    usual = {f"model.{name}": manifest.get(key) for name, key in (("name", "model"), ("revision", "revision"))}
    recorded = manifest.get("model_settings") or usual
    model = {name.rpartition(".")[2]: value for name, value in recorded.items()}
    settings = Settings(model=checked(ModelSettings, **{**model, "device": device}), **sections)  # type: ignore[arg-type]
    return Request(settings, place.stream(), place, force)
