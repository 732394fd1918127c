"""Measuring coders on what training did not see: held-out rows of a cache, and the model on their text."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from circuitcli.activations.cache import ActivationCache
    from circuitcli.evaluation.spliced import SplicedLoss
    from circuitcli.hookpoints import HookPoint
    from circuitcli.models.loading import LanguageModel
    from circuitcli.saes.base import SparseCoder
    from circuitcli.saes.crosscoder import Crosscoder

_LOSS_BATCH = 8
# Rows that are encoded at once; few rows are cut into parts enough for standard errors.
_EVAL_ROWS, _EVAL_PARTS = 1024, 16


@dataclass(frozen=True)
class HeldOut:
    """Rows that training did not see, and the model on their text."""

    cache: "ActivationCache"
    rows: range
    device: "torch.device"
    spliced_loss: "SplicedLoss | None"

    @classmethod
    def of(
        cls,
        cache: "ActivationCache",
        rows: range,
        *,
        load: "Callable[[], LanguageModel]",
        n_loss_tokens: int,
        device: str,
    ) -> "HeldOut":
        """Load the model, which must still give the cached activations.

        rows: of the cache; the text of the first ``n_loss_tokens`` of them is put through the model, which is not
        loaded if there is none. device: where coders are then measured. Raises InputError if the model has changed.
        """
        from circuitcli.activations.agreement import check_model
        from circuitcli.evaluation.spliced import SplicedLoss, Texts
        from circuitcli.models.loading import choose_device

        read = rows[:n_loss_tokens]
        blocks = [block for block in cache.blocks(read.start, read.stop) if len(block.ids) > 1]
        if not blocks:
            return cls(cache, rows, choose_device(device), None)
        model = load()
        check_model(model, cache, blocks[0])
        place = model.adapter.device
        texts = Texts.of(blocks, pad_id=model.tokenizer.pad_id, batch_size=_LOSS_BATCH, device=place)
        first = int(cache.bos_id is not None)
        return cls(cache, rows, place, SplicedLoss(model.adapter, texts, cache.hooks, first=first))

    def facts(self, sae: "SparseCoder", *, chunk: int | None = None) -> dict[str, Any]:
        """All that was measured of an SAE or transcoder, by name; it must be on ``device``.

        chunk: how many of its features make a chunk, if they come in chunks, as those of a staircase do. ``density``
        and ``standard_errors`` hold further names. Raises InputError if its activations were not collected,
        or are no numbers.
        """
        from circuitcli.evaluation.geometry import geometry_facts
        from circuitcli.evaluation.quality import reconstruction

        self._check_collected(sae)
        n_rows = min(_EVAL_ROWS, sae.rows_at_once, -(-len(self.rows) // _EVAL_PARTS))
        pieces = [*self.cache.pieces(self.rows.start, self.rows.stop, size=n_rows, by_text=sae.reads_context)]
        x = (self.cache.finite_rows(sae.hook, *piece) for piece in pieces)
        targets = (self.cache.finite_rows(sae.target, *piece) for piece in pieces) if sae.is_transcoder else None
        quality = asdict(reconstruction(sae, x, targets=targets, chunk=chunk))
        if chunk is None:
            del quality["l0_per_chunk"]
        facts = {"n_eval_tokens": quality.pop("n_tokens"), **quality, **geometry_facts(sae)}
        if self.spliced_loss is None:
            return facts
        mean = self.cache.mean(sae.target).float()
        loss = asdict(self.spliced_loss.measure(sae, mean=mean))
        errors = facts["standard_errors"] | loss.pop("standard_errors")
        return {**facts, **loss, "loss_ablation": "mean", "standard_errors": errors}

    def facts_together(self, coders: "Mapping[HookPoint, SparseCoder]") -> "dict[HookPoint, dict[str, Any]]":
        """As `facts`, for coders that write together, by what they read.

        What is said of a coder's reconstruction is that of all at the hook point that it is the first to write;
        ``explained_variances`` has all that it writes. The losses are those with all that they explain replaced at
        once, which ``replaced`` names.
        """
        from circuitcli.evaluation.geometry import geometry_facts
        from circuitcli.evaluation.together import hooks_of, reconstruction_together

        for coder in coders.values():
            self._check_collected(coder)
        n_rows = min(_EVAL_ROWS, *(coder.rows_at_once for coder in coders.values()), -(-len(self.rows) // _EVAL_PARTS))
        pieces = self.cache.pieces(self.rows.start, self.rows.stop, size=n_rows)
        batches = ({hook: self.cache.finite_rows(hook, *piece) for hook in hooks_of(coders)} for piece in pieces)
        quality, loss = reconstruction_together(coders, batches), self.replacement(coders)
        facts = {}
        for read, coder in coders.items():
            own = asdict(quality.coders[read])
            del own["l0_per_chunk"]
            explained = {str(hook): quality.explained_variance[hook] for hook in coder.writes}
            facts[read] = {"n_eval_tokens": own.pop("n_tokens"), **own, **geometry_facts(coder)}
            facts[read] |= {"explained_variances": explained} if len(explained) > 1 else {}
            errors = facts[read]["standard_errors"] | loss.get("standard_errors", {})
            facts[read] |= {**loss, "standard_errors": errors}
        return facts

    def facts_of_crosscoder(self, coder: "Crosscoder") -> dict[str, Any]:
        """As `facts`; explained variance is the mean over its hook points, of which ``explained_variances`` has each.

        The losses are those with all its hook points replaced at once.
        """
        from circuitcli.evaluation.geometry import geometry_facts
        from circuitcli.evaluation.together import reconstruction_of_crosscoder

        hooks = coder.hook_points
        self._check_there(str(coder.hook), dict.fromkeys(hooks, coder.d_model))
        n_rows = min(_EVAL_ROWS, coder.rows_at_once, -(-len(self.rows) // _EVAL_PARTS))
        pieces = self.cache.pieces(self.rows.start, self.rows.stop, size=n_rows)
        batches = ({hook: self.cache.finite_rows(hook, *piece) for hook in hooks} for piece in pieces)
        quality = reconstruction_of_crosscoder(coder, batches)
        # L0, densities and the like are the same at all of them; what is said of one reconstruction is said of none.
        of_codes = {name: asdict(quality[hooks[0]])[name] for name in ("n_tokens", "l0", "l1", "silent", "density")}
        explained = {str(hook): quality[hook].explained_variance for hook in hooks}
        known = [value for value in explained.values() if value is not None]
        facts = {"n_eval_tokens": of_codes.pop("n_tokens"), **of_codes, **geometry_facts(coder)}
        facts |= {"explained_variance": sum(known) / len(known) if known else None, "explained_variances": explained}
        if self.spliced_loss is None:
            return facts
        means = {hook: self.cache.mean(hook).float() for hook in hooks}
        loss = self.spliced_loss.measure_crosscoder(coder, means=means)
        return {**facts, **asdict(loss), "loss_ablation": "mean", "replaced": coder.hooks}

    def replacement(self, coders: "Mapping[HookPoint, SparseCoder]") -> dict[str, Any]:
        """The model's losses with all that the coders explain replaced at once, by name; empty without a model."""
        from circuitcli.evaluation.together import written_by

        if self.spliced_loss is None:
            return {}
        written = written_by(coders)
        loss = self.spliced_loss.measure_together(
            coders, means={hook: self.cache.mean(hook).float() for hook in written}
        )
        return {**asdict(loss), "loss_ablation": "mean", "replaced": [str(hook) for hook in written]}

    def _check_collected(self, sae: "SparseCoder") -> None:
        self._check_there(str(sae.hook), {sae.hook: sae.d_in, **dict.fromkeys(sae.writes, sae.d_out)})

    def _check_there(self, name: str, widths: "Mapping[HookPoint, int]") -> None:
        """Raise InputError if activations that a coder of this name is for were not collected, or have other widths."""
        missing = [str(hook) for hook in widths if hook not in self.cache.hooks]
        if missing:
            raise InputError(
                f"the SAE at {name} is measured on cached activations of {' '.join(missing)}, which are not there",
                hint="run `circuit collect` for these layers and sites",
            )
        for hook, width in widths.items():
            if (cached := self.cache.d_model(hook)) != width:
                raise InputError(
                    f"the SAE at {name} is for width {width}, the activations at {hook} have {cached}",
                    hint="use SAEs that were trained on this model",
                )
