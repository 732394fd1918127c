"""A text as the features that are active in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.api.arguments import ByHook
from circuitcli.api.coders import SomeCoders, by_hook, check_fits, read_by
from circuitcli.api.models import as_model, as_prompt
from circuitcli.attribution.prompts import encode_prompt
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.crosscoder import Crosscoder


@dataclass(frozen=True)
class Active:
    """A feature at a token where it is active."""

    id: str
    token: str
    activation: float


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text as a model reads it, and what coders make of it.

    tokens, ids: with BOS in front where the model gets one. codes: by the hook point that a coder reads, (position,
    d_sae), so that ``codes["resid.9"][4, 331]`` is the activation of ``resid.9/331@4``. errors: by the hook point that
    is written, (position, d_model): what coders leave unexplained. Positions before ``first`` carry nothing; their rows
    are zero.
    """

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    first: int
    codes: ByHook[Float[Tensor, "position d_sae"]]
    errors: ByHook[Float[Tensor, "position d_model"]]

    def strongest(self, n: int = 10) -> tuple[Active, ...]:
        """The n largest activations, of all features at all tokens."""
        found = [
            Active(str(NodeId(hook, feature, position)), self.tokens[position], float(codes[position, feature]))
            for hook, codes in self.codes.items()
            for position, feature in _largest(codes, n)
        ]
        return tuple(sorted(found, key=lambda one: -abs(one.activation))[:n])

    def __repr__(self) -> str:
        n_active = sum(int((codes != 0).sum()) for codes in self.codes.values())
        hooks = " ".join(map(str, self.codes))
        return f"Encoded({self.text!r}: {len(self.tokens)} tokens, {n_active} activations at {hooks})"


def _largest(codes: Float[Tensor, "position d_sae"], n: int) -> list[tuple[int, int]]:
    """Places of the n entries furthest from zero, without those that are zero."""
    sizes = codes.abs().flatten()
    best = sizes.topk(min(max(0, n), len(sizes)))
    return [divmod(int(at), codes.shape[1]) for at, size in zip(best.indices, best.values, strict=True) if size > 0]


def encode(model: LanguageModel, coders: SomeCoders, text: str | Sequence[int]) -> Encoded:
    """Codes and errors of one text, given as text or as token ids.

        encoded = circuit.encode(model, coders, "for i in range(")
        encoded.tokens                          # ('<|endoftext|>', 'for', ' i', ...)
        encoded.codes["resid.1"]                # (position, d_sae)
        encoded.strongest(5)                    # (Active(id='resid.1/17@3', token=' in', activation=4.1), ...)

    Tensors are on the CPU. Raises InputError for an empty or too long text, and for coders of another width.
    """
    model, written = as_model(model), as_prompt(text, name="text")
    found = by_hook(coders)
    for coder in found.values():
        check_fits(coder, model)
    prompt = encode_prompt(written, model.tokenizer, model.adapter)
    ids = torch.as_tensor(prompt.ids, device=model.adapter.device).reshape(1, -1)
    with torch.no_grad():
        hooks = {hook for coder in found.values() for hook in read_by(coder)}
        seen = read(model.adapter, ids, None, sorted(hooks))
        x = {hook: activation[:, prompt.first :] for hook, activation in seen.items()}
        codes = {hook: coder.encode(_read(coder, x)) for hook, coder in found.items()}
        errors = _errors(found, x, codes)
    return Encoded(
        text=prompt.text,
        tokens=tuple(prompt.tokens),
        ids=tuple(ids[0].tolist()),
        first=prompt.first,
        codes=ByHook({hook: _behind(code, prompt.first) for hook, code in codes.items()}),
        errors=ByHook({hook: _behind(error, prompt.first) for hook, error in errors.items()}),
    )


def _read(coder: SparseCoder, x: dict[HookPoint, Tensor]) -> Tensor:
    """What a coder encodes: a crosscoder several hook points side by side."""
    return _as(coder, coder.joined(x) if isinstance(coder, Crosscoder) else x[coder.hook])


def _as(coder: SparseCoder, x: Tensor) -> Tensor:
    return x.to(coder.W_enc)


def _errors(
    coders: dict[HookPoint, SparseCoder], x: dict[HookPoint, Tensor], codes: dict[HookPoint, Tensor]
) -> dict[HookPoint, Tensor]:
    """What is written less what all coders that write there make of it, by codes and skips."""
    errors: dict[HookPoint, Tensor] = {}
    for hook, coder in coders.items():
        reads = _read(coder, x)
        if isinstance(coder, Crosscoder):
            decoded = coder.parts(coder.decode(codes[hook], coder.written_frame(reads)))
            errors |= {place: _as(coder, x[place]) - part for place, part in decoded.items()}
            continue
        for written in coder.writes:
            error = errors[written] if written in errors else _as(coder, x[written])
            error = error - coder.decode(codes[hook], coder.written_frame(reads), hook=written)
            skipped = coder.skip(reads, written)
            errors[written] = error if skipped is None else error - skipped
    return errors


def _behind(rows: Float[Tensor, "1 spliced d"], first: int) -> Float[Tensor, "position d"]:
    """The rows of a text with zeros for the positions in front that carry nothing."""
    return torch.nn.functional.pad(rows[0].cpu(), (0, 0, first, 0))
