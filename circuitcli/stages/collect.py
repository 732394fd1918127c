"""Activations of a model on text, into the run's cache."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli import processes, runs
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.reading import as_path
from circuitcli.records import ActivationsRecord, Record
from circuitcli.runs import Fingerprint
from circuitcli.settings.data import LOOKED_AT, DataSettings, default_text
from circuitcli.settings.model import PLACEMENT, absolute_name
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import flatten
from circuitcli.stages.estimates import BYTES, memory, size, weight_bytes
from circuitcli.stages.request import Request, changing_nothing, fingerprint, resumable
from circuitcli.stages.storing import AUTO, USUAL, number_types, with_data
from circuitcli.text.documents import check_field, source_digest
from circuitcli.text.files import BUILTIN

if TYPE_CHECKING:
    from circuitcli.activations.collection import Collected
    from circuitcli.models.adapter import ModelAdapter
    from circuitcli.models.loading import LanguageModel

NAME = "collect"
FOLDER = "activations"
# Where the model runs and how many blocks at once changes rounding only.
_NO_MATTER = (*PLACEMENT, "data.batch_size")
# Numbers for each of d_model that a block has at once: its input, norms, queries, keys and values, the hidden layer.
_WIDTHS_OF_A_BLOCK = 16
# Token, block and position of a row.
_TOKEN_BYTES = 16
# That of `activations.shards`, which imports torch.
CACHE_FORMAT = 2


def run(request: Request) -> list[Record]:
    """The run's record and one for each hook point, collected now or before.

    Raises SettingsError for layers or sites that the model lacks, InputError for a text without tokens, a disk that is
    too small, or a run that has other activations, unless ``force`` is set.
    """
    request = resolved(request)
    print_ = _fingerprint(request)
    made = resumable(
        request, NAME, print_, partial(_work, request, print_.digest), partial=request.run.path / FOLDER, begins=True
    )
    return [request.run.record(), *made]


def plan(request: Request) -> list[tuple[str, str]]:
    """What `run` would do, as (name, value) for people. Reads the model's configuration, not its weights."""
    from circuitcli.activations.source import chosen_hooks, with_block_length
    from circuitcli.models.loading import load_outline

    request = resolved(request)
    adapter = load_outline(request.settings.model)
    is_open = request.settings.data.dtype == AUTO
    request = with_data(request, **({"dtype": USUAL} if is_open else {}))
    request = with_data(request, block_length=with_block_length(request.settings.data, adapter).block_length)
    settings = request.settings
    hooks = chosen_hooks(settings.data, adapter)
    needed = disk_bytes(settings, n_hooks=len(hooks), d_model=adapter.d_model)
    return [
        ("text", str(settings.data.text)),
        ("tokens", f"{settings.data.tokens:,}"),
        ("hook points", f"{len(hooks)}: {' '.join(map(str, hooks))}"),
        ("disk", disk_line(request, needed)),
        ("number type", f"{AUTO}, counted as {USUAL}; float32 takes twice as much" if is_open else settings.data.dtype),
        *_memory(settings, adapter, n_hooks=len(hooks)),
    ]


def disk_line(request: Request, n_bytes: int) -> str:
    """So many bytes beside what is free, for people."""
    return f"{size(n_bytes)} of {size(_free_bytes(request.run.path))} free in {request.run.path}"


def disk_bytes(settings: Settings, *, n_hooks: int, d_model: int) -> int:
    """Bytes that the cache takes on disk if all hook points have one number type."""
    dtype = USUAL if settings.data.dtype == AUTO else settings.data.dtype
    return _disk_bytes(settings, [dtype] * n_hooks, d_model=d_model)


def _disk_bytes(settings: Settings, types: Iterable[str], *, d_model: int) -> int:
    return settings.data.tokens * (d_model * sum(BYTES[dtype] for dtype in types) + _TOKEN_BYTES)


def resolved(request: Request) -> Request:
    """The request with its text named. Raises SettingsError for sites that no model has, and for a field of no text."""
    data, model = request.settings.data, request.settings.model
    if not data.sites:
        raise SettingsError("data.sites is empty", hint="for example --sites resid,attn,mlp")
    for site in data.sites:
        HookPoint(0, site)
    source = data.text or default_text(model.name)
    check_field(source, data.field)
    return with_data(request, text=source)


def text_digest(data: DataSettings) -> str:
    """Digest of the text that was named: a file counts by its content."""
    return source_digest(str(data.text), field=data.field)


def _fingerprint(request: Request) -> Fingerprint:
    """A file of text or of weights counts by its content, not by the folder that it is in."""
    data = request.settings.data
    source = str(data.text)
    inputs = {"content of the text": text_digest(data)}
    is_named = source == BUILTIN or source.startswith("hf:")
    return fingerprint_with(with_data(request, text=source if is_named else Path(source).name), inputs)


def fingerprint_with(request: Request, inputs: Mapping[str, str]) -> Fingerprint:
    """The fingerprint over the settings of model and data, the files of a local model, and these inputs."""
    model = request.settings.model
    model = model.model_copy(update={"name": absolute_name(model.name)})
    request = replace(request, settings=request.settings.model_copy(update={"model": model}))
    state = local_state(as_path(model.name))
    of_model = {"files of the model": runs.digest(state)} if state else {}
    format_ = {"format of the cache": str(CACHE_FORMAT)}
    # One of the two ways of naming hook points is in use.
    unused = ("data.layers", "data.sites") if request.settings.data.hooks else ("data.hooks",)
    without = (*_NO_MATTER, *unused)
    return fingerprint(request, ("model.", "data."), {**inputs, **of_model, **format_}, without=without)


def local_state(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a local model; empty for a model that is no file."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    status = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, facts.st_size, facts.st_mtime_ns) for name, facts in status]


def _work(request: Request, digest: str, resumes: bool) -> tuple[list[Record], dict[str, Any]]:
    from circuitcli.activations.collection import collect
    from circuitcli.activations.source import TextSource, chosen_hooks, collection_of
    from circuitcli.models.loading import load_model

    root = request.run.path / FOLDER
    with changing_nothing():
        check_origin(root, is_known=resumes or request.force)
        model = load_model(request.settings.model)
        hooks = chosen_hooks(request.settings.data, model.adapter)
        text = TextSource.named(model, request.settings.data)
        request = with_data(request, block_length=text.data.block_length)
        # Also where nothing is to be chosen: a text without a token changes nothing.
        begun = [] if resumes else text.first_blocks(n_rows=LOOKED_AT if text.data.dtype == AUTO else 1)
        types = number_types(request, NAME, hooks, choose=partial(text.suited_types, hooks, begun), resumes=resumes)
        check_disk(request, root, types, d_model=model.adapter.d_model)
    prepare(request, root, resumes=resumes)
    named = request.settings.data.hooks
    layers = f"{hooks[0].layer}:{hooks[-1].layer + 1}" if named else request.settings.data.layers
    describe(request, model, layers=layers)
    collected = collect(model, text.documents, collection_of(text.data, root, types, fingerprint=digest))
    return records_of(collected, types, model), facts_of(request, collected, types, model)


def prepare(request: Request, root: Path, *, resumes: bool) -> None:
    """Remove what is not to be gone on with: everything, or what ``collect --verify`` found to be damaged."""
    if not processes.is_main():
        return
    if not resumes:
        shutil.rmtree(root, ignore_errors=True)
    for name in request.run.stage(NAME).get("damaged", ()):
        (root / name).unlink(missing_ok=True)
    request.run.update_stage(NAME, damaged=[])


def check_origin(root: Path, *, is_known: bool) -> None:
    """Raise InputError if there are activations of which nobody knows where they are from."""
    if root.exists() and not is_known:
        raise InputError(
            f"{root} holds activations that the run's manifest does not mention",
            hint="use --force to replace them, or another --run",
        )


def facts_of(
    request: Request, collected: "Collected", types: Mapping[HookPoint, str], model: "LanguageModel"
) -> dict[str, Any]:
    """What the manifest tells of a collection besides its settings: what was chosen where these leave it open."""
    data, bos_id = request.settings.data, model.tokenizer.bos_id
    is_local = data.text is not None and data.text != BUILTIN and not data.text.startswith("hf:")
    return {
        "n_tokens": collected.n_tokens,
        "block_length": data.block_length,
        "dtype": {str(hook): dtype for hook, dtype in types.items()},
        "bos": "one in front of each block, not stored"
        if bos_id is not None
        else "none but that of a text, not stored",
        "bos_id": bos_id,
        **({"text": str(as_path(data.text).absolute())} if is_local and data.text else {}),
    }


def records_of(collected: "Collected", types: Mapping[HookPoint, str], model: "LanguageModel") -> list[Record]:
    """The record of each hook point."""
    return [
        ActivationsRecord(
            hook=str(hook),
            path=f"{FOLDER}/{hook}",
            n_tokens=collected.n_tokens,
            d_model=model.adapter.d_model,
            dtype=types[hook],
            digest=digest,
            bos=model.tokenizer.bos_id is not None,
        )
        for hook, digest in collected.digests.items()
    ]


def check_disk(request: Request, root: Path, types: Mapping[HookPoint, str], *, d_model: int) -> None:
    """Raise InputError if what is still missing cannot fit on the disk."""
    there = sum(file.stat().st_size for file in root.rglob("*.h5"))
    missing = _disk_bytes(request.settings, types.values(), d_model=d_model) - there
    free = _free_bytes(request.run.path)
    if missing > free:
        raise InputError(
            f"the activations need {size(missing)} more and {request.run.path} has {size(free)} free",
            hint="collect fewer --tokens, --layers or --sites, or choose another disk with --run",
        )


def _free_bytes(path: Path) -> int:
    """Free space on the disk of a directory that need not exist yet."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def describe(request: Request, model: "LanguageModel", *, layers: str) -> None:
    """Write into the manifest which model the run belongs to."""
    if not processes.is_main():
        return
    settings = {name: value for name, value in flatten(request.settings).items() if name.startswith("model.")}
    # What was typed is shown; what later commands load must not depend on where they are called.
    settings["model.name"] = absolute_name(model.name)
    is_name = Path(model.name).name not in ("", "..")
    request.run.update_manifest(
        model=model.name if is_name else settings["model.name"],
        revision=model.revision,
        layers=layers,
        model_settings=settings,
        n_layers=model.adapter.n_layers,
        d_model=model.adapter.d_model,
    )


def _memory(settings: Settings, adapter: "ModelAdapter", *, n_hooks: int) -> list[tuple[str, str]]:
    """The weights, what a block makes of each batch under way, on a GPU the rows of all hook points, and those of some
    on their way to the disk."""
    from circuitcli.activations.lanes import blocks_at_once, lanes_on
    from circuitcli.activations.storage.disk import n_buffers
    from circuitcli.models.loading import choose_device

    data, device = settings.data, choose_device(settings.model.device).type
    assert data.block_length is not None
    n_lanes = lanes_on(device)
    n_blocks = blocks_at_once(data.batch_size, block_length=data.block_length, d_model=adapter.d_model, device=device)
    batch = n_blocks * data.block_length * adapter.d_model
    rows = batch * BYTES[data.dtype]
    on_device = weight_bytes(adapter) + n_lanes * _WIDTHS_OF_A_BLOCK * batch * BYTES[settings.model.dtype]
    kept = 0 if device == "cpu" else n_lanes * n_hooks * rows
    return memory(n_buffers(n_lanes) * rows, on_device + kept, device=settings.model.device)
