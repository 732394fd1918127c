"""What a graph explains where no prompt is given: predictions of the run's own text, chosen once and kept there."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.attribution.examples import Example
from circuitcli.errors import InputError, SettingsError
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
        return self.run / FOLDER / f"{digest(facts).rpartition(':')[2][:16]}.json"


def own_predictions(text: OwnText, model: "LanguageModel") -> "tuple[Prediction, ...]":
    """The predictions to explain, the best first: those chosen before from the same text, or searched for now.

    People are told which they are. Raises InputError if the held-out text has none.
    """
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.attribution.predictions import best_predictions

    path = text.path(model.revision)
    if (kept := _read(path)) is not None:
        return _said(kept, text, model)
    cache, rows = ActivationCache(text.run / "activations", ()), text.rows
    found = best_predictions(cache, model, rows, text.n)
    while not found and rows.start > 0:
        # Blocks may be longer than what is held out of little text.
        rows = range(max(0, rows.stop - 2 * len(rows)), rows.stop)
        found = best_predictions(cache, model, rows, text.n)
    if not found:
        raise InputError("the collected text has no two tokens in a row", hint="add --prompt TEXT")
    with atomic(path) as stream:
        json.dump({"rows": [rows.start, rows.stop], "predictions": [asdict(each) for each in found]}, stream)
    return _said(found, text, model)


def _read(path: Path) -> "tuple[Prediction, ...] | None":
    """A choice that was kept; None for none, or for one that cannot be read and so is made again."""
    from circuitcli.attribution.predictions import Prediction

    try:
        content: dict[str, Any] = read_object(path)
        return tuple(
            Prediction(tuple(map(int, each["ids"])), int(each["target"]), float(each["log_prob"]), float(each["gain"]))
            for each in content["predictions"]
        )
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _said(found: "Sequence[Prediction]", text: OwnText, model: "LanguageModel") -> "tuple[Prediction, ...]":
    """The predictions, after people were told of them."""
    shown = [_shown(each, model) for each in found[:_SHOWN]]
    if len(found) < text.n:
        logger.warning(
            "the held-out text has %d pieces to predict in, not %d; `circuit collect --tokens` collects more",
            *(len(found), text.n),
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


def _shown(found: "Prediction", model: "LanguageModel") -> str:
    token = model.tokenizer.token_strings([found.target])[0]
    text = model.tokenizer.decode(model.tokenizer.own_part(found.ids)[-_SHOWN_TOKENS:])
    return f"{token!r} after {'...' * (len(found.ids) > _SHOWN_TOKENS + 1)}{text!r}"


def check_text(request: Request, *, stage: str) -> None:
    """Raise SettingsError if there is no prompt, and either no text of the run or a setting that only a prompt has."""
    settings = request.settings.graph
    if settings.prompt is not None or settings.prompt_ids is not None or settings.prompts is not None:
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
