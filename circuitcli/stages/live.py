"""Activations straight from a model that reads some text, kept in memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.hub import hub_answers
from circuitcli.stages.collect import DEFAULT_TEXT
from circuitcli.stages.request import Request
from circuitcli.stages.storing import with_block_length
from circuitcli.text.files import BUILTIN

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

    from circuitcli.evaluation.fit import Sample
    from circuitcli.models.taps import read
    from circuitcli.text.blocks import token_blocks
    from circuitcli.text.documents import documents

    request = with_block_length(request, model.adapter)
    data = request.settings.data
    length = data.block_length
    assert length is not None
    source = data.text or _default(model.name)
    vocabulary = model.tokenizer.vocabulary(n_ids=model.adapter.n_token_ids)
    chosen = [*hooks, *(hook for hook in _neighbours(hooks[0], model) if hook not in hooks)]
    rows: dict[HookPoint, list[Tensor]] = {hook: [] for hook in chosen}
    blocks = token_blocks(
        lambda start: documents(source, field=data.field, vocabulary=vocabulary, chat=data.chat, start=start),
        model.tokenizer,
        block_length=length,
    )
    lengths: list[int] = []
    for block in blocks:
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
        raise InputError(f"{source} has no usable text", hint="--text takes a file, a folder or hf:NAME")
    return source, Sample({hook: torch.cat(parts) for hook, parts in rows.items()}, lengths)


def _default(model: str) -> str:
    return BUILTIN if model.startswith("builtin:") or not hub_answers() else DEFAULT_TEXT


def _neighbours(hook: HookPoint, model: "LanguageModel") -> list[HookPoint]:
    """The streams around the block of a hook point, and what its parts add, as far as the model offers them."""
    layer = hook.layer
    found = [*(HookPoint(layer, site) for site in ("resid_pre", "attn", "mlp", "resid")), HookPoint(layer + 1, "resid")]
    return [other for other in found if model.adapter.offers(other)]
