"""``circuit collect --from``: activations that another tool cached, into the run's cache."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import runs
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import Record
from circuitcli.settings.data import LOOKED_AT
from circuitcli.stages import collect
from circuitcli.stages.request import Request, changing_nothing, resumable
from circuitcli.stages.storing import AUTO, USUAL, number_types, with_data
from circuitcli.text.data_sets import files_of, states

if TYPE_CHECKING:
    from circuitcli.activations.choosing import NumberType
    from circuitcli.activations.sae_lens import CachedContexts, CachedSource
    from circuitcli.models.loading import LanguageModel

PREFIX = "sae_lens:"
# Number types change activations by a few per cent at most, of their norm.
_LARGEST_GAP = 0.1


def run(request: Request) -> list[Record]:
    """The run's record and that of the hook point, taken over now or before.

    Raises InputError for what is no such cache, for activations that the model does not give, a disk that is too
    small, or a run that has other activations, unless ``force`` is set; SettingsError for a hook point that the model
    lacks, and if a text is named too.
    """
    folder = _folder(request)
    state = runs.digest(list(states(folder, files_of(folder))))
    name = request.settings.data.model_copy(update={"activations": PREFIX + folder.name})
    named = replace(request, settings=request.settings.model_copy(update={"data": name}))
    print_ = collect.fingerprint_with(named, {"files of the cached activations": state})
    work = partial(_work, request, folder, print_.digest)
    made = resumable(request, collect.NAME, print_, work, partial=request.run.path / collect.FOLDER, begins=True)
    return [request.run.record(), *made]


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people."""
    contexts = _open(_folder(request))
    if request.settings.data.dtype == AUTO:
        request = with_data(request, dtype=USUAL)
    settings = request.settings
    needed = collect.disk_bytes(settings, n_hooks=1, d_model=contexts.d_in)
    return [
        ("activations", str(contexts.path)),
        ("hook point", f"{_hook(contexts, settings.model.name)}, {contexts.hook_name} there"),
        ("tokens", f"{settings.data.tokens:,} of {contexts.n_contexts * contexts.length:,}"),
        ("disk", collect.disk_line(request, needed)),
    ]


def _folder(request: Request) -> Path:
    data = request.settings.data
    named = str(data.activations)
    if not named.startswith(PREFIX):
        raise SettingsError(f"'{named}' is not a cache of activations", hint=f"write --from {PREFIX}PATH")
    if data.text is not None:
        raise SettingsError(
            f"activations from {named} come with their own text, but --text names {data.text}",
            hint="leave one of them out",
        )
    if named_too := [option for option, given in (("--field", data.field), ("--chat", data.chat)) if given]:
        raise SettingsError(
            f"activations from {named} come with their own text, to which {named_too[0]} does not apply",
            hint="leave it out",
        )
    path = Path(named.removeprefix(PREFIX)).expanduser()
    if not path.is_dir():
        raise InputError(f"there is no folder {path}", hint=f"write --from {PREFIX}PATH")
    return path


def _open(folder: Path) -> "CachedContexts":
    from circuitcli.activations.sae_lens import CachedContexts

    return CachedContexts.open(folder)


def _hook(contexts: "CachedContexts", model: str) -> HookPoint:
    """The hook point in this program's words. Raises InputError if it has none."""
    from circuitcli.saes.exchange.hooks import from_module, from_transformer_lens

    if "hook_" not in contexts.hook_name:
        return from_module(contexts.hook_name, model=model)
    found = from_transformer_lens(contexts.hook_name)
    if found.before_gain:
        raise InputError(
            f"{contexts.hook_name} is a norm's output before its weight, which is not a hook point here",
            hint="cache another hook point",
        )
    return found.hook


def _work(request: Request, folder: Path, digest: str, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.activations.adoption import adopt
    from circuitcli.activations.source import collection_of
    from circuitcli.models.loading import load_model

    root = request.run.path / collect.FOLDER
    with changing_nothing():
        collect.check_origin(root, is_known=resumes or request.force)
        contexts = _open(folder)
        model = load_model(request.settings.model)
        hook = _hook(contexts, model.name)
        model.adapter.check(hook)
        source = _source(contexts, model, hook, special_tokens=request.settings.data.special_tokens)
        _check_model(model, source)
        choose = partial(_suited_types, source)
        types = number_types(request, collect.NAME, [hook], choose=choose, resumes=resumes)
        request = with_data(request, block_length=contexts.length)
        source = source.stored_as(types[hook])
        collect.check_disk(request, root, types, d_model=contexts.d_in)
    collect.prepare(request, root, resumes=resumes)
    collect.describe(request, model, layers=str(hook.layer))
    collection = collection_of(request.settings.data, root, types, fingerprint=digest)
    collected = adopt(source, collection)
    return collect.records_of(collected, types, model), collect.facts_of(request, collected, types, model)


def _source(
    contexts: "CachedContexts", model: "LanguageModel", hook: HookPoint, *, special_tokens: str
) -> "CachedSource":
    from circuitcli.activations.sae_lens import CachedSource
    from circuitcli.activations.storage.shards import DTYPES

    tokenizer = model.tokenizer
    return CachedSource(
        contexts,
        hook,
        DTYPES["float32"],
        n_ids=model.adapter.n_token_ids,
        bos_id=tokenizer.bos_id,
        front_id=tokenizer.own_bos_id,
        left_out=tokenizer.special_ids if special_tokens == "drop" else frozenset[int](),
    )


def _suited_types(source: "CachedSource") -> "dict[HookPoint, NumberType]":
    from circuitcli.activations.choosing import Spread, suited

    return {source.hook: suited(source.hook, Spread.of(source.first_rows(LOOKED_AT)))}


def _check_model(model: "LanguageModel", source: "CachedSource") -> None:
    """Raise InputError unless the model gives the cached activations of the first context."""
    import torch

    from circuitcli.models.taps import read
    from circuitcli.text.blocks import Cursor, padded

    contexts, hook, adapter = source.cached, source.hook, model.adapter
    block = next(source.blocks(Cursor()), None)
    if block is None:
        raise InputError(f"{contexts.path} holds no context that can be stored", hint="cache activations again")
    if contexts.d_in != adapter.d_model:
        raise _other_model(contexts, model, f"they are {contexts.d_in} wide, and {hook} is {adapter.d_model}")
    batch = padded([block], pad_id=model.tokenizer.pad_id)
    with torch.no_grad():
        own = read(adapter, batch.input_ids.to(adapter.device), None, [hook])[hook].cpu()
    rows = batch.stored(own, torch.float32)
    gap = (batch.stored(contexts.activations([block]), torch.float32) - rows).norm() / rows.norm()
    if not gap <= _LARGEST_GAP:
        raise _other_model(contexts, model, f"at {hook} they differ by {float(gap):.0%} of their norm")


def _other_model(contexts: "CachedContexts", model: "LanguageModel", reason: str) -> InputError:
    return InputError(
        f"the activations in {contexts.path} are not those of {model.name}: {reason}",
        hint="give the --model and the precision (--dtype) that they were cached with, and whole contexts",
    )
