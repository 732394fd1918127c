"""Names of hook points in other libraries' words: TransformerLens names, and paths of Hugging Face modules.

TransformerLens's ``lnN.hook_normalized`` is the norm's output before weight and bias, ``attn_in`` and ``mlp_in`` are
the output after them; `NamedHook.before_gain` says which is meant.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint

if TYPE_CHECKING:
    from circuitcli.models.layout import Layout

# What follows ``blocks.L.``; the first name of a site is the one that is written.
_IN_BLOCK = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_in": "attn_in",
    "ln1.hook_normalized": "attn_in",
    "hook_attn_out": "attn",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
    # Before its norm, as HookedTransformer computes it.
    "hook_mlp_in": "resid_mid",
    "hook_mlp_out": "mlp",
    "hook_resid_post": "resid",
}
_BEFORE_GAIN = frozenset({"ln1.hook_normalized", "ln2.hook_normalized"})

_BLOCK = re.compile(r"^(?:\w+\.)*?(?:h|layers|blocks)\.(?P<layer>[0-9]{1,9})(?:\.(?P<part>.+))?$")
_OUTPUT = {
    "": "resid",
    "ln_1": "attn_in",
    "input_layernorm": "attn_in",
    "attn": "attn",
    "attention": "attn",
    "self_attn": "attn",
    "ln_2": "mlp_in",
    "post_attention_layernorm": "mlp_in",
    "mlp": "mlp",
}
# Gemma 2 and 3 have norms behind attention and MLP too, and what these give is what is added to the residual stream.
_OUTPUT_OF_SANDWICH = {
    "": "resid",
    "input_layernorm": "attn_in",
    "post_attention_layernorm": "attn",
    "pre_feedforward_layernorm": "mlp_in",
    "post_feedforward_layernorm": "mlp",
}
_INPUT = {
    "": "resid_pre",
    "ln_1": "resid_pre",
    "input_layernorm": "resid_pre",
    "attn": "attn_in",
    "attention": "attn_in",
    "self_attn": "attn_in",
    "ln_2": "resid_mid",
    "pre_feedforward_layernorm": "resid_mid",
    "mlp": "mlp_in",
}
# What SAEs of single heads read, in TransformerLens's words and as the input of a module.
_OF_HEADS = re.compile(r"hook_(z|q|k|v|result)$|o_proj\.input$")
OF_HEADS = "it is inside attention, before the output projection mixes the heads"
_EMBEDDINGS = frozenset({"wte", "embed_in", "embed_tokens"})


class NamedHook(NamedTuple):
    """A hook point and whether the name means it before the norm's weight and bias."""

    hook: HookPoint
    before_gain: bool = False


def from_transformer_lens(name: str) -> NamedHook:
    """The hook point of a TransformerLens name. Raises InputError for one that has none here, such as ``hook_z``."""
    if name == "hook_embed":
        return NamedHook(HookPoint(0, "embed"))
    found = re.fullmatch(r"blocks\.([0-9]{1,9})\.(.+)", name)
    if found is None or found[2] not in _IN_BLOCK:
        raise _unknown(name)
    return NamedHook(HookPoint(int(found[1]), _IN_BLOCK[found[2]]), found[2] in _BEFORE_GAIN)


def to_transformer_lens(hook: HookPoint, *, before_gain: bool = False) -> str:
    """TransformerLens's name of a hook point."""
    if hook.site == "embed":
        return "hook_embed"
    names = [name for name, site in _IN_BLOCK.items() if site == hook.site]
    part = next((name for name in names if (name in _BEFORE_GAIN) == before_gain), names[0])
    return f"blocks.{hook.layer}.{part}"


def from_module(path: str, *, model: str | None = None, takes_input: bool = False) -> HookPoint:
    """The hook point that is the output of a Hugging Face module, or its input; a suffix .input or .output decides.

    model: its name, which tells Gemma 2 and 3 from the others. Raises InputError for a module that has none here.
    """
    name = path
    for suffix, is_input in ((".input", True), (".output", False)):
        if path.endswith(suffix):
            name, takes_input = path.removesuffix(suffix), is_input
    if name.rpartition(".")[2] in _EMBEDDINGS and not takes_input:
        return HookPoint(0, "embed")
    outputs = _OUTPUT_OF_SANDWICH if has_sandwich_norms(model) else _OUTPUT
    found = _BLOCK.match(name)
    site = None if found is None else (_INPUT if takes_input else outputs).get(found["part"] or "")
    if found is None or site is None:
        raise _unknown(path)
    return HookPoint(int(found["layer"]), site)


def names_module(path: str) -> bool:
    """Whether a text looks like the path of a module in a block, or of an embedding."""
    return _BLOCK.match(path) is not None or path.rpartition(".")[2] in _EMBEDDINGS


def to_module(hook: HookPoint, layout: "Layout") -> str:
    """The path of the module whose output a hook point is. Raises InputError for one that is no module's output."""
    parts = {
        "attn_in": layout.attn_norm,
        "attn": layout.attn_out if layout.attn_scale == 1.0 else None,
        "mlp_in": layout.mlp_norm,
        "mlp": layout.mlp_out if layout.mlp_scale == 1.0 else None,
        "resid": "",
    }
    if hook.site == "embed":
        return layout.embedding
    if hook.site == "resid_pre" and hook.layer > 0:
        return f"{layout.blocks}.{hook.layer - 1}"
    if parts.get(hook.site) is None:
        raise InputError(f"{hook} is not the output of a module", hint="choose another --to, or other SAEs with --sae")
    return f"{layout.blocks}.{hook.layer}" + (f".{parts[hook.site]}" if parts[hook.site] else "")


def has_sandwich_norms(model: str | None) -> bool:
    """Whether a model's name says that it has norms behind attention and MLP too: Gemma 2 and 3, not Gemma 2B."""
    return re.search(r"gemma-?v?[23](?![0-9]*b)", (model or "").lower()) is not None


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: TransformerLens's, the hub's with or without its owner, or a path's last."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return {"gpt2-small": "gpt2"}.get(last, last)


def _unknown(name: str) -> InputError:
    if _OF_HEADS.search(name):
        return InputError(
            f"the SAE's hook point '{name}' is not one that circuit knows: {OF_HEADS}",
            hint="name an SAE of attn, which is behind that projection, of mlp or of a residual stream",
        )
    return InputError(
        f"the SAE's hook point '{name}' is not one that circuit knows",
        hint="sites are " + " ".join(dict.fromkeys(("embed", *_IN_BLOCK.values()))),
    )
