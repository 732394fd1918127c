"""Where the parts of a decoder-only language model are, as names of modules."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class MlpLayout:
    """Where the parts of an MLP are, as module paths from a block.

    It is ``down(act(up(x)))``, with a gate ``down(act(gate(x)) * up(x))``; ``norm`` is applied to that where the model
    has one there.
    """

    up: str
    down: str
    activation: str
    gate: str | None = None
    norm: str | None = None


GATED_MLP = MlpLayout("mlp.up_proj", "mlp.down_proj", "mlp.act_fn", gate="mlp.gate_proj")


@dataclass(frozen=True)
class Layout:
    """Module paths: the first three from the model, the others from a block.

    attn_out and mlp_out name the modules whose output is added to the residual stream (in Gemma 2: the post-norms).
    norm_offset is what norms add to their weight before multiplying (1 in Gemma, else 0). mlp is None where the parts
    of the MLP are not known.
    """

    family: str
    embedding: str
    blocks: str
    final_norm: str
    attn_norm: str
    attn_out: str
    mlp_norm: str
    mlp_out: str
    is_parallel: bool = False
    norm_offset: float = 0.0
    mlp: MlpLayout | None = None


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
