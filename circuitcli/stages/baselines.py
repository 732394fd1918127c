"""``circuit train --eval --baselines``: what SAEs have to beat, measured at their hook points with as many codes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import progress
from circuitcli.hookpoints import HookPoint
from circuitcli.progress import note
from circuitcli.reading import read_object
from circuitcli.runs import atomic
from circuitcli.settings.settings import Settings
from circuitcli.stages.measure import model_settings
from circuitcli.stages.measuring import finite
from circuitcli.stages.request import Request

if TYPE_CHECKING:
    import torch

    from circuitcli.evaluation.held_out import HeldOut
    from circuitcli.saes.base import SparseCoder

# Rows that are read together; and the most that the slow ones are made from.
_CHUNK, _ICA_ROWS, _NMF_ROWS = 512, 32_768, 16_384
_EVAL_ROWS = 1024
_AGAIN = "measure again: `circuit train --eval --force`"


@dataclass(frozen=True)
class Baselines:
    """The baselines of a call: the rows they are made from are those before the held-out ones."""

    request: Request
    held_out: "Callable[[], HeldOut]"
    rows: range
    partial: Path

    def facts(self, measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What was measured of each baseline beside each SAE, now or before a kill.

        measured: of the SAEs, in the order of the model. Coders that do not read what they write, and no other, have no
        baselines.
        """
        names = self.request.settings.train.baselines
        alone = [one for one in measured if not {"target", "further", "explained_variances"} & one.keys()]
        if names and len(alone) < len(measured):
            note("baselines stand beside autoencoders of one hook point alone")
        wanted = [(one, name) for one in alone for name in names]
        missing = [(one, name) for one, name in wanted if not self._entry(one, name).exists()]
        for one, name in progress.track(missing, "measure", unit="baselines"):
            facts = finite(self._measured(one, name))
            with atomic(self._entry(one, name)) as stream:
                json.dump(facts, stream, allow_nan=False)
        return [read_object(self._entry(one, name), hint=_AGAIN) for one, name in wanted]

    def _entry(self, sae: Mapping[str, Any], name: str) -> Path:
        return self.partial / f"{sae['hook']}.{name}.json"

    def _measured(self, sae: Mapping[str, Any], name: str) -> dict[str, Any]:
        hook, k = HookPoint.parse(sae["hook"]), max(1, round(sae["l0"]))
        about = {"hook": sae["hook"], "name": name, "k": k}
        if name == "random-model":
            return about | self._of_random_model(hook, d_sae=sae["d_sae"], k=k)
        coder = self._coder(name, hook, d_sae=sae["d_sae"], k=k).to(self.held_out().device)
        return about | {"d_sae": coder.d_sae} | self.held_out().facts(coder)

    def _coder(self, name: str, hook: HookPoint, *, d_sae: int, k: int) -> "SparseCoder":
        from circuitcli.evaluation.baselines.linear import ica, identity, moments, pca
        from circuitcli.evaluation.baselines.nmf import nmf
        from circuitcli.training.initial import generator_of

        if name == "frozen-decoder":
            return self._frozen(hook, d_sae=d_sae, k=k)
        mean, covariance = moments(self._chunks(hook, self._n_tokens))
        if name == "pca":
            return pca(hook, mean, covariance, k=k)
        if name == "identity":
            return identity(hook, mean, k=k)
        generator = generator_of(self.request.settings.seed, hook)
        if name == "ica":
            return ica(hook, self._few(hook, _ICA_ROWS), k=k, generator=generator)
        return nmf(hook, self._few(hook, _NMF_ROWS), mean, n=len(mean), k=k, generator=generator)

    @property
    def _n_tokens(self) -> int:
        return min(self.rows.start, self.request.settings.train.baseline_tokens)

    def _chunks(self, hook: HookPoint, n: int) -> "Iterator[torch.Tensor]":
        """About so many of the rows that SAEs are trained on, evenly from all of them."""
        cache, stop = self.held_out().cache, self.rows.start
        n_chunks = max(1, -(-min(n, stop) // _CHUNK))
        for number in range(n_chunks):
            start = number * stop // n_chunks
            yield cache.finite_rows(hook, start, min(start + _CHUNK, stop))

    def _few(self, hook: HookPoint, most: int) -> "torch.Tensor":
        import torch

        return torch.cat([*self._chunks(hook, min(most, self._n_tokens))])

    def _settings(self, *, d_sae: int, k: int) -> Settings:
        """Of a topk SAE of this shape."""
        sae = self.request.settings.sae.model_copy(update={"architecture": "topk", "d_sae": d_sae, "k": k})
        return self.request.settings.model_copy(update={"sae": sae})

    def _batch_size(self, n_rows: int) -> int:
        from circuitcli.training.plan import default_batch_size

        return min(self.request.settings.train.batch_size or default_batch_size(n_rows), n_rows)

    def _frozen(self, hook: HookPoint, *, d_sae: int, k: int) -> "SparseCoder":
        return self._trained(self._few(hook, self._n_tokens), hook, d_sae=d_sae, k=k, is_decoder_frozen=True)

    def _trained(
        self, rows: "torch.Tensor", hook: HookPoint, *, d_sae: int, k: int, is_decoder_frozen: bool = False
    ) -> "SparseCoder":
        """The topk SAE that some rows make in one pass."""
        from circuitcli.evaluation.baselines.linear import moments
        from circuitcli.training.alone import RowBatches, train_alone
        from circuitcli.training.architectures.trainable import ActivationMoments

        size, name = self._batch_size(len(rows)), f"{hook}-{'frozen' if is_decoder_frozen else 'random'}"
        mean, covariance = moments(rows.split(_CHUNK))
        variance = float(covariance.diagonal().sum())
        return train_alone(
            self._settings(d_sae=d_sae, k=k),
            hook,
            RowBatches(hook, rows, len(rows) // size, size, self.request.settings.seed),
            ActivationMoments(variance + float(mean.square().sum()), variance),
            folder=self.partial / name,
            fingerprint=name,
            is_decoder_frozen=is_decoder_frozen,
        )

    def _of_random_model(self, hook: HookPoint, *, d_sae: int, k: int) -> dict[str, Any]:
        """Quality of an SAE of the random copy on that copy's own activations; its losses would tell nothing."""
        from circuitcli.evaluation.quality import reconstruction

        trained_on, held_out = self._random_rows
        coder = self._trained(trained_on[hook], hook, d_sae=d_sae, k=k)
        quality = asdict(reconstruction(coder, (rows.float() for rows in held_out[hook].split(_EVAL_ROWS))))
        del quality["l0_per_chunk"]
        return {"d_sae": d_sae, "n_eval_tokens": quality.pop("n_tokens"), **quality}

    @cached_property
    def _random_rows(self) -> "tuple[dict[HookPoint, torch.Tensor], dict[HookPoint, torch.Tensor]]":
        """Activations of the random copy on the first rows that SAEs are trained on, and on the held-out ones."""
        from circuitcli.evaluation.baselines.random_model import random_copy, rows_of
        from circuitcli.models.loading import load_model

        cache = self.held_out().cache
        model = load_model(model_settings(self.request))
        copy = random_copy(model.adapter, seed=self.request.settings.seed)
        spans = (range(self._n_tokens), self.rows)
        first, last = (
            rows_of(copy, cache.blocks(span.start, span.stop), cache.hooks, pad_id=model.tokenizer.pad_id)
            for span in spans
        )
        return first, last
