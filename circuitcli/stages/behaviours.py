"""What a graph explains where no prompt is given: a prediction of the run's own text, chosen once and kept there."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError, SettingsError
from circuitcli.progress import note
from circuitcli.reading import read_object
from circuitcli.records import ActivationsRecord
from circuitcli.runs import atomic, digest
from circuitcli.settings.graph import GraphSettings
from circuitcli.stages.inputs import activation_digests
from circuitcli.stages.request import Request
from circuitcli.training.plan import n_held_out

if TYPE_CHECKING:
    from circuitcli.attribution.behaviours import Behaviour
    from circuitcli.models.loading import LanguageModel

FOLDER = "behaviours"
# Of the held-out text so many tokens at most are read, the last ones, each piece of 64 by a pass of its own.
READ_TOKENS = 4096


def check_text(request: Request, *, stage: str) -> None:
    """Raise SettingsError if there is no prompt, and either no text of the run or a setting that only a prompt has."""
    settings = request.settings.graph
    if settings.prompt is not None or settings.prompt_ids is not None:
        return
    hint = f'add --prompt, for example circuit {stage} --prompt "The capital of"'
    if not request.records.of(ActivationsRecord):
        raise SettingsError(f"{stage} has no prompt, and the run has no collected text to take one from", hint=hint)
    if (named := of_prompts(settings)) is not None:
        raise SettingsError(f"{named} belongs to a prompt, and {stage} has none", hint=hint)


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
    return {**activation_digests(request), "held-out tokens": str(len(_rows(request)))}


def behaviour(request: Request, model: "LanguageModel") -> "Behaviour":
    """The prediction to explain: that which was chosen before from the same text, or the best one, searched for now.

    Raises InputError if the held-out text has none.
    """
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.attribution.behaviours import best_prediction

    path = request.run.path / FOLDER / f"{_key(request, model)}.json"
    if (kept := _read(path)) is not None:
        return _said(kept, model)
    cache, rows = ActivationCache(request.run.path / "activations", ()), _rows(request)
    found = best_prediction(cache, model, rows)
    while found is None and rows.start > 0:
        # Blocks may be longer than what is held out of little text.
        rows = range(max(0, rows.stop - 2 * len(rows)), rows.stop)
        found = best_prediction(cache, model, rows)
    if found is None:
        raise InputError("the collected text has no two tokens in a row", hint="add --prompt TEXT")
    with atomic(path) as stream:
        json.dump({**vars(found), "rows": [rows.start, rows.stop]}, stream)
    return _said(found, model)


def _rows(request: Request) -> range:
    """The last rows of the text, as many as training holds out but not more than are read."""
    n_rows = min(record.n_tokens for record in request.records.of(ActivationsRecord))
    return range(n_rows - min(READ_TOKENS, n_held_out(request.settings, n_rows=n_rows)), n_rows)


def _key(request: Request, model: "LanguageModel") -> str:
    settings = request.settings.model
    facts = [settings.name, model.revision, settings.dtype, settings.bos, text_digests(request)]
    return digest(facts).rpartition(":")[2][:16]


def _read(path: Path) -> "Behaviour | None":
    """A choice that was kept; None for none, or for one that cannot be read and so is made again."""
    from circuitcli.attribution.behaviours import Behaviour

    try:
        content: dict[str, Any] = read_object(path)
        return Behaviour(
            tuple(map(int, content["ids"])), int(content["target"]), float(content["log_prob"]), float(content["gain"])
        )
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _said(found: "Behaviour", model: "LanguageModel") -> "Behaviour":
    tokens = model.tokenizer.token_strings([found.target])
    text = model.tokenizer.decode(model.tokenizer.own_part(found.ids)[-16:])
    note(
        f"no prompt is given, so this is about {tokens[0]!r} after {'...' * (len(found.ids) > 17)}{text!r}; in the "
        f"held-out text the model predicts this best beyond its frequency, by {found.gain:.2f} nats"
    )
    return found
