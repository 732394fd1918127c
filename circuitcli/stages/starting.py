"""``circuit train --from``: where the coders are that a training begins from, and reading them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import ActivationsRecord
from circuitcli.settings.settings import Settings
from circuitcli.stages.measure import model_settings
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, load_saes, sae_sources
from circuitcli.training.starting import Start, hooks_of, started

if TYPE_CHECKING:
    from circuitcli.models.adapter import ModelAdapter

# What the coders decide.
_DECIDED = ("sae.architecture", "sae.d_sae", "sae.expansion")


def start_sources(
    request: Request, activations: Sequence[ActivationsRecord], *, folder: str
) -> dict[HookPoint, SaeSource]:
    """The coders of ``train.start`` at collected hook points, by what they read; none without that; torch-free.

    folder: below the run, where what is trained now takes the place of what is there. Raises InputError if there is no
    such coder, or if one would be replaced by what is trained from it; SettingsError for a sweep over what they decide.
    """
    named = request.settings.train.start
    if named is None:
        return {}
    if wrong := [text for text in request.settings.train.sweep if text.partition("=")[0] in _DECIDED]:
        raise SettingsError(
            f"--sweep {wrong[0]} makes no difference: the coders of --from decide it", hint="sweep another setting"
        )
    asked = replace(request, settings=request.settings.model_copy(update={"sae_path": named}))
    collected = {HookPoint.parse(record.hook) for record in activations}
    found = sae_sources(asked, stage="train")
    chosen = {hook: source for hook, source in found.items() if hook in collected}
    if not chosen:
        raise InputError(
            f"--from {named} has coders of {' '.join(map(str, found))}, the run activations of "
            f"{' '.join(map(str, sorted(collected)))}",
            hint="collect the activations that they read, or say where one belongs: --from PATH@HOOK",
        )
    here = (request.run.path / folder).resolve()
    for hook, source in chosen.items():
        if not request.settings.train.sweep and source.place.path.resolve() == here / str(hook):
            raise InputError(
                f"--from {source.place.path} would be replaced by what is trained from it",
                hint="copy it first, or train in another run: --run DIR",
            )
    return chosen


def read_starts(request: Request, sources: Mapping[HookPoint, SaeSource]) -> dict[HookPoint, Start]:
    """The coders, on the CPU. Raises InputError for damaged ones."""
    # Through a training they come from the checkpoint before, as is asked for.
    is_through = request.settings.develop.start == "before"
    model = None if is_through else request.run.manifest().get("model", request.settings.model.name)

    @cache
    def adapter() -> "ModelAdapter":
        from circuitcli.models.loading import load_model

        return load_model(model_settings(request)).adapter

    loaded = load_saes(sources, sources, model=model, adapter=None, load_adapter=adapter)
    return {hook: Start(one.sae, one.about.training.get("trained_as")) for hook, one in loaded.items()}


def begun_settings(request: Request, starts: Mapping[HookPoint, Start]) -> Settings:
    """The request's settings with what the coders decide."""
    explicit = {f"sae.{name}" for name in request.settings.sae.model_fields_set}
    return started(request.settings, starts, explicit=explicit)


def begun_activations(
    activations: Sequence[ActivationsRecord], starts: Mapping[HookPoint, Start]
) -> list[ActivationsRecord]:
    """The hook points that the coders read and write. Raises InputError if one was not collected."""
    hooks = hooks_of(starts)
    collected = {record.hook for record in activations}
    if missing := [str(hook) for hook in sorted(hooks) if str(hook) not in collected]:
        raise InputError(
            f"the coders of --from need activations of {' '.join(missing)}, which were not collected",
            hint="run `circuit collect` for these layers and sites",
        )
    return [record for record in activations if HookPoint.parse(record.hook) in hooks]
