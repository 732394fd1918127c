"""What `circuit collect` chooses where the settings leave it open: it is kept, said, and the same from everywhere."""

import json
import logging

import numpy as np
import pytest
import torch
from support_collect import (
    BOS,
    hf_gpt2,
    hf_tokenizer,
    language_model,
    save_model,
    stage_request,
    stored_bytes,
    texts,
    tokenizer,
)
from test_prompts import TALK, TEMPLATE

from circuitcli.activations import source
from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.choosing import MOST_ROUNDING, ROOM, Spread, suited
from circuitcli.activations.storage.shards import DTYPES
from circuitcli.cli.jobs import with_model_of
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models import taps
from circuitcli.models.loading import load_model
from circuitcli.runs import Run
from circuitcli.settings.model import ModelSettings, absolute_name
from circuitcli.settings.sources import load
from circuitcli.stages import collect

RESID = HookPoint(2, "resid")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("model"))
    hf = hf_tokenizer()
    hf.chat_template = TEMPLATE
    hf.save_pretrained(folder)
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in rows))
    return path


def loud_model(folder, *, norm):
    """The tests' model with a constant vector of this norm that its last MLP adds to the stream."""
    hf = hf_gpt2()
    with torch.no_grad():
        hf.transformer.h[2].mlp.c_proj.bias.add_(norm * torch.nn.functional.normalize(torch.arange(24.0) - 11, dim=0))
    hf.save_pretrained(folder)
    hf_tokenizer().save_pretrained(folder)
    return folder


def rounding_slowly(x, dtype):
    """Number by number."""
    mean = x.double().mean(dim=0).tolist()
    pairs = [
        pair for a, b in zip(x.tolist(), x.to(dtype).double().tolist(), strict=True) for pair in zip(a, b, strict=True)
    ]
    spread = sum((value - mean[at % len(mean)]) ** 2 for at, (value, _) in enumerate(pairs))
    return sum((a - b) ** 2 for a, b in pairs) / spread


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("constant", [0.0, 1.0, 30.0, 3000.0])
def test_the_chosen_type_is_the_first_that_holds_range_and_variance(scale, constant):
    generator = torch.Generator().manual_seed(int(constant))
    x = scale * (torch.randn(60, 24, generator=generator) + constant * torch.linspace(1, 2, 24))
    spread, shares = Spread(), {name: rounding_slowly(x, dtype) for name, dtype in DTYPES.items()}
    for part in x.split(17):
        spread.add(part)
    assert {name: spread.rounding(name) for name in DTYPES} == pytest.approx(shares, rel=1e-4, abs=1e-15)
    chosen = suited(RESID, spread)
    fits = {
        name: float(x.abs().max()) * ROOM <= torch.finfo(dtype).max and shares[name] <= MOST_ROUNDING
        for name, dtype in DTYPES.items()
    }
    assert chosen.dtype == next(name for name in ("float16", "bfloat16", "float32") if fits[name])
    assert ("resid.2" in chosen.reason) == (chosen.dtype != "float16")
    assert chosen.reason.count("; ") == (chosen.dtype == "float32")


def test_rows_that_do_not_vary_are_judged_by_their_size():
    for value in (0.0, 1.0, 1.0001):
        assert Spread.of(torch.full((3, 2), value)).rounding("float16") < 1e-7


@pytest.mark.parametrize(("norm", "dtype"), [(0, "float16"), (2000, "float32")])
def test_the_choice_of_each_hook_point_is_in_records_manifest_and_files_and_said(tmp_path, caplog, norm, dtype):
    folder = loud_model(tmp_path / "model", norm=norm)
    text = write(tmp_path / "text.jsonl", *texts(40, 30, 50, 20))
    with caplog.at_level(logging.INFO):
        _, *made = collect.run(stage_request(tmp_path / "run", folder, text, tokens=100))
    entry = Run(tmp_path / "run").stage("collect")
    expected = {"mlp.1": "float16", "resid.1": "float16", "mlp.2": dtype, "resid.2": dtype}
    assert {record.hook: record.dtype for record in made} == entry["dtype"] == expected
    said = [record.getMessage() for record in caplog.records if "stored as" in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == (["mlp.2 resid.2 are stored as float32"] if norm else [])
    assert set(entry["dtype_reasons"]) == ({"mlp.2", "resid.2"} if norm else set())
    cache = ActivationCache(tmp_path / "run" / "activations", [HookPoint.parse(hook) for hook in expected])
    assert [cache.dtype(hook) for hook in cache.hooks] == [DTYPES[name] for name in expected.values()]
    block = next(cache.blocks(0, cache.n_tokens))
    own = taps.read(load_model(ModelSettings(name=str(folder))).adapter, torch.tensor([block.ids]), None, cache.hooks)
    for hook in cache.hooks:
        rows = own[hook][0, block.positions].detach()
        stored = cache.rows(hook, block.start_row, block.stop_row)
        torch.testing.assert_close(stored, rows.to(cache.dtype(hook)).float(), rtol=1e-3, atol=1e-3)


def test_a_collection_goes_on_with_the_type_that_it_began_with(tmp_path, model, monkeypatch):
    text = write(tmp_path / "text.jsonl", *texts(*(20 + 7 * n % 50 for n in range(12))))
    ask = lambda name, **data: stage_request(tmp_path / name, model, text, **data)  # noqa: E731
    collect.run(ask("whole"))
    collect.run(ask("broken"))
    for file in (tmp_path / "broken" / "activations").glob("*/00002.h5"):
        file.unlink()
    Run(tmp_path / "broken").update_stage("collect", state="interrupted")
    # Whatever would be chosen now.
    monkeypatch.setattr(source, "types_for", None)
    collect.run(ask("broken"))
    assert stored_bytes(tmp_path / "broken" / "activations") == stored_bytes(tmp_path / "whole" / "activations")


def test_a_type_that_is_set_is_taken_and_overflow_is_one_clear_line(tmp_path):
    folder = loud_model(tmp_path / "model", norm=3e5)
    text = write(tmp_path / "text.jsonl", *texts(40, 30, 50, 20))
    with pytest.raises(InputError, match="above 65504, the largest float16"):
        collect.run(stage_request(tmp_path / "run", folder, text, dtype="float16"))
    _, *made = collect.run(stage_request(tmp_path / "run", folder, text, dtype="bfloat16", force=True))
    assert {record.dtype for record in made} == {"bfloat16"}


def test_blocks_are_as_long_as_the_window_of_a_model_with_a_short_one(tmp_path, model):
    text = write(tmp_path / "text.jsonl", *texts(200, 50))
    run = Run(tmp_path / "run")
    collect.run(stage_request(run.path, model, text, block_length=None))
    cache = ActivationCache(run.path / "activations", [RESID])
    assert (
        max(len(block.ids) for block in cache.blocks(0, cache.n_tokens)) == 64 == run.stage("collect")["block_length"]
    )
    assert dict(collect.plan(stage_request(tmp_path / "other", model, text, block_length=None)))["tokens"] == "300"
    with pytest.raises(SettingsError, match="longer than the 64 tokens that this model can read"):
        collect.run(stage_request(tmp_path / "other", model, text, block_length=65))


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_a_text_that_begins_with_bos_gives_what_it_gives_without_and_it_is_said(tmp_path, model, bos):
    documents = texts(30, 20, 40)
    requests = []
    for name, front in (("plain", ""), ("fronted", "<|bos|>")):
        request = stage_request(
            tmp_path / name, model, write(tmp_path / f"{name}.jsonl", *(front + d for d in documents))
        )
        settings = request.settings.model_copy(update={"model": request.settings.model.model_copy(update={"bos": bos})})
        requests.append(type(request)(settings, request.records, request.run))
    plain, fronted = (collect.run(request)[1:] for request in requests)
    assert {record.bos for record in (*plain, *fronted)} == {bos == "auto"}
    if bos == "auto":
        assert [record.digest for record in plain] == [record.digest for record in fronted]
    cache = ActivationCache(tmp_path / "fronted" / "activations", [RESID])
    assert BOS not in cache.tokens(0, cache.n_tokens).token
    block = next(cache.blocks(0, cache.n_tokens))
    assert block.ids[0] == BOS and block.positions[0] == 1
    with torch.no_grad():
        own = taps.read(language_model().adapter, torch.tensor([block.ids]), None, [RESID])[RESID][0, block.positions]
    torch.testing.assert_close(cache.rows(RESID, 0, len(block.positions)), own, rtol=2e-3, atol=2e-3)
    entry = Run(tmp_path / "fronted").stage("collect")
    assert (entry["bos_id"] is None) == (bos == "never") and "not stored" in entry["bos"]


def test_messages_and_chats_are_collected_as_the_template_writes_them(tmp_path, model):
    written = "[user]one<|eos|>[assistant]two<|eos|>[user]3<|eos|>"
    cases = (
        ({"messages": TALK}, {}, written),
        ({"talk": TALK}, {"field": "talk"}, written),
        ({"text": "a"}, {"chat": True}, "[user]a<|eos|>"),
    )
    for number, (row, data, expected) in enumerate(cases):
        text = write(tmp_path / f"{number}.jsonl", row)
        collect.run(stage_request(tmp_path / str(number), model, text, block_length=64, **data))
        cache = ActivationCache(tmp_path / str(number) / "activations", [RESID])
        assert cache.tokens(0, cache.n_tokens).token.tolist() == tokenizer().encode(expected)
    plain = save_model(tmp_path / "plain")
    with pytest.raises(InputError, match="document 0, counted from 0: this model has no chat template"):
        collect.run(stage_request(tmp_path / "run", plain, text, chat=True))
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_tokenizer_reads_token_ids_and_no_text(tmp_path):
    folder = tmp_path / "model"
    hf_gpt2().save_pretrained(folder)
    np.save(tmp_path / "ids.npy", np.array([[BOS, *range(20)]] * 3, dtype=np.uint16))
    _, *made = collect.run(stage_request(tmp_path / "run", folder, tmp_path / "ids.npy", tokens=60))
    assert {record.bos for record in made} == {True} and made[0].n_tokens == 60
    with pytest.raises(InputError, match="has no tokenizer, and a text needs one") as caught:
        collect.run(stage_request(tmp_path / "other", folder, write(tmp_path / "text.jsonl", "a text")))
    assert ".npy" in caught.value.hint and not (tmp_path / "other").exists()


def test_a_run_made_with_a_relative_model_works_from_any_folder(inside, monkeypatch):
    save_model(inside / "m")
    write(inside / "text.jsonl", *texts(40, 30))
    first = collect.run(stage_request(inside / "run", "./m", "text.jsonl", tokens=50))
    manifest = Run(inside / "run").manifest()
    assert (first[0].model, manifest["model"]) == ("./m", "./m")
    assert manifest["model_settings"]["model.name"] == str(inside / "m")
    assert manifest["stages"]["collect"]["text"] == str(inside / "text.jsonl")
    (inside / "elsewhere").mkdir()
    monkeypatch.chdir(inside / "elsewhere")
    assert collect.run(stage_request(inside / "run", "../m", "../text.jsonl", tokens=50)) == first
    for flags in ({}, {"model.name": "../m"}, {"model.name": str(inside / "m")}):
        loaded = with_model_of(Run(inside / "run"), load(flags, environment={}))
        assert loaded.settings.model.name == str(inside / "m")
    with pytest.raises(InputError, match=r"was made with model\.name"):
        with_model_of(Run(inside / "run"), load({"model.name": "m"}, environment={}))


def test_a_run_of_an_older_version_keeps_its_relative_model(inside):
    (inside / "m").mkdir()
    Run(inside / "run").update_manifest(model="./m", model_settings={"model.name": "./m"})
    for flags in ({}, {"model.name": "m"}):
        assert with_model_of(Run(inside / "run"), load(flags, environment={})).settings.model.name == "./m"


@pytest.mark.parametrize(
    ("name", "kept"), [("builtin:tiny", True), ("gpt2", True), ("org/name", True), ("x.gguf", False)]
)
def test_only_local_models_get_a_whole_path(inside, name, kept):
    assert (absolute_name(name) == name) == kept


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_text_is_a_usage_error(text):
    with pytest.raises(SettingsError, match="--text is empty"):
        load({"data.text": text}, environment={})
