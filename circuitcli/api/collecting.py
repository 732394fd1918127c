"""Storing what a model has at its hook points while it reads a text."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Literal

from circuitcli import runs
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.collection import collect as stored
from circuitcli.activations.source import TextSource, chosen_hooks, collection_of
from circuitcli.activations.storage.shards import FORMAT_VERSION
from circuitcli.activations.storage.token_shards import TokenShard, tokens_path
from circuitcli.api.arguments import Hook, Path, as_hooks, checked, wrong_type
from circuitcli.api.models import as_model
from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.reading import as_path
from circuitcli.settings.data import DataSettings, default_text
from circuitcli.text.documents import source_digest

_HINT = "give the name of a source, such as builtin:python, a file or hf:NAME, or a list of texts"


def collect(
    model: LanguageModel,
    text: Path | Sequence[str] | None = None,
    *,
    layers: str | int = ":",
    sites: str | Sequence[str] = ("resid", "attn", "mlp"),
    hooks: Hook | Iterable[Hook] | None = None,
    tokens: int | None = None,
    path: Path | None = None,
    field: str | None = None,
    chat: bool = False,
    block_length: int | None = None,
    pack: bool = False,
    special_tokens: Literal["keep", "drop"] = "keep",
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    batch_size: int = 32,
    shard_tokens: int = 65_536,
) -> ActivationCache:
    """Activations of a text, as a table with a row for each token: what `train` learns from.

        cache = circuit.collect(model, layers="1:3", sites=["resid", "mlp"], tokens=100_000)
        cache = circuit.collect(model, ["First text.", "Second text."], hooks="resid.1")
        cache = circuit.collect(model, "hf:NeelNanda/pile-10k", hooks=["mlp_in.3", "mlp.3"], path="cache")
        cache.rows(circuit.HookPoint.parse("resid.1"), 0, 128)         # (128, d_model), float32

    text: a source as `circuit collect --text` takes it (``builtin:python``, a file, a folder, ``hf:NAME``), or a list
    of texts; by default builtin:python for models that come with the package, hf:NeelNanda/pile-10k for others. layers:
    a Python slice of blocks. sites: embed, resid_pre, attn_in, attn, resid_mid, mlp_in, mlp, resid. hooks: hook points
    instead of layers and sites. tokens: how many to store, by default 1,000,000, of a list of texts all.

    path: a folder that keeps them; what is there already is not made again, and a call that was broken off goes on.
    Without it they lie in the system's folder for temporary files for as long as the value is used.

    Raises InputError for a text without tokens, a folder that holds other activations, or a full disk; SettingsError
    for hook points that the model lacks.
    """
    name, texts = _named_or_given(text, as_model(model))
    settings = checked(
        DataSettings,
        text=name,
        layers=str(layers),
        sites=sites,
        tokens=tokens,
        field=field,
        chat=chat,
        block_length=block_length,
        pack=pack,
        special_tokens=special_tokens,
        dtype=dtype,
        batch_size=batch_size,
        shard_tokens=shard_tokens,
    )
    source = TextSource.named(model, settings)
    if name is None:
        source = _given(source, texts, tokens)
    chosen = chosen_hooks(settings, model.adapter) if hooks is None else as_hooks(hooks)
    for hook in chosen:
        model.adapter.check(hook)
    if path is not None:
        content = source_digest(name, field=field) if name is not None else runs.digest(texts)
        return _stored(source, chosen, as_path(path), content)
    folder = FilePath(tempfile.mkdtemp(prefix="circuit-"))
    try:
        cache = _stored(source, chosen, folder, "")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(cache, shutil.rmtree, folder, ignore_errors=True)
    return cache


def _named_or_given(text: object, model: LanguageModel) -> tuple[str | None, tuple[str, ...]]:
    """What a source is called, or texts that are given themselves."""
    if text is None:
        return default_text(model.name), ()
    if isinstance(text, str | os.PathLike):
        return os.fspath(text), ()
    if not isinstance(text, Sequence) or not text or not all(isinstance(one, str) for one in text):
        raise wrong_type("text", text, "the name of a source or a list of texts", hint=_HINT)
    return None, tuple(text)


def _given(source: TextSource, texts: tuple[str, ...], tokens: int | None) -> TextSource:
    """The source with texts at hand in place of documents that are read: all, or the first so many tokens."""
    source = replace(source, documents=lambda start: iter(texts[start:]))
    n_rows = sum(block.n_rows for block in source.blocks()) if tokens is None else tokens
    return replace(source, data=source.data.model_copy(update={"tokens": max(1, n_rows)}))


def _stored(source: TextSource, hooks: Sequence[HookPoint], root: FilePath, content: str) -> ActivationCache:
    print_ = _fingerprint(source, hooks, content)
    _check_folder(root, print_)
    collection = collection_of(source.data, root, _types(source, hooks), fingerprint=print_)
    stored(source.model, source.documents, collection)
    return ActivationCache(root, hooks)


def _types(source: TextSource, hooks: Sequence[HookPoint]) -> dict[HookPoint, str]:
    """In what each hook point is stored; the first tokens of a text are the same however often one looks."""
    if source.data.dtype != "auto":
        source.first_blocks(n_rows=1)
        return dict.fromkeys(hooks, source.data.dtype)
    return {hook: found.dtype for hook, found in source.suited_types(hooks).items()}


def _fingerprint(source: TextSource, hooks: Sequence[HookPoint], content: str) -> str:
    """Of all that the stored numbers depend on."""
    model, adapter = source.model, source.model.adapter
    of_model = [model.name, model.revision, str(adapter.dtype), model.tokenizer.bos_id]
    of_data = source.data.model_dump(exclude={"batch_size", "hooks", "layers", "sites", "text"})
    return runs.digest([of_model, of_data, [*map(str, hooks)], content, FORMAT_VERSION])


def _check_folder(root: FilePath, fingerprint: str) -> None:
    """Raise InputError if a folder holds something else than what is to be stored there."""
    first = tokens_path(root, 0)
    if first.is_file():
        try:
            is_own = TokenShard.open(first).fingerprint == fingerprint
        except InputError:
            is_own = True
    else:
        is_own = not root.exists() or (root.is_dir() and not any(file.is_file() for file in root.glob("*/[0-9]*.h5")))
    if not is_own or (root.exists() and not root.is_dir()):
        raise InputError(
            f"{root} holds other activations than those that are asked for, or something else",
            hint="give another path, or remove what is there",
        )
