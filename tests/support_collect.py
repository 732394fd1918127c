"""A tokenizer without training, a model that can be saved, and hand-made caches, for the tests of activations."""

from functools import cache
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from circuitcli.activations.plans import Collection
from circuitcli.activations.storage.shards import DTYPES, hook_path
from circuitcli.activations.storage.stored_rows import StoredRows
from circuitcli.activations.storage.token_shards import TokenRows, TokenShard, tokens_path, write_tokens
from circuitcli.activations.storage.writing import RowsWriter
from circuitcli.hookpoints import HookPoint
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.loading import LanguageModel
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.settings.data import DataSettings
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request
from circuitcli.text.blocks import Cursor

BOS, EOS, PAD, UNK = range(256, 260)
SPECIAL = {"<|bos|>": BOS, "<|eos|>": EOS, "<|pad|>": PAD, "<|unk|>": UNK}
HOOKS = (HookPoint(0, "resid"), HookPoint(1, "attn"), HookPoint(1, "mlp_in"))


def hf_tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token, and the special ones follow from number 256 on."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | SPECIAL
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    named = {f"{name[2:-2]}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


@cache
def tokenizer(bos: str = "auto") -> Tokenizer:
    return Tokenizer(hf_tokenizer(), bos=bos)


def hf_gpt2(seed: int = 0) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = dict(n_layer=3, n_embd=24, n_head=3, vocab_size=260, n_positions=64)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=BOS, eos_token_id=EOS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def language_model(bos: str = "auto") -> LanguageModel:
    return LanguageModel(ModelAdapter.of(hf_gpt2()), tokenizer(bos), "test", None)


def save_model(directory: Path) -> Path:
    """A directory that `--model` takes."""
    hf_gpt2().save_pretrained(directory)
    hf_tokenizer().save_pretrained(directory)
    return directory


def texts(*lengths: int) -> list[str]:
    """Documents of so many letters, all different."""
    return ["".join(chr(97 + (7 * n + 3 * at + at * at // 5) % 26) for at in range(m)) for n, m in enumerate(lengths)]


def source(documents: list[str]):
    """The documents as `collect` asks for them."""
    return lambda start: iter(documents[start:])


def collection(root: Path, **changes) -> Collection:
    usual = dict(
        root=root,
        hooks=HOOKS,
        n_tokens=10**6,
        block_length=16,
        batch_size=4,
        dtype="float32",
        shard_tokens=50,
        fingerprint="test",
    )
    return Collection(**(usual | changes))


def complete(writer: RowsWriter) -> None:
    """All that is done with a file whose rows are there."""
    writer.finish()
    writer.sync()
    writer.publish()


def write_cache(root: Path, sizes: list[int], widths: dict[HookPoint, int], *, dtype: str = "float32") -> None:
    """Shards of so many rows; row n of a hook point of width w is n times the vector 1/w, 2/w, ..., 1."""
    numbers = torch.arange(sum(sizes))[:, None]
    rows = {hook: numbers * (torch.arange(1, width + 1) / width) for hook, width in widths.items()}
    write_rows(root, sizes, rows, dtype=dtype)


def write_rows(root: Path, sizes: list[int], rows: dict[HookPoint, torch.Tensor], *, dtype: str = "float32") -> None:
    """Shards of so many of these rows each, a block of text in each."""
    first = 0
    for index, n_rows in enumerate(sizes):
        numbers = torch.arange(first, first + n_rows)
        for hook, own in rows.items():
            path = hook_path(root, hook, index)
            width = own.shape[1]
            writer = RowsWriter(path, hook=hook, pieces=[n_rows], d_model=width, dtype=dtype, first_row=first)
            writer.put(StoredRows.of(own[numbers].to(DTYPES[dtype])), [0])
            complete(writer)
        shard = TokenShard(
            n_rows=n_rows,
            first_row=first,
            cursor=Cursor(index + 1, 0, index + 1),
            is_last=index == len(sizes) - 1,
            bos_id=BOS,
            fingerprint="test",
        )
        tokens = TokenRows(numbers % 256, torch.full((n_rows,), index), torch.arange(1, n_rows + 1))
        write_tokens(tokens_path(root, index), tokens, shard)
        first += n_rows


def text_of_rows(block: list[int], has_row: list[bool], start: int, stop: int) -> list[int]:
    """Which tokens of a text belong to some of its rows: a token without a row goes with the next row of its block,
    else with the last one."""
    rows = [number for number, has in enumerate(has_row) if has]
    row_of = {number: row for row, number in enumerate(rows)}
    chosen = []
    for number, name in enumerate(block):
        inside = [row_of[other] for other in rows if block[other] == name]
        later = [row for row in inside if rows[row] >= number]
        if inside and start <= (later[0] if later else inside[-1]) < stop:
            chosen.append(number)
    return chosen


def stored_bytes(root: Path) -> dict[str, bytes]:
    """Every file of a cache."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def stage_request(run: Path, model: Path | str, text: Path | str | None, *, force: bool = False, **data) -> Request:
    """What `circuit collect` asks of its stage."""
    usual = dict(layers="1:", sites=("resid", "mlp"), tokens=300, block_length=16, shard_tokens=60, batch_size=4)
    settings = Settings(
        model=ModelSettings(name=str(model), device="cpu"),
        data=DataSettings(**(usual | {"text": None if text is None else str(text)} | data)),
    )
    return Request(settings, Stream(), Run(run), force)
