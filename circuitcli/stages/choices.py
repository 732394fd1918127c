"""``circuit validate --choices``: multiple-choice questions, with features ablated or amplified and without."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.manifest import digest
from circuitcli.records import ChoicesRecord, Record
from circuitcli.runs import Fingerprint, atomic
from circuitcli.settings.model import PLACEMENT
from circuitcli.stages.naming import Reported, report_name
from circuitcli.stages.request import Request, fingerprint, resumable
from circuitcli.stages.saes import SaeSource, load_saes
from circuitcli.stages.steering import scaled
from circuitcli.validation.questions import Question, read_questions

if TYPE_CHECKING:
    from circuitcli.models.loading import LanguageModel
    from circuitcli.validation.choices import Answers, Asked
    from circuitcli.validation.steering import Steering

NAME = "choices"
_READ = (
    *("validate.choices_by", "validate.shots", "validate.scale", "validate.bootstrap"),
    *("model.", "seed", "sae_path"),
)


def run(request: Request) -> list[Record]:
    """How many questions are answered rightly, as the model is and with features scaled, measured now or before.

    Raises InputError for a file of another kind, and for features that are not there or active nowhere.
    """
    wanted = _Wanted.of(request)
    return resumable(request, wanted.entry, wanted.fingerprint, lambda resumes: _work(wanted), keeps=True)


@dataclass(frozen=True)
class _Wanted(Reported):
    """Questions, and the factors of features by the hook points of SAEs."""

    questions: tuple[Question, ...]
    factors: dict[HookPoint, dict[int, float]]
    sources: dict[HookPoint, SaeSource]

    @classmethod
    def of(cls, request: Request) -> "_Wanted":
        chosen = request.settings.validation
        assert chosen.choices is not None
        factors, sources = scaled(request) if chosen.scale else ({}, {})
        made = cls(request, NAME, read_questions(chosen.choices), factors, sources)
        name = report_name(request, asked=chosen.name, default=NAME, fingerprint=made.fingerprint)
        return replace(made, name=name)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Over the settings that are read, the questions, and the SAEs."""
        inputs = {f"SAE at {hook}": source.digest for hook, source in self.sources.items()}
        inputs["questions"] = digest([asdict(question) for question in self.questions])
        return fingerprint(self.request, _READ, inputs, without=PLACEMENT)


def _work(wanted: _Wanted) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.models.loading import load_model
    from circuitcli.validation.choices import answers, ask, check_lengths

    settings = wanted.request.settings
    chosen, size = settings.validation, settings.graph.batch_size
    model = load_model(settings.model)
    by, shots = chosen.choices_by, chosen.shots
    asked = ask(wanted.questions, model.tokenizer, by=by, shots=shots, seed=settings.seed)
    steering = _steering(wanted, model, first=model.tokenizer.n_bos(asked[0].ids[0]))
    check_lengths(asked, steering)
    clean = answers(asked, steering, clean=True, batch_size=size)
    after = answers(asked, steering, clean=False, batch_size=size) if wanted.factors else None
    if after is not None and bool((after.scores == clean.scores).all()):
        names = list(_names(wanted))
        raise InputError(
            f"nothing is scaled: {' '.join(names)} {'are' if len(names) > 1 else 'is'} active nowhere in the questions",
            hint="scale other features, or give questions in which they are active",
        )
    record = _record(wanted, clean, after)
    told = [_told(one, clean, after, number) for number, one in enumerate(asked)]
    with atomic(wanted.report) as stream:
        json.dump({**record.model_dump(exclude_none=True), "questions": told}, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    return [record], {}


def _steering(wanted: _Wanted, model: "LanguageModel", *, first: int) -> "Steering":
    from circuitcli.attribution.subject import fitted
    from circuitcli.saes.coders import Coders
    from circuitcli.validation.steering import Steering, check_factors

    name = wanted.request.settings.model.name
    loaded = load_saes(wanted.sources, wanted.sources, model=name, adapter=model.adapter) if wanted.sources else {}
    coders = Coders.of(fitted(one.sae, model.adapter) for one in loaded.values())
    return Steering(model.adapter, coders, check_factors(coders, wanted.factors), first=first)


def _names(wanted: _Wanted) -> dict[str, float]:
    return {NodeId(h, index).feature: factor for h, f in wanted.factors.items() for index, factor in f.items()}


def _record(wanted: _Wanted, clean: "Answers", after: "Answers | None") -> ChoicesRecord:
    from circuitcli.validation.scores import bounded

    settings = wanted.request.settings
    draws = {"bootstrap": settings.validation.bootstrap, "seed": settings.seed}
    own = bounded(clean.is_right, **draws)
    record = ChoicesRecord(
        name=wanted.name,
        n_questions=len(wanted.questions),
        by=settings.validation.choices_by,
        shots=min(settings.validation.shots, len(wanted.questions) - 1),
        chance=sum(1 / len(one.choices) for one in wanted.questions) / len(wanted.questions),
        accuracy=own.value,
        accuracy_low=own.low,
        accuracy_high=own.high,
        probability=float(clean.probability.mean()),
        path=f"reports/{wanted.name}.json",
    )
    if after is None:
        return record
    other = bounded(after.is_right, **draws)
    difference = bounded(after.is_right - clean.is_right, **draws)
    changes = {
        "factors": _names(wanted),
        "accuracy_scaled": other.value,
        "accuracy_scaled_low": other.low,
        "accuracy_scaled_high": other.high,
        "probability_scaled": float(after.probability.mean()),
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "n_gained": int((after.is_right > clean.is_right).sum()),
        "n_lost": int((after.is_right < clean.is_right).sum()),
    }
    return record.model_copy(update=changes)


def _told(asked: "Asked", clean: "Answers", after: "Answers | None", number: int) -> dict[str, Any]:
    """A question with its choices in the order in which they were given, and what was chosen."""
    question = asked.question
    told = {
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "chosen": int(clean.chosen[number]),
        "probability": float(clean.probability[number]),
    }
    if after is None:
        return told
    return {**told, "chosen_scaled": int(after.chosen[number]), "probability_scaled": float(after.probability[number])}
