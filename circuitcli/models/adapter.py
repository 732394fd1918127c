"""One view of every decoder-only Hugging Face model: it names modules and does not rewrite the model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.families import gemma, generic, gpt2, gpt_neox, llama
from circuitcli.models.layout import Layout, submodule
from circuitcli.models.offloading import running_device, weights_at_hand

FAMILIES = (gpt2.layout, gpt_neox.layout, llama.layout, gemma.layout)


class ModelAdapter:
    """A model in evaluation mode whose parameters take no gradients, and the places of its parts."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self.model = model.eval().requires_grad_(False)
        self.layout = layout
        self.blocks: Sequence[nn.Module] = list(self._part(layout.blocks).children())
        self.embedding = self._part(layout.embedding)
        self.final_norm = self._part(layout.final_norm)
        self.unembedding: nn.Module = model.get_output_embeddings()
        for name in (layout.attn_norm, layout.attn_out, layout.mlp_norm, layout.mlp_out):
            if submodule(self.blocks[0], name) is None:
                raise InputError(f"block 0 of this {layout.family} model has no part '{name}'")

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ModelAdapter":
        """The adapter of the model's family, or one guessed from its structure and checked on a few tokens.

        Raises InputError if the structure is not understood.
        """
        known = next((found for layout in FAMILIES if (found := layout(model)) is not None), None)
        adapter = cls(model, known or generic.layout(model))
        # A model without weights, as used for estimates, gives nothing to compare.
        if known is None and adapter.device.type != "meta":
            adapter._check_guess()
        return adapter

    def _part(self, path: str) -> nn.Module:
        found = submodule(self.model, path)
        if found is None:
            raise InputError(f"this {self.layout.family} model has no part '{path}'")
        return found

    @property
    def family(self) -> str:
        """Name of the family's file."""
        return self.layout.family

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.hidden_size)

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

    def module(self, layer: int, part: str) -> nn.Module:
        """A part of a block: attn_norm, attn_out, mlp_norm or mlp_out."""
        return self.blocks[layer].get_submodule(getattr(self.layout, part))

    def check(self, hook: HookPoint) -> None:
        """Raise SettingsError if this model has no such hook point."""
        if hook.layer >= self.n_layers:
            raise SettingsError(
                f"{hook} is past the last of {self.n_layers} layers",
                hint=f"layers are 0 to {self.n_layers - 1}",
            )
        if hook.site == "resid_mid" and self.layout.is_parallel:
            raise SettingsError(
                f"{hook} does not exist: attention and MLP read the same stream in this model's blocks",
                hint="use resid_pre, attn, mlp or resid",
            )

    def logits(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position vocab"]:
        """The model's own output."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    def head(self, residual: Float[Tensor, "batch position d_model"]) -> Float[Tensor, "batch position vocab"]:
        """Logits from the output of the last block."""
        logits = self.unembedding(self.final_norm(residual)).to(self.device)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def logit_effect(self, direction: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Change of each logit per unit of final-norm scale if a direction is added to the last residual.

        The final norm's gain is applied, a LayerNorm's centring too, and the mean over the vocabulary, which softmax
        ignores, is removed; soft caps are left out.
        """
        with weights_at_hand(self.final_norm, self.unembedding):
            weight = getattr(self.final_norm, "weight", None)
            table = self.unembedding.get_parameter("weight").float()
            gain = 1.0 if weight is None else weight.to(table.device).float() + self.layout.norm_offset
        direction = direction.to(table.device, torch.float32)
        if isinstance(self.final_norm, nn.LayerNorm):
            direction = direction - direction.mean(dim=-1, keepdim=True)
        effect = (direction * gain) @ table.T  # (n, vocab)
        return effect - effect.mean(dim=-1, keepdim=True)

    def _check_guess(self) -> None:
        """Compare the guessed head with the model's logits on four tokens. Raises InputError if they differ."""
        from circuitcli.models.partial import clean_pass

        ids = torch.arange(4, device=self.device)[None] % self.model.config.vocab_size
        with torch.no_grad():
            clean = clean_pass(self, ids)
            rebuilt = self.head(clean.final_residual)
        if not torch.allclose(rebuilt.float(), clean.logits.float(), rtol=1e-3, atol=1e-3):
            raise InputError(
                f"the guessed structure of model type '{self.model.config.model_type}' does not rebuild its logits",
                hint="this model scales or adds something that is not known here",
            )
