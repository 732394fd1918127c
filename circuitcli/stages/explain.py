"""``circuit interp --explain``: a language model says what features mean, and how well its labels tell where they are
active is measured beside other labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import runs
from circuitcli.errors import InputError
from circuitcli.explaining import prompts, scoring
from circuitcli.explaining.answer_cache import AnswerCache
from circuitcli.explaining.answers import label_of
from circuitcli.explaining.asking import Ask, Client
from circuitcli.explaining.examples import Subject
from circuitcli.explaining.price import Budget, Estimate
from circuitcli.features.label_files import FOLDER, MODEL
from circuitcli.features.lines import Details, wanted_lines
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord, FeaturesRecord, Record
from circuitcli.runs import Fingerprint
from circuitcli.stages import explainer
from circuitcli.stages.explain_scores import label_with_scores, score_records
from circuitcli.stages.explained_features import chosen
from circuitcli.stages.inputs import activation_records, collecting, open_cache
from circuitcli.stages.labels import keep_labels
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources

if TYPE_CHECKING:
    from circuitcli.saes.base import SparseCoder

logger = logging.getLogger(__name__)
NAME = "explain"
# What changes how fast or for how much answers come, and what is about other labels.
_NO_MATTER = ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "retries", "max_usd", "cache")
_OTHERS = ("price_in", "price_out", "key_file", "labels", "neuronpedia", "neuronpedia_source", "neuronpedia_url")
Features = Mapping[HookPoint, Sequence[int]]


def run(request: Request) -> list[Record]:
    """Labels of the features that the settings choose, kept in the run, and records of how they score.

    Answers are kept as they come: a killed command goes on where it was, and nothing is paid for twice. Raises
    SettingsError where no model is named, its price is not known, or more would be spent than is allowed; ToolError
    where it cannot be asked.
    """
    explainer.check(request.settings.explain, asks=True)
    sources = _sources(request)
    features = chosen(request, sources)
    print_ = _fingerprint(request, sources, features)
    # Other features, or another model, are asked about beside those of before, not in their place.
    is_new = request.run.finished(NAME, print_) is None
    asking = replace(request, force=request.force or is_new)
    return resumable(asking, NAME, print_, lambda _: (_work(request, sources, features), {}), keeps=True)


def plan(request: Request) -> list[tuple[str, str]]:
    """What would be asked, in words, without asking."""
    settings = request.settings.explain
    explainer.check(settings, asks=False)
    sources = _sources(request)
    features = chosen(request, sources)
    subjects = _subjects(request, sources, features)
    with AnswerCache(cache_path(request)) as cache:
        estimate = _estimate(request, subjects, cache, _planned_client(request))
    rows = [
        ("features", f"{len(subjects):,}"),
        ("questions to ask", f"{estimate.n_asks:,}"),
        ("answered before", f"{estimate.n_known:,}"),
        ("tokens of questions", f"about {estimate.tokens_in:,}"),
        ("tokens of answers", f"about {estimate.tokens_out:,}"),
    ]
    known = settings.price_in is not None and settings.price_out is not None
    if settings.base_url is None:
        return [*rows, ("cost", "none: the model runs in this process")]
    told = f"about ${estimate.usd(explainer.prices(settings)):.4g}" if known else "the price is not known"
    return [*rows, ("cost", told)]


def cache_path(request: Request) -> Path:
    """Where answers are kept."""
    named = request.settings.explain.cache
    return request.run.path / FOLDER / "answers.sqlite" if named is None else Path(named).expanduser()


@dataclass(frozen=True)
class _Planned:
    """Stands for a model that is not to be asked."""

    name: str
    judges_singly: bool

    def answer(self, asks: Sequence[Ask], keep: Any) -> None:
        raise AssertionError("a plan asks nothing")


def _planned_client(request: Request) -> Client:
    settings = request.settings.explain
    if settings.base_url is not None:
        return explainer.client(request.settings)
    return _Planned(str(settings.model), judges_singly=True)


def _sources(request: Request) -> dict[HookPoint, SaeSource]:
    """The coders of hook points of which there are activations."""
    collected = {record.hook for record in activation_records(request, stage=NAME)}
    found = sae_sources(request, stage=NAME)
    sources = {hook: source for hook, source in found.items() if str(hook) in collected}
    if not sources:
        raise InputError(
            f"{NAME} read coders at {' '.join(map(str, found))} and activations at {' '.join(sorted(collected))}",
            hint=f"collect activations for the coders: {collecting(request, found)}",
        )
    return sources


def _fingerprint(request: Request, sources: Mapping[HookPoint, SaeSource], features: Features) -> Fingerprint:
    digests = {record.hook: record.digest for record in request.records.of(ActivationsRecord)}
    inputs = {f"SAE at {hook}": sources[hook].digest for hook in features}
    inputs |= {f"activations at {hook}": digests[str(hook)] for hook in features}
    inputs |= {f"features at {hook}": runs.digest(list(indices)) for hook, indices in features.items()}
    without = [f"explain.{name}" for name in (*_NO_MATTER, *_OTHERS, "features")]
    return fingerprint(request, ("explain.", "seed"), inputs, without=without)


def _work(request: Request, sources: Mapping[HookPoint, SaeSource], features: Features) -> list[Record]:
    subjects = _subjects(request, sources, features)
    client = explainer.client(request.settings)
    with AnswerCache(cache_path(request)) as cache:
        _check_price(request, subjects, cache, client)
        said = _explained(request, subjects, cache, client)
        asked = _questions(request, subjects, said, client)
        answers = cache.answers([question.ask for question in asked], client)
    scored = scoring.score(asked, answers)
    how = _how(request, client)
    rules = {one.id: scoring.by_rule(one, how) for one in subjects}
    model = explainer.name_of(request.settings.explain)
    labels = [
        label_with_scores(one, said[one.id], scored.get(one.id), rules[one.id], model=model)
        for one in subjects
        if one.id in said
    ]
    _tell(client, len(subjects), len(labels))
    good = [label for label in labels if (label.label_score or 0.0) >= request.settings.explain.least_score]
    if len(good) < len(labels):
        logger.warning("%d of %d labels score less than explain.least_score", len(labels) - len(good), len(labels))
    made = keep_labels(request, MODEL, good, model=model, locked=True)
    return [*made, *score_records(scored, rules, how, judge=model)]


def _subjects(request: Request, sources: Mapping[HookPoint, SaeSource], features: Features) -> list[Subject]:
    """The features with their examples, from a pass over the cache for each hook point. A feature that is never active
    is left out, which is said; raises InputError where all are."""
    from circuitcli.models.loading import load_model, load_tokenizer

    settings = request.settings
    strings = load_tokenizer(settings.model).token_strings
    loaded = load_saes(
        sources,
        features,
        model=settings.model.name,
        adapter=None,
        load_adapter=lambda: load_model(settings.model).adapter,
    )
    reads = sorted({hook for found in loaded.values() for hook in found.sae.reads})
    cache = open_cache(request, reads, purpose=NAME)
    made: list[Subject] = []
    for hook, indices in features.items():
        made += _at_hook(request, loaded[hook].sae, indices, sources[hook].digest, cache, strings)
    silent = [one.id for one in made if not one.shown]
    if silent:
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        told = f"{', '.join(silent[:5])}{more}, which are never active in the tokens that were looked at"
        if len(silent) == len(made):
            raise InputError(f"nothing can be said of {told}", hint="choose others with --features, or collect more")
        logger.warning("left out %s", told)
    return [one for one in made if one.shown]


def _at_hook(
    request: Request, coder: "SparseCoder", indices: Sequence[int], sae: str, cache: Any, strings: Any
) -> list[Subject]:
    from circuitcli.explaining import gathering
    from circuitcli.models.loading import choose_device

    explain = request.settings.explain
    beyond = [index for index in indices if index >= coder.d_sae]
    if beyond:
        raise InputError(f"there is no feature {coder.hook}/{beyond[0]}", hint=f"features are 0 to {coder.d_sae - 1}")
    coder = coder.to(choose_device(request.settings.model.device))
    near = gathering.neighbours(coder, indices)
    looked_at = {*indices, *(other for others in near.values() for other in others)}
    text = gathering.read_text(cache, coder, looked_at, strings, n_tokens=explain.tokens)
    known = _details(request, [f"{coder.hook}/{index}" for index in indices])
    wanted = gathering.Wanted(explain.shown, explain.scored, explain.window, request.settings.seed)
    made = []
    for index in indices:
        name = f"{coder.hook}/{index}"
        promoted = [token for token, _ in known[name].promoted] if name in known else []
        made.append(
            gathering.subject(text, index, name=name, sae=sae, near=near[index], promoted=promoted, wanted=wanted)
        )
    return made


def _details(request: Request, names: Sequence[str]) -> dict[str, Details]:
    """What is known of these features; nothing where none are described."""
    hooks = {name.partition("/")[0] for name in names}
    paths = [request.run.path / record.path for record in request.records.of(FeaturesRecord) if record.hook in hooks]
    found = (pair for path in paths if path.is_file() for pair in wanted_lines(path, names))
    return {details.id: details for _, details in found}


def _how(request: Request, client: Client) -> scoring.How:
    explain = request.settings.explain
    return scoring.How(
        scores=explain.score,
        singly=client.judges_singly,
        per_prompt=explain.per_prompt,
        max_tokens=explain.max_tokens,
        temperature=explain.temperature,
        seed=request.settings.seed,
    )


def _explanation(request: Request, subject: Subject) -> Ask:
    explain = request.settings.explain
    return prompts.explanation(
        subject.shown, subject.promoted, max_tokens=explain.max_tokens, temperature=explain.temperature
    )


def _explained(request: Request, subjects: Sequence[Subject], cache: AnswerCache, client: Client) -> dict[str, str]:
    """The labels that the model gives, by feature; of an answer without one nothing."""
    answers = cache.answers([_explanation(request, subject) for subject in subjects], client)
    labels = {subject.id: label_of(answers[number].text) for number, subject in enumerate(subjects)}
    return {name: label for name, label in labels.items() if label is not None}


def _questions(
    request: Request, subjects: Sequence[Subject], said: Mapping[str, str], client: Client
) -> list[scoring.Question]:
    """All that is asked to score the labels, each feature's own and, if the settings say so, another one's."""
    how = _how(request, client)
    labelled = [subject for subject in subjects if subject.id in said]
    asked: list[scoring.Question] = []
    for number, subject in enumerate(labelled):
        asked += scoring.questions(subject, said[subject.id], scoring.OWN, how)
        other = labelled[(number + max(1, len(labelled) // 2)) % len(labelled)]
        if request.settings.explain.random_label and other.id != subject.id:
            asked += scoring.questions(subject, said[other.id], scoring.OTHER, how)
    return asked


def _estimate(request: Request, subjects: Sequence[Subject], cache: AnswerCache, client: Client) -> Estimate:
    """Of what is still to be asked; labels that are not known yet are taken to differ, and to be of usual length."""
    first = [_explanation(request, subject) for subject in subjects]
    known = cache.known(first, client.name)
    said = {
        subject.id: (label_of(known[number].text) if number in known else None) or f"{number:080}"
        for number, subject in enumerate(subjects)
        if number not in known or label_of(known[number].text)
    }
    asks = [*first, *(question.ask for question in _questions(request, subjects, said, client))]
    there = cache.known(asks, client.name)
    distinct = {ask.key(client.name): ask for number, ask in enumerate(asks) if number not in there}
    return Estimate.of(distinct.values(), n_known=len(there))


def _check_price(request: Request, subjects: Sequence[Subject], cache: AnswerCache, client: Client) -> None:
    """Tell what is to come, and refuse what would cost too much. Raises SettingsError."""
    estimate = _estimate(request, subjects, cache, client)
    budget = getattr(client, "budget", None)
    cost = ""
    if isinstance(budget, Budget):
        budget.check(estimate)
        cost = f", for about ${estimate.usd(budget.prices):.4g} of at most ${budget.max_usd:g}"
    logger.info("%d questions, of which %d are answered%s", estimate.n_asks + estimate.n_known, estimate.n_known, cost)


def _tell(client: Client, n_subjects: int, n_labels: int) -> None:
    if n_labels < n_subjects:
        logger.warning(
            "%d of %d answers hold no label; these features keep the rules' own", n_subjects - n_labels, n_subjects
        )
    budget = getattr(client, "budget", None)
    if isinstance(budget, Budget) and budget.tokens_in:
        told = f"{budget.tokens_in:,} tokens of questions and {budget.tokens_out:,} of answers, ${budget.spent:.4g}"
        logger.info("%s", told)
