"""What settings of the data mean for a model: which hook points, which text in which blocks, stored in which types."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from circuitcli.activations.choosing import NumberType, Spread, suited
from circuitcli.activations.plans import Collection
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, hook_points, parse_layers
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import LanguageModel
from circuitcli.models.taps import read
from circuitcli.models.window import window
from circuitcli.settings.data import BLOCK_LENGTH, LOOKED_AT, DataSettings
from circuitcli.text.blocks import Block, Documents, padded, token_blocks
from circuitcli.text.documents import documents
from circuitcli.text.token_ids import Document


@dataclass(frozen=True)
class TextSource:
    """A text as a model is to see it. ``data`` says how it is cut into blocks, whose length is set."""

    model: LanguageModel
    data: DataSettings
    documents: Documents

    @classmethod
    def named(cls, model: LanguageModel, data: DataSettings) -> "TextSource":
        """The text that the settings name. Raises SettingsError for blocks that are longer than the model's window."""
        source, vocabulary = str(data.text), model.tokenizer.vocabulary(n_ids=model.adapter.n_token_ids)

        def read_from(start: int) -> Iterator[Document]:
            return documents(source, field=data.field, vocabulary=vocabulary, chat=data.chat, start=start)

        return cls(model, with_block_length(data, model.adapter), read_from)

    def blocks(self) -> Iterator[Block]:
        """The blocks from the first on."""
        assert self.data.block_length is not None
        return token_blocks(
            self.documents,
            self.model.tokenizer,
            block_length=self.data.block_length,
            pack=self.data.pack,
            special_tokens=self.data.special_tokens,
        )

    def first_blocks(self, *, n_rows: int = LOOKED_AT) -> list[Block]:
        """Blocks with so many rows, or all. Raises InputError if there is nothing that can be stored."""
        taken: list[Block] = []
        for block in self.blocks():
            taken.append(block)
            if sum(each.n_rows for each in taken) >= n_rows:
                break
        if not taken:
            raise InputError(
                f"{self.data.text or 'the text'} has no usable text",
                hint="--text takes a file, a folder, - or hf:NAME; of data with other fields, choose one with --field",
            )
        return taken

    def suited_types(self, hooks: Sequence[HookPoint], blocks: Sequence[Block] = ()) -> dict[HookPoint, NumberType]:
        """The number types that suit what the model has at the hook points, by these blocks or the first ones."""
        return types_for(self.model, hooks, blocks or self.first_blocks())


def with_block_length(data: DataSettings, adapter: ModelAdapter) -> DataSettings:
    """The settings with the length of blocks: as set, else as usual, or the model's window where that is shorter.

    Raises SettingsError for a length that is past the window.
    """
    asked, longest = data.block_length, window(adapter.model.config)
    if asked is None:
        return data.model_copy(update={"block_length": min(BLOCK_LENGTH, longest or BLOCK_LENGTH)})
    if longest is not None and asked > longest:
        raise SettingsError(
            f"data.block_length={asked} is longer than the {longest} tokens that this model can read",
            hint=f"--set data.block_length={longest} or less",
        )
    return data


def chosen_hooks(data: DataSettings, adapter: ModelAdapter) -> list[HookPoint]:
    """The hook points that the settings name. Raises SettingsError for one that the model lacks."""
    if data.hooks:
        hooks = sorted(map(HookPoint.parse, data.hooks))
    else:
        hooks = hook_points(parse_layers(data.layers, n_layers=adapter.n_layers), data.sites)
    for hook in hooks:
        adapter.check(hook)
    return hooks


def types_for(model: LanguageModel, hooks: Sequence[HookPoint], blocks: Sequence[Block]) -> dict[HookPoint, NumberType]:
    """The number types that suit what the model has at the hook points of some blocks."""
    spreads = {hook: Spread() for hook in hooks}
    for block in blocks:
        batch = padded([block], pad_id=model.tokenizer.pad_id)
        with torch.no_grad():
            found = read(model.adapter, batch.input_ids.to(model.adapter.device), None, list(hooks))
        for hook, activation in found.items():
            spreads[hook].add(batch.stored(activation, torch.float32).cpu())
    return {hook: suited(hook, spread) for hook, spread in spreads.items()}


def collection_of(data: DataSettings, root: Path, types: Mapping[HookPoint, str], *, fingerprint: str) -> Collection:
    """What is to be stored below ``root``, as the settings say; the length of blocks is set."""
    assert data.block_length is not None
    return Collection(
        root=root,
        hooks=tuple(types),
        n_tokens=data.tokens,
        block_length=data.block_length,
        batch_size=data.batch_size,
        dtype=next(iter(types.values())),
        shard_tokens=data.shard_tokens,
        fingerprint=fingerprint,
        pack=data.pack,
        special_tokens=data.special_tokens,
        dtypes=types,
    )
