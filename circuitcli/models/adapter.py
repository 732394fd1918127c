"""One view of every decoder-only Hugging Face model: it names modules and does not rewrite the model."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.models.families import gemma, generic, gpt2, gpt_neox, llama
from circuitcli.models.findings import Findings
from circuitcli.models.layout import Layout, submodule, text_config
from circuitcli.models.offloading import running_device, weights_at_hand

FAMILIES = (gpt2.layout, gpt_neox.layout, llama.layout, gemma.layout)
# As several families call them.
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")


class ModelAdapter:
    """A model in evaluation mode whose parameters take no gradients, and the places of its parts."""

    def __init__(self, model: PreTrainedModel, layouts: Sequence[Layout], findings: Findings | None = None) -> None:
        """layouts: one for each block, or one for all. Raises InputError if the model lacks a part that they name."""
        self.model = model.eval().requires_grad_(False)
        self.findings = findings or Findings()
        self.layout = layouts[0]
        self.blocks: Sequence[nn.Module] = list(self._part(self.layout.blocks).children())
        self.layouts = tuple(layouts) if len(layouts) > 1 else (self.layout,) * len(self.blocks)
        self.embedding = self._part(self.layout.embedding)
        # Some models have no norm behind their last block.
        self.final_norm = nn.Identity() if self.layout.final_norm is None else self._part(self.layout.final_norm)
        self.unembedding: nn.Module = model.get_output_embeddings()
        self._check_parts()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelAdapter":
        """The adapter of the model's family, or one guessed from its structure; nothing is run (see `checking`).

        Raises InputError if the structure is not understood.
        """
        known = next((found for layout in FAMILIES if (found := layout(model)) is not None), None)
        return cls(model, generic.layouts(model) if known is None else (known,))

    def _part(self, path: str) -> nn.Module:
        found = submodule(self.model, path)
        if found is None:
            raise InputError(f"this {self.layout.family} model has no part '{path}'")
        return found

    def _check_parts(self) -> None:
        for layer, layout in enumerate(self.layouts):
            parts = (layout.attn_norm, layout.attn_out, layout.mlp_norm, layout.mlp_out)
            for name in (*parts, layout.attention, layout.feed_forward):
                if name is not None and submodule(self.blocks[layer], name) is None:
                    raise InputError(f"block {layer} of this {layout.family} model has no part '{name}'")

    @property
    def family(self) -> str:
        """Name of the family's file."""
        return self.layout.family

    @property
    def text_config(self) -> Any:
        """The configuration of the language model."""
        return text_config(self.model)

    @property
    def model_type(self) -> str:
        """What the model's configuration calls its kind."""
        return str(self.model.config.model_type)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def n_token_ids(self) -> int:
        """How many token ids the embedding knows; a tokenizer may use fewer."""
        return int(next(self.embedding.parameters()).shape[0])

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embedding."""
        return running_device(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the residual stream."""
        return next(self.embedding.parameters()).dtype

    @cached_property
    def final_norm_centres(self) -> bool:
        """Whether the final norm takes the mean off."""
        return _centres(self.final_norm, self.d_model)

    def module(self, layer: int, part: str) -> nn.Module:
        """A part of a block: attn_norm, attn_out, mlp_norm, mlp_out, attention or feed_forward.

        Raises InputError where the block has none.
        """
        path = getattr(self.layouts[layer], part)
        if path is None:
            raise InputError(f"block {layer} of this {self.model_type} model has no {part.replace('_', ' ')}")
        return self.blocks[layer].get_submodule(path)

    def check(self, hook: HookPoint) -> None:
        """Raise SettingsError if this model has no such hook point, or none that is what its name says."""
        if hook.layer >= self.n_layers:
            raise SettingsError(
                f"{hook} does not exist: this model has {self.n_layers} layers",
                hint=f"layers are 0 to {self.n_layers - 1}",
            )
        lacking = self.layouts[hook.layer].lacks(hook.site)
        if lacking is not None:
            raise SettingsError(f"{hook} does not exist: {lacking}", hint=self._hint(hook))
        wrong = self.findings.refused.get(hook)
        if wrong is not None:
            raise SettingsError(
                f"{hook} is not offered for model type '{self.model_type}': {wrong}", hint=self._hint(hook)
            )

    def _hint(self, hook: HookPoint) -> str:
        right = [site for site in SITES[1:] if self.offers(HookPoint(hook.layer, site))]
        others = [str(layer) for layer in range(self.n_layers) if self.offers(HookPoint(layer, hook.site))]
        elsewhere = f", or --layers of those with {hook.site}: {' '.join(others)}" if others else ""
        return f"use --sites resid{elsewhere}; this block offers {' '.join(right)}"

    def offers(self, hook: HookPoint) -> bool:
        """Whether the model has a hook point that is what its name says."""
        is_there = hook.layer < self.n_layers and self.layouts[hook.layer].lacks(hook.site) is None
        return is_there and hook not in self.findings.refused

    def logits(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position vocab"]:
        """The model's own output."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    def head(self, residual: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position vocab"]:
        """Logits from the output of the last block."""
        return self.capped(self.unembedded(self.final_norm(residual)))

    def unembedded(self, normed: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position vocab"]:
        """Logits from the output of the final norm, before a soft cap."""
        logits = self.unembedding(normed).to(self.device)
        return logits if self.findings.logit_scale == 1.0 else logits * self.findings.logit_scale

    def capped(self, logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, "batch position vocab"]:
        """Logits with the soft cap, in models that have one."""
        caps = (getattr(self.text_config, name, None) for name in _SOFT_CAPS)
        cap = next((cap for cap in caps if cap), None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def logit_effect(self, direction: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Change of each logit per unit of final-norm scale if a direction is added to the last residual.

        The final norm's gain is applied, a LayerNorm's centring too, and the mean over the vocabulary, which softmax
        ignores, is removed; soft caps are left out.
        """
        with weights_at_hand(self.final_norm, self.unembedding):
            weight = getattr(self.final_norm, "weight", None)
            table = self.unembedding.get_parameter("weight").float() * self.findings.logit_scale
            gain = 1.0 if weight is None else weight.to(table.device).float() + self.layout.norm_offset
        direction = direction.to(table.device, torch.float32)
        if self.final_norm_centres:
            direction = direction - direction.mean(dim=-1, keepdim=True)
        effect = (direction * gain) @ table.T  # (n, vocab)
        return effect - effect.mean(dim=-1, keepdim=True)


@torch.no_grad()
def _centres(norm: nn.Module, width: int) -> bool:
    """Whether a norm takes the mean off, as LayerNorm does, whatever its class is called."""
    if isinstance(norm, nn.LayerNorm | nn.Identity):
        return isinstance(norm, nn.LayerNorm)
    with weights_at_hand(norm):
        like = next(norm.parameters(), torch.empty(0))
        probe = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)[None, None]
        return torch.allclose(norm(probe + 1), norm(probe), rtol=1e-2, atol=1e-2)
