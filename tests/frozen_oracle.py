"""The slow way to an effect in the frozen model: forward runs in which patterns and denominators are played back."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import Callback, read

EMBED = HookPoint(0, "embed")
# Stands for the output of the final norm.
NORMED = HookPoint(999, "resid")
_PLAYED = {F.softmax, torch.softmax, torch.Tensor.softmax, torch.rsqrt, torch.Tensor.rsqrt}


class Playback(TorchFunctionMode):
    """Keeps what softmax and the denominators of norms give in a first run; later runs get that. Eager attention."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []
        self.place: int | None = None

    def again(self) -> "Playback":
        self.place = 0
        return self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _PLAYED:
            return self._played(lambda: func(*args, **(kwargs or {})))
        if func is F.layer_norm:
            return self._layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _played(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self.place is None:
            self.kept.append(make())
            return self.kept[-1]
        self.place += 1
        return self.kept[self.place - 1].expand_as(make())

    def _layer_norm(self, x, shape, weight=None, bias=None, eps=1e-5):
        centred = x - x.mean(dim=-1, keepdim=True)
        scale = self._played(lambda: (centred.square().mean(dim=-1, keepdim=True) + eps).rsqrt())
        return centred * scale * weight + bias


class FrozenOracle:
    """The frozen model of a subject of one prompt: blocks of eager attention, MLPs that no coder writes constant.

    Every spliced hook point goes on with its clean activation, what is moved there, and what skips carry.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.clean: dict[HookPoint, torch.Tensor] = {}
        self._mixed: dict[int, torch.Tensor] = {}
        with torch.no_grad(), (playback := Playback()), self._heads(lambda layer: None):
            self.clean = self._run({}, 1)
        self._playback = playback

    def moved(
        self,
        moves: Mapping[HookPoint, torch.Tensor],
        opens: Callable[[int], Container[int] | None] = lambda layer: None,
    ) -> dict[HookPoint, torch.Tensor]:
        """How everything that is read or arrives changes when this is added to what is written, row by row.

        opens: of each block the heads that do not give what they give in the clean run; None for all.
        """
        rows = len(next(iter(moves.values())))
        with torch.no_grad(), self._playback.again(), self._heads(opens):
            seen = self._run(moves, rows)
        return {hook: value - self.clean[hook] for hook, value in seen.items()}

    @contextmanager
    def _heads(self, opens: Callable[[int], Container[int] | None]) -> Iterator[None]:
        adapter = self.subject.adapter
        n_heads = adapter.text_config.num_attention_heads

        def held(module, args, layer):
            clean, chosen = self._mixed.setdefault(layer, args[0].clone()), opens(layer)
            if chosen is None:
                return args
            is_open = torch.tensor([head in chosen for head in range(n_heads)])
            return (
                torch.where(
                    is_open[:, None], args[0].unflatten(-1, (n_heads, -1)), clean.unflatten(-1, (n_heads, -1))
                ).flatten(-2),
            )

        handles = []
        for layer, layout in enumerate(adapter.layouts):
            module = adapter.blocks[layer].get_submodule(layout.heads.output)
            handles.append(module.register_forward_pre_hook(partial(held, layer=layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _run(self, moves, rows) -> dict[HookPoint, torch.Tensor]:
        subject, seen = self.subject, {}
        hooks = {EMBED, *subject.coders.hooks}
        hooks |= {
            HookPoint(layer, site) for layer in range(subject.adapter.n_layers) for site in ("attn_in", "attn", "mlp")
        }
        taps = {hook: self._tap(hook, moves, seen) for hook in hooks}
        texts = torch.zeros(rows, dtype=torch.int64)
        seen[NORMED] = subject.adapter.final_norm(subject.run(taps, texts=texts, start=-1))
        return seen

    def _tap(self, hook, moves, seen) -> Callback:
        coders, first = self.subject.coders, self.subject.first

        def callback(x):
            is_written = hook == EMBED or bool(coders.writers(hook))
            if is_written or hook.site == "mlp":
                going_on = self.clean.get(hook, x).expand_as(x).clone()
            else:
                going_on = x.clone()
            if hook in moves:
                going_on[:, going_on.shape[1] - moves[hook].shape[1] :] += moves[hook]
            for coder in coders.writers(hook):
                if coder.config.skip and self.clean:
                    going_on[:, first:] += coder.skip((seen[coder.hook] - self.clean[coder.hook])[:, first:], hook)
            # What an autoencoder reads arrives; all else is what goes on.
            reader = coders.get(hook)
            arrives = (reader is not None and not reader.is_transcoder) or hook.site == "attn"
            seen[hook] = x if arrives and self.clean else going_on
            return going_on

        return callback


def write_of(subject: Subject, name: str) -> dict[HookPoint, torch.Tensor]:
    """What the node of this name writes in the clean run, by hook point: (1, spliced, d_model)."""
    place, _, position = name.partition("@")
    hook, _, what = place.partition("/")
    hook, moves = HookPoint.parse(hook), {}
    if not what:
        # An MLP that is constant, at all positions.
        return {hook: read(subject.adapter, subject.clean.input_ids, None, [hook])[hook].detach()}
    at = int(position) - subject.first
    if what == "token":
        value = subject.adapter.embedding(torch.tensor(subject.prompts[0].ids[int(position)]))
        return {hook: _only(subject, value, at)}
    if what == "error":
        return {hook: _only(subject, subject.errors[hook][0, at], at)}
    coder, scale = subject.coders[hook], subject.scale(hook)
    for target in coder.writes:
        value = subject.codes[hook][0, at, int(what)] * coder.decoder(target)[int(what)]
        moves[target] = _only(subject, value if scale is None else value * scale[0, at], at)
    return moves


def _only(subject: Subject, value: torch.Tensor, at: int) -> torch.Tensor:
    made = torch.zeros(1, subject.n_spliced, len(value), dtype=torch.float64)
    made[0, at] = value
    return made


def writes_of(subject: Subject, names: list[str]) -> dict[HookPoint, torch.Tensor]:
    """`write_of` of several nodes, a row for each."""
    single = [write_of(subject, name) for name in names]
    hooks = {hook for moves in single for hook in moves}
    length = {hook: next(moves[hook].shape[1] for moves in single if hook in moves) for hook in hooks}
    none = {hook: torch.zeros(1, length[hook], subject.adapter.d_model, dtype=torch.float64) for hook in hooks}
    return {hook: torch.cat([moves.get(hook, none[hook]) for moves in single]) for hook in hooks}
