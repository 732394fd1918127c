"""Activations straight from a model that reads some text, kept in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.hub import hub_answers
from circuitcli.settings.data import BUILTIN_TEXT, default_text
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from circuitcli.evaluation.fit import Sample
    from circuitcli.models.loading import LanguageModel


def read_rows(
    request: Request, model: "LanguageModel", hooks: Sequence[HookPoint], *, n_tokens: int
) -> "tuple[str, Sample]":
    """The text's name, and the rows of its first tokens, in float32 on the CPU.

    Those of neighbouring hook points come along, so that a misplaced SAE can be told. The text is ``data.text``, by
    default that of `circuit collect`, or the standard library where the hub is out of reach. Raises InputError if it
    has no token.
    """
    import torch

    from circuitcli.activations.source import TextSource
    from circuitcli.evaluation.fit import Sample
    from circuitcli.models.taps import read

    data = request.settings.data
    text = TextSource.named(model, data.model_copy(update={"text": data.text or _default(model.name)}))
    chosen = [*hooks, *(hook for hook in _neighbours(hooks[0], model) if hook not in hooks)]
    rows: dict[HookPoint, list[Tensor]] = {hook: [] for hook in chosen}
    lengths: list[int] = []
    for block in text.blocks():
        ids = torch.tensor([block.ids], device=model.adapter.device)
        with torch.no_grad():
            found = read(model.adapter, ids, None, chosen)
        positions = list(block.positions)[: n_tokens - sum(lengths)]
        lengths.append(len(positions))
        for hook, activation in found.items():
            rows[hook].append(activation[0, positions].float().cpu())
        if sum(lengths) == n_tokens:
            break
    if not lengths:
        raise InputError(f"{text.data.text} has no usable text", hint="--text takes a file, a folder or hf:NAME")
    return str(text.data.text), Sample({hook: torch.cat(parts) for hook, parts in rows.items()}, lengths)


def _default(model: str) -> str:
    default = default_text(model)
    return default if default == BUILTIN_TEXT or hub_answers() else BUILTIN_TEXT


def _neighbours(hook: HookPoint, model: "LanguageModel") -> list[HookPoint]:
    """The streams around the block of a hook point, and what its parts add, as far as the model offers them."""
    layer = hook.layer
    found = [*(HookPoint(layer, site) for site in ("resid_pre", "attn", "mlp", "resid")), HookPoint(layer + 1, "resid")]
    return [other for other in found if model.adapter.offers(other)]
