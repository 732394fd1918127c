"""Training sparse coders on cached activations."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch

from circuitcli import runs
from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import ByHook, Hook, Path, as_hooks, others_of, wrong_type
from circuitcli.api.models import as_model
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel, choose_device
from circuitcli.reading import as_path
from circuitcli.saes import files
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.folder import CONFIG, read_config
from circuitcli.settings.sae import Architecture
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed, flatten
from circuitcli.training.checkpoint import Checkpoints
from circuitcli.training.job import Job
from circuitcli.training.optimiser import CoderOptimiser
from circuitcli.training.plan import END_TO_END, JOINT, Plan, check_objective, training_plan

CHECKPOINT = "checkpoint"
# What only commands have a use for: they have several processes, variants side by side, and folders for logs.
_OF_COMMANDS = ("train.sweep", "train.parallel", "train.log", "train.loss_tokens", "train.compound", "train.start")
_END_TO_END = "end-to-end training learns from what the model predicts"
# What changes no number, or no more than another device does.
_NO_MATTER = ("train.checkpoint_tokens", "train.tf32")


def train(
    cache: ActivationCache,
    *,
    architecture: Architecture = "topk",
    k: int | None = None,
    d_sae: int | None = None,
    expansion: float | None = None,
    hooks: Hook | Iterable[Hook] | None = None,
    tokens: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    device: str = "auto",
    model: LanguageModel | None = None,
    path: Path | None = None,
    settings: Mapping[str, object] | None = None,
) -> ByHook[SparseCoder]:
    """Coders for the cached hook points, all trained in one pass over the shuffled cache.

        coders = circuit.train(cache, k=32, d_sae=4096)
        coders = circuit.train(cache, architecture="transcoder", path="coders")    # of mlp_in and mlp
        coders = circuit.train(cache, architecture="jumprelu", settings={"sae.bandwidth": 0.1, "train.keep": "best"})

    architecture: topk, relu, gated, batchtopk, matryoshka, jumprelu, transcoder, ... k: features active per token, 32
    unless given. d_sae: number of features, else ``expansion`` (8) for each model dimension. tokens: how many to train
    on, by default one pass. settings: anything else by its dotted name, as `circuit train --set` takes it. model: that
    of the activations, which is needed to learn end to end or from its MLPs. path: a folder that keeps a directory for
    each coder, with metrics.jsonl; a call that was broken off goes on from its last checkpoint, and a finished one
    gives what is there.

    The last tenth of the cache, at most 16,384 tokens, is held out. The same seed gives the same coders on the same
    device, and the same as the command. Raises InputError for a cache that makes no batch or a folder with other
    coders, SettingsError for settings that make no sense, CircuitError if a loss stops being finite.
    """
    if not isinstance(cache, ActivationCache):
        raise wrong_type("cache", cache, "a cache of activations", hint="collect() gives one")
    chosen = _chosen(
        settings,
        {
            "sae.architecture": architecture,
            "sae.k": k,
            "sae.d_sae": d_sae,
            "sae.expansion": expansion,
            "train.tokens": tokens,
            "train.batch_size": batch_size,
            "train.learning_rate": learning_rate,
            "seed": seed,
        },
    )
    part = cache if hooks is None else ActivationCache(cache.path, _there(cache, as_hooks(hooks)))
    with _folder(path) as folder:
        job = _Training(part, chosen, training_plan(chosen, n_rows=part.n_tokens), choose_device(device), folder, model)
        return job.finished(keeps=path is not None)


def _chosen(others: Mapping[str, object] | None, named: Mapping[str, object]) -> Settings:
    free = others_of(others, example="{'train.keep': 'best'}")
    values = {name: value for name, value in named.items() if value is not None} | free
    if useless := [name for name in values if name in _OF_COMMANDS]:
        raise SettingsError(f"{useless[0]} does not apply here", hint="`circuit train` takes it")
    made = changed(Settings(), values, origin="train()")
    check_objective(made)
    if made.train.objective == JOINT:
        raise SettingsError("a model that learns too is written into a run", hint="`circuit train` does that")
    return made


def _there(cache: ActivationCache, hooks: Sequence[HookPoint]) -> Sequence[HookPoint]:
    if missing := [str(hook) for hook in hooks if hook not in cache.hooks]:
        raise InputError(
            f"the cache has no activations of {' '.join(missing)}",
            hint=f"it has those of {' '.join(map(str, cache.hooks))}",
        )
    return hooks


@contextmanager
def _folder(path: Path | None) -> Iterator[FilePath]:
    """The folder that is named, or one for the time being."""
    if path is not None:
        yield as_path(path)
        return
    made = FilePath(tempfile.mkdtemp(prefix="circuit-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@dataclass(frozen=True)
class _Training:
    """One training: what from, how, and where its state is."""

    cache: ActivationCache
    settings: Settings
    plan: Plan
    device: torch.device
    folder: FilePath
    model: LanguageModel | None

    @property
    def fingerprint(self) -> str:
        """Of all that the coders depend on."""
        everything = {name: value for name, value in flatten(self.settings).items() if name not in _NO_MATTER}
        values = {name: value for name, value in everything.items() if name.startswith(("sae.", "train."))}
        digests = {str(hook): self.cache.digests(hook) for hook in self.cache.hooks}
        return runs.digest([values, self.settings.seed, digests])

    def finished(self, *, keeps: bool) -> ByHook[SparseCoder]:
        """The coders: those that are there, or trained now; if it ``keeps`` them, in the folder."""
        if (kept := self._kept()) is not None:
            return kept
        optimisers = self._trained()
        made = {coder.hook: coder for one in optimisers for coder in one.finished().values()}
        for coder in made.values():
            coder.eval().requires_grad_(False)
        if keeps:
            for hook, coder in made.items():
                facts = {"trained_as": self.settings.sae.architecture, "trained_tokens": self.plan.tokens}
                files.save(
                    coder, self.folder / str(hook), fingerprint=self.fingerprint, seed=self.settings.seed, **facts
                )
            shutil.rmtree(self.folder / CHECKPOINT, ignore_errors=True)
        return ByHook(made)

    @property
    def _facts(self) -> dict[str, Any]:
        settings = self.settings
        of_training = {"trained_as": settings.sae.architecture, "trained_tokens": self.plan.tokens}
        return {"fingerprint": self.fingerprint, "seed": settings.seed, **of_training}

    def _kept(self) -> ByHook[SparseCoder] | None:
        """What an earlier call left, if it was the same. Raises InputError for what another one left."""
        there = sorted(path.parent for path in self.folder.glob(f"*/{CONFIG}"))
        if not there or (self.folder / CHECKPOINT).exists():
            return None
        if any(read_config(place).get("fingerprint") != self.fingerprint for place in there):
            raise InputError(f"{self.folder} holds other coders", hint="give another path, or remove what is there")
        loaded = (files.load(place) for place in there)
        return ByHook({coder.hook: coder for coder in loaded})

    def _trained(self) -> list[CoderOptimiser]:
        return Job(
            settings=self.settings,
            variants={"": self.settings},
            cache=self.cache,
            plan=self.plan,
            device=self.device,
            checkpoints=Checkpoints(self.folder / CHECKPOINT, self.fingerprint),
            model=self._model,
            logs=self.folder,
        ).trained()

    def _model(self) -> LanguageModel:
        if self.model is None:
            is_local = self.settings.train.objective != END_TO_END
            what = f"{self.settings.sae.architecture} learns from the model's MLPs" if is_local else _END_TO_END
            raise SettingsError(what, hint="give the model of the activations: train(..., model=model)")
        return as_model(self.model)
