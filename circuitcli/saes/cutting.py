"""Coders that write fewer hook points than they could: what they write outside a circuit is cut off."""

import re
from collections.abc import Container

import torch

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder

_WRITING = re.compile(r"(W_dec|b_dec|W_skip)(?:_([0-9]+))?")


def name_before_cut(name: str, whole: SaeConfig, kept: SaeConfig) -> str:
    """What a parameter of a coder that is cut to ``kept`` is called in the whole one."""
    found = _WRITING.fullmatch(name)
    if found is None:
        return name
    number = whole.writes.index(kept.writes[int(found[2] or 0)])
    return found[1] if number == 0 else f"{found[1]}_{number}"


def cut(coder: SparseCoder, hooks: Container[HookPoint]) -> SparseCoder:
    """A coder with the same codes and the same tensors that writes only those of its hook points among ``hooks``.

    Raises ValueError if it writes none of them.
    """
    whole, kept = coder.config, coder.config.cut(hooks)
    if kept == whole:
        return coder
    if whole.subtract_decoder_bias and kept.target != whole.target:
        from circuitcli.saes.folding import with_decoder_bias_rule

        # The bias that is subtracted goes with what it is the bias of.
        return cut(with_decoder_bias_rule(coder, subtracts=False), hooks)
    with torch.device("meta"):
        made = type(coder)(kept, **coder.options)
    own = coder.state_dict()
    made.load_state_dict({name: own[name_before_cut(name, whole, kept)] for name in made.state_dict()}, assign=True)
    made.origin, made.digest = coder.origin, coder.digest
    return made.train(coder.training).requires_grad_(coder.W_enc.requires_grad)
