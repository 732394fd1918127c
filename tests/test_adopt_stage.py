"""`circuit collect --from`: what SAELens cached becomes a cache like one's own, if it is the model's."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support_collect import BOS, EOS, PAD, save_model, stage_request, stored_bytes
from support_sae_lens import HOOK, LENGTH, activations_of, contexts, save, save_with_sae_lens

from circuitcli.activations.cache import ActivationCache
from circuitcli.activations.sae_lens import CachedContexts
from circuitcli.activations.storage.token_shards import TokenShard
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import Stream
from circuitcli.runs import Run
from circuitcli.saes.exchange import formats
from circuitcli.settings.sae import SaeSettings
from circuitcli.settings.train import TrainSettings
from circuitcli.stages import adopt, collect, export, interp, train
from circuitcli.stages.request import Request

IDS = contexts(35)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return save(tmp_path_factory.mktemp("cached") / "resid", IDS, activations_of(IDS))


def request_of(run, model, cached, *, force=False, bos="auto", **data):
    usual = dict(
        activations=f"sae_lens:{cached}", tokens=10**6, shard_tokens=60, layers=":", dtype="float32", text=None
    )
    request = stage_request(run, model, force=force, **(usual | data))
    settings = request.settings
    changed = settings.model_copy(update={"model": settings.model.model_copy(update={"bos": bos})})
    return type(request)(changed, request.records, request.run, request.force)


def cache_of(run, hook=HOOK):
    return ActivationCache(run / "activations", [hook])


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_rows_and_text_are_those_that_were_cached(tmp_path, model, cached, policy):
    run, record = adopt.run(request_of(tmp_path / "run", model, cached, special_tokens=policy))
    special = {BOS, EOS, PAD} if policy == "drop" else set()
    kept = torch.tensor([[at > 0 and token not in special for at, token in enumerate(row)] for row in IDS.tolist()])
    cache = cache_of(tmp_path / "run")
    assert (record.hook, record.n_tokens, record.d_model) == ("resid.1", int(kept.sum()), 24) and run.layers == "1"
    assert torch.equal(cache.rows(HOOK, 0, cache.n_tokens), activations_of(IDS)[kept])
    shown = [row for row, places in zip(IDS.tolist(), kept, strict=True) if places.any()]
    assert [block.ids for block in cache.blocks(0, cache.n_tokens)] == shown


def test_it_is_the_cache_that_the_model_itself_would_fill(tmp_path, model, cached):
    np.save(tmp_path / "rows.npy", IDS[:17].numpy())
    collect.run(
        stage_request(
            tmp_path / "own",
            model,
            tmp_path / "rows.npy",
            layers="1",
            sites=("resid",),
            block_length=LENGTH,
            tokens=17 * (LENGTH - 1),
            dtype="float32",
        )
    )
    adopt.run(request_of(tmp_path / "run", model, cached, tokens=17 * (LENGTH - 1)))
    own, other = cache_of(tmp_path / "own"), cache_of(tmp_path / "run")
    assert own.n_tokens == other.n_tokens == 17 * (LENGTH - 1)
    for name in ("token", "block", "position"):
        columns = [getattr(cache.tokens(0, cache.n_tokens), name) for cache in (own, other)]
        assert torch.equal(*columns)
    assert torch.allclose(own.rows(HOOK, 0, 187), other.rows(HOOK, 0, 187), rtol=1e-4, atol=1e-4)
    shards = [sorted((tmp_path / name / "activations" / "tokens").glob("*.h5")) for name in ("own", "run")]
    assert len(shards[0]) == len(shards[1]) == 3
    for pair in zip(*shards, strict=True):
        one, two = (replace(TokenShard.open(path), fingerprint="") for path in pair)
        assert one == two


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_train_interp_and_export_work_on_it(tmp_path, model, bos):
    ids = IDS if bos == "auto" else IDS[:, 1:]
    cached = save(tmp_path / "cached", ids, activations_of(ids))
    request = request_of(tmp_path / "run", model, cached, special_tokens="drop", bos=bos)
    settings = request.settings.model_copy(
        update={"sae": SaeSettings(d_sae=40, k=4), "train": TrainSettings(batch_size=16, eval_tokens=64)}
    )
    made = adopt.run(request)
    trained = train.run(Request(settings, Stream(made), request.run))
    assert [record.hook for record in trained] == ["resid.1"]
    # The model read the text again for it.
    assert '"ce_clean"' in (tmp_path / "run" / trained[0].path / "config.json").read_text()
    later = Request(settings, Stream([*made, *trained]), request.run)
    assert interp.run(later)
    (exported,) = export.run(later, format_="sae_lens", output=str(tmp_path / "out"))
    about = formats.read(formats.find(Path(exported.path), "sae_lens")[0]).about
    assert (about.bos, about.context_length) == (bos == "auto", ids.shape[1])


def test_a_broken_import_goes_on_to_the_same_bytes(tmp_path, model, cached, monkeypatch):
    adopt.run(request_of(tmp_path / "whole", model, cached))
    whole = stored_bytes(tmp_path / "whole" / "activations")
    real, read = CachedContexts.activations, []

    def broken(self, blocks):
        read.append(blocks)
        if len(read) == 6:
            raise KeyboardInterrupt
        return real(self, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(CachedContexts, "activations", broken)
        with pytest.raises(KeyboardInterrupt):
            adopt.run(request_of(tmp_path / "broken", model, cached))
    assert 0 < len(stored_bytes(tmp_path / "broken" / "activations")) < len(whole)
    adopt.run(request_of(tmp_path / "broken", model, cached))
    assert stored_bytes(tmp_path / "broken" / "activations") == whole


def test_a_finished_import_answers_without_torch(tmp_path, model, cached):
    made = adopt.run(request_of(tmp_path / "run", model, cached))
    assert adopt.run(request_of(tmp_path / "run", model, cached)) == made
    program = f"""if True:
        import sys
        from circuitcli.__main__ import main
        sys.argv = ["circuit", "collect", "--model", {str(model)!r}, "--from", "sae_lens:" + {str(cached)!r},
            "--run", {str(tmp_path / "run")!r}, "--device", "cpu", "--tokens", "1000000",
            *("--set=data." + text for text in ("shard_tokens=60", "dtype=float32", "sites=resid,mlp",
                "block_length=16", "batch_size=4"))]
        status = main()
        assert not {{"torch", "transformers", "datasets", "h5py"}} & set(sys.modules)
        sys.exit(status)
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


def test_other_files_of_the_same_name_are_another_import(tmp_path, model, cached):
    adopt.run(request_of(tmp_path / "run", model, cached))
    (tmp_path / "other").mkdir()
    other = save(tmp_path / "other" / cached.name, IDS[:9], activations_of(IDS[:9]))
    with pytest.raises(InputError, match="files of the cached activations was"):
        adopt.run(request_of(tmp_path / "run", model, other))


def test_too_few_tokens_are_said_and_all_are_taken(tmp_path, model, cached, caplog):
    with caplog.at_level(logging.WARNING):
        adopt.run(request_of(tmp_path / "run", model, cached))
    assert f"there are {35 * (LENGTH - 1)} tokens, fewer than the 1000000 asked for" in caplog.text


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("blocks.1.hook_resid_pre", HookPoint(1, "resid_pre")),
        ("blocks.1.hook_attn_out", HookPoint(1, "attn")),
        ("blocks.0.hook_resid_mid", HookPoint(0, "resid_mid")),
        ("blocks.2.hook_mlp_out", HookPoint(2, "mlp")),
        ("transformer.h.1", HookPoint(1, "resid")),
        ("transformer.h.2.attn", HookPoint(2, "attn")),
        ("transformer.h.0.mlp", HookPoint(0, "mlp")),
    ],
)
def test_hook_points_have_their_names_in_both_languages(tmp_path, model, name, hook):
    folder = save(tmp_path / "cached", IDS[:9], activations_of(IDS[:9], hook), name=name)
    assert adopt.run(request_of(tmp_path / "run", model, folder))[1].hook == str(hook)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.attn.hook_z", "attn.hook_z' is not one that circuit knows"),
        ("blocks.1.ln2.hook_normalized", "before its weight, which is not a hook point here"),
        ("blocks.2.hook_resid_post", r"are not those of .*: at resid.2 they differ by \d+% of their norm"),
    ],
)
def test_activations_of_another_hook_point_are_refused(tmp_path, model, name, message):
    folder = save(tmp_path / "cached", IDS[:9], activations_of(IDS[:9]), name=name)
    with pytest.raises(InputError, match=message) as caught:
        adopt.run(request_of(tmp_path / "run", model, folder))
    assert caught.value.hint and not (tmp_path / "run" / "activations").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, x: (ids, x[..., :20]), "they are 20 wide, and resid.1 is 24"),
        (
            lambda ids, x: (ids + 1000 * (ids == ids[5, 9]), x),
            r"has token id 1\d+ at position \d+, but this model has ids 0 to 259",
        ),
        (lambda ids, x: (ids[:, 1:], x[:, 1:]), r"begins with token \d+, not with BOS"),
        (lambda ids, x: (ids.roll(1, dims=0), x), "they differ by"),
        (lambda ids, x: (ids, x - x.mean(dim=-1, keepdim=True)), "they differ by"),
        (lambda ids, x: (ids, x * float("nan")), "they differ by"),
    ],
)
def test_activations_that_the_model_does_not_give_are_refused(tmp_path, model, change, message):
    ids, x = change(IDS[1:9], activations_of(IDS[1:9]) + 0.5 * (message == "they differ by"))
    with pytest.raises(InputError, match=message):
        adopt.run(request_of(tmp_path / "run", model, save(tmp_path / "cached", ids, x)))
    assert not (tmp_path / "run" / "activations").exists()


def test_contexts_without_bos_belong_to_a_model_without(tmp_path, model):
    ids = IDS[:9, 1:]
    folder = save(tmp_path / "cached", ids, activations_of(ids))
    adopt.run(request_of(tmp_path / "run", model, folder, bos="never"))
    assert cache_of(tmp_path / "run").n_tokens == ids.numel()
    assert Run(tmp_path / "run").manifest()["model_settings"]["model.bos"] == "never"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (dict(text="builtin:python"), SettingsError, "come with their own text"),
        (dict(field="text"), SettingsError, "come with their own text, to which --field does not apply"),
        (dict(chat=True), SettingsError, "come with their own text, to which --chat does not apply"),
        (dict(activations="tensors:here"), SettingsError, "'tensors:here' is not a cache of activations"),
        (dict(activations="sae_lens:nowhere"), InputError, "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, model, cached, data, error, message):
    with pytest.raises(error, match=message) as caught:
        adopt.run(request_of(tmp_path / "run", model, cached, **data))
    assert caught.value.hint


def test_the_plan_tells_what_is_there(tmp_path, model, cached):
    rows = dict(adopt.plan(request_of(tmp_path / "run", model, cached)))
    assert rows["hook point"] == "resid.1, blocks.1.hook_resid_post there"
    assert rows["tokens"] == f"1,000,000 of {35 * LENGTH}" and rows["disk"].startswith("112 MB of ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_sae_lens_itself_wrote_is_taken_over(tmp_path, model, dtype):
    folder = save_with_sae_lens(tmp_path, model, IDS, name="transformer.h.1", dtype=dtype)
    adopt.run(request_of(tmp_path / "run", model, folder))
    cache = cache_of(tmp_path / "run")
    blocks = list(cache.blocks(0, cache.n_tokens))
    assert [block.ids for block in blocks] == IDS[: len(blocks)].tolist() and len(blocks) == 32
    rows = cache.rows(HOOK, 0, cache.n_tokens).view(32, LENGTH - 1, 24)
    tolerance = {"float32": 1e-4, "float16": 2e-3}[dtype]
    assert torch.allclose(rows, activations_of(IDS[:32])[:, 1:], rtol=tolerance, atol=tolerance)
