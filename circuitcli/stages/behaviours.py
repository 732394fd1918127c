"""What a graph explains where no prompt is given: predictions of the run's own text, chosen once and kept there."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.examples import Example
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.progress import note
from circuitcli.reading import read_object
from circuitcli.records import ActivationsRecord, Stream
from circuitcli.runs import atomic, digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request
from circuitcli.training.plan import n_held_out

if TYPE_CHECKING:
    from circuitcli.attribution.predictions import Prediction
    from circuitcli.models.loading import LanguageModel

logger = logging.getLogger(__name__)

FOLDER = "behaviours"
# Of the held-out text so many tokens at most are read, the last ones, each piece of 64 by a pass of its own.
READ_TOKENS = 4096
# And so many for each prediction that is wanted, to have several to choose from.
READ_TOKENS_EACH = 256
# Predictions that are named to people, and how many tokens of their contexts.
_SHOWN, _SHOWN_TOKENS = 3, 16


def own_examples(settings: Settings, records: Stream, run: Path, model: "LanguageModel") -> tuple[Example, ...]:
    """Predictions of the text of a run as prompts. Raises SettingsError and InputError as `own_predictions` does."""
    found = own_predictions(OwnText.of(settings, records, run), model)
    return tuple(replace(each.example(model.tokenizer), foil=settings.graph.foil) for each in found)


@dataclass(frozen=True)
class OwnText:
    """The held-out text of a run, the model's settings that matter for it, and how many predictions are wanted."""

    run: Path
    n_rows: int
    n_held_out: int
    n: int
    facts: tuple[Any, ...]
    digests: dict[str, str]
    groups: "Groups | None" = None

    @classmethod
    def of(cls, settings: Settings, records: Stream, run: Path) -> "OwnText":
        """That of a run. Raises SettingsError if no text was collected."""
        collected = records.of(ActivationsRecord)
        if not collected:
            raise SettingsError("no prompt is given, and the run has no collected text", hint="add --prompt TEXT")
        n_rows = min(record.n_tokens for record in collected)
        model = settings.model
        return cls(
            run=run,
            n_rows=n_rows,
            n_held_out=n_held_out(settings, n_rows=n_rows),
            n=settings.graph.sequences,
            facts=(model.name, model.dtype, model.bos),
            digests={f"activations at {record.hook}": record.digest for record in collected},
            groups=Groups.of(settings, [record.hook for record in collected]),
        )

    @property
    def rows(self) -> range:
        """The last rows of the text, as many as training holds out but not more than are read."""
        n_read = min(max(READ_TOKENS, READ_TOKENS_EACH * self.n), self.n_held_out)
        return range(self.n_rows - n_read, self.n_rows)

    @property
    def inputs(self) -> dict[str, str]:
        """What the choice depends on beside the model, by name."""
        return {**self.digests, "held-out tokens": str(len(self.rows))}

    def path(self, revision: str | None) -> Path:
        """Where the choice is kept."""
        facts = [*self.facts, revision, self.n, self.inputs]
        if self.groups is not None:
            facts += [str(self.groups.hook), self.groups.n, self.groups.seed]
        return self.run / FOLDER / f"{digest(facts).rpartition(':')[2][:16]}.json"


def own_predictions(text: OwnText, model: "LanguageModel") -> "tuple[Prediction, ...]":
    """The predictions to explain, the best first: those chosen before from the same text, or searched for now.

    People are told which they are. Raises InputError if the held-out text has none.
    """
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.attribution.predictions import best_predictions

    path = text.path(model.revision)
    if (kept := _read(path)) is not None:
        return _said(*kept, text, model)
    cache, rows = ActivationCache(text.run / "activations", ()), text.rows
    found = best_predictions(cache, model, rows, text.n)
    while not found and rows.start > 0:
        # Blocks may be longer than what is held out of little text.
        rows = range(max(0, rows.stop - 2 * len(rows)), rows.stop)
        found = best_predictions(cache, model, rows, text.n)
    if not found:
        raise InputError("the collected text has no two tokens in a row", hint="add --prompt TEXT")
    groups = None if text.groups is None else text.groups.made(found, model)
    with atomic(path) as stream:
        content = {"rows": [rows.start, rows.stop], "predictions": [asdict(each) for each in found], "groups": groups}
        json.dump(content, stream)
    return _said(found, groups, text, model)


def _read(path: Path) -> "tuple[tuple[Prediction, ...], list[int] | None] | None":
    """A choice that was kept, with the groups; None for none, or for one that cannot be read and so is made again."""
    from circuitcli.attribution.predictions import Prediction

    try:
        content: dict[str, Any] = read_object(path)
        groups = content.get("groups")
        found = tuple(
            Prediction(tuple(map(int, each["ids"])), int(each["target"]), float(each["log_prob"]), float(each["gain"]))
            for each in content["predictions"]
        )
        return found, None if groups is None else [int(groups[number]) for number in range(len(found))]
    except (InputError, KeyError, IndexError, TypeError, ValueError):
        return None


def _said(
    found: "Sequence[Prediction]", groups: Sequence[int] | None, text: OwnText, model: "LanguageModel"
) -> "tuple[Prediction, ...]":
    """The predictions, of one group if they are in groups, after people were told of them."""
    n_found = len(found)
    if groups is not None:
        assert text.groups is not None
        found = text.groups.chosen(found, groups, model)
    shown = [_shown(each, model) for each in found[:_SHOWN]]
    if n_found < text.n:
        logger.warning(
            "the held-out text has %d pieces to predict in, not %d; `circuit collect --tokens` collects more",
            *(n_found, text.n),
        )
    if len(found) == 1:
        note(
            f"no prompt is given, so this is about {shown[0]}; in the held-out text the model predicts this best "
            f"beyond its frequency, by {found[0].gain:.2f} nats"
        )
    else:
        more = f", and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        note(
            f"no prompt is given, so this is about the {len(found)} predictions of the held-out text that the model "
            f"makes best beyond their frequency, by {found[0].gain:.2f} to {found[-1].gain:.2f} nats: "
            f"{'; '.join(shown)}{more}"
        )
    return tuple(found)


@dataclass(frozen=True)
class Groups:
    """Into how many groups predictions are put, by the activations at which hook point, and which one is explained."""

    hook: HookPoint
    n: int
    chosen_group: int
    seed: int

    @classmethod
    def of(cls, settings: Settings, hooks: Sequence[str]) -> "Groups | None":
        """As asked for; None if not. Raises SettingsError for a group that cannot be there."""
        asked = settings.graph
        if asked.clusters is None:
            if asked.cluster:
                raise SettingsError("--cluster names a group, but there are none", hint="add --clusters N")
            return None
        if asked.cluster >= asked.clusters:
            raise SettingsError(
                f"--cluster {asked.cluster} is not one of {asked.clusters} groups", hint="groups count from 0"
            )
        if asked.clusters > asked.sequences:
            raise SettingsError(
                f"{asked.sequences} predictions cannot be put into {asked.clusters} groups",
                hint=f"add --sequences {10 * asked.clusters}",
            )
        return cls(max(map(HookPoint.parse, hooks)), asked.clusters, asked.cluster, settings.seed)

    def made(self, found: "Sequence[Prediction]", model: "LanguageModel") -> list[int]:
        """The group of each prediction."""
        from circuitcli.attribution.clusters import clustered, vectors_of

        return clustered(vectors_of(found, model, self.hook), self.n, seed=self.seed).tolist()

    def chosen(
        self, found: "Sequence[Prediction]", groups: Sequence[int], model: "LanguageModel"
    ) -> "tuple[Prediction, ...]":
        """The predictions of the group that is explained, after people were told of all groups. Raises InputError if
        there is no such group."""
        n_groups = max(groups) + 1
        for number in range(n_groups):
            own = [one for one, group in zip(found, groups, strict=True) if group == number]
            targets = Counter(model.tokenizer.token_strings([one.target])[0] for one in own)
            commonest = ", ".join(f"{token!r} {count}" for token, count in targets.most_common(_SHOWN))
            note(f"group {number}: {len(own)} predictions, {commonest}; such as {_shown(own[0], model)}")
        if self.chosen_group >= n_groups:
            raise InputError(f"there are {n_groups} groups only", hint=f"--cluster counts to {n_groups - 1}")
        return tuple(one for one, group in zip(found, groups, strict=True) if group == self.chosen_group)


def _shown(found: "Prediction", model: "LanguageModel") -> str:
    token = model.tokenizer.token_strings([found.target])[0]
    text = model.tokenizer.decode(model.tokenizer.own_part(found.ids)[-_SHOWN_TOKENS:])
    return f"{token!r} after {'...' * (len(found.ids) > _SHOWN_TOKENS + 1)}{text!r}"


def check_text(request: Request, *, stage: str) -> None:
    """Raise SettingsError if there is no prompt, and either no text of the run or a setting that only a prompt has."""
    settings = request.settings.graph
    if settings.prompt is not None or settings.prompt_ids is not None or settings.prompts is not None:
        if settings.clusters is not None:
            raise SettingsError(
                "--clusters groups predictions of the run's own text, but a prompt is given",
                hint="leave one of them out",
            )
        return
    hint = f'add --prompt, for example circuit {stage} --prompt "The capital of"'
    if not request.records.of(ActivationsRecord):
        raise SettingsError(f"{stage} has no prompt, and the run has no collected text to take one from", hint=hint)
    if (named := of_prompts(settings)) is not None:
        raise SettingsError(f"{named} needs a prompt, but {stage} has none", hint=hint)


def of_prompts(settings: GraphSettings) -> str | None:
    """The option that makes sense with a prompt only; None if there is none. A foil has one without a prompt too."""
    given = {
        "--target": settings.target,
        "--counterfactual": settings.counterfactual,
        "graph.counterfactual_ids": settings.counterfactual_ids,
        "--chat": settings.chat or None,
    }
    return next((name for name, value in given.items() if value is not None), None)


def text_digests(request: Request) -> dict[str, str]:
    """What the choice depends on beside the model, by name."""
    return OwnText.of(request.settings, request.records, request.run.path).inputs
