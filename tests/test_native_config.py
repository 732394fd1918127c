"""config.json of a native SAE: its schema, and the digest of weights and configuration that records hold."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange_support import D_SAE, random_sae, random_transcoder

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import SaeRecord, Stream
from circuitcli.runs import Run, file_digest
from circuitcli.saes import files, folder
from circuitcli.saes.architectures import ARCHITECTURES
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.exchange import formats
from circuitcli.settings.settings import Settings
from circuitcli.stages.request import Request
from circuitcli.stages.saes import load_saes, sae_sources

DEEP = "[" * 30_000 + "]" * 30_000
# None of these makes sense in a field that decides codes, unless it is that field's own kind.
NONSENSE = ["x", "", -1, 0, 1.5, 10**30, float("nan"), float("inf"), [], {}, [[1]], {"a": 1}, True, "\ud800"]
# Another value that makes sense.
OTHER: dict[str, Any] = {
    "hook": "resid.1",
    "normalisation": "centre",
    "subtract_decoder_bias": True,
    "target": "resid.2",
    "k": 5,
    "before_gain": True,
}


def changed(directory: Path, **changes: Any) -> None:
    path = directory / folder.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_schema_knows_what_every_architecture_and_every_sae_has():
    assert {name: made.option_names for name, made in ARCHITECTURES.items()} == folder.OPTIONS
    known = folder.NativeConfig.model_fields
    options = {name for names in folder.OPTIONS.values() for name in names}
    assert {field.name for field in fields(SaeConfig)} | options <= set(known)
    for name in folder.OPTIONS:
        config = folder.NativeConfig(
            architecture=name, hook="mlp_in.1", target="mlp.1", further=["mlp.2"], d_in=2, d_sae=4
        )
        expected = {field.name for field in fields(SaeConfig)} | {*folder.OPTIONS[name], "architecture", "before_gain"}
        assert set(config.deciding()) == expected


def test_the_digest_covers_what_decides_the_codes_and_no_score(tmp_path: Path):
    sae = random_transcoder("topk", subtract_decoder_bias=False)
    digest = files.save(sae, tmp_path, explained_variance=0.5)
    changed(tmp_path, explained_variance=float("nan"), l0=3, whatever=[1, {"deep": 2}], notes=["read"])
    assert folder.sae_digest(tmp_path) == digest == formats.find(tmp_path)[0].digest
    whole = (tmp_path / folder.CONFIG).read_text()
    seen = {digest}
    for name, value in OTHER.items():
        changed(tmp_path, **{name: value})
        seen.add(folder.sae_digest(tmp_path))
        (tmp_path / folder.CONFIG).write_text(whole)
    files.save(random_transcoder("topk", seed=1), tmp_path)
    assert len(seen | {folder.sae_digest(tmp_path)}) == len(OTHER) + 2


@pytest.mark.parametrize("architecture", ["topk", "matching_pursuit", "relu"])
def test_a_config_of_nonsense_is_refused_by_file_and_field(architecture: str, tmp_path: Path):
    sae = random_sae(architecture)
    files.save(sae, tmp_path, model="gpt2", bos=True, context_length=16, l0=3.0)
    path = tmp_path / folder.CONFIG
    content, refused = json.loads(path.read_text()), 0
    for name in content:
        for value in NONSENSE:
            path.write_text(json.dumps(content | {name: value}))
            try:
                found = formats.read(formats.find(tmp_path)[0])
            except InputError as error:
                assert str(tmp_path) in error.message and error.hint
                refused += 1
            else:
                assert found.sae.W_enc.shape == sae.W_enc.shape and name not in ("format", "architecture", "hook")
    assert refused > 8 * len(content)
    for text in (DEEP, "[]", '"x"', "3", '{"format": 1' + "0" * 5000 + "}", "\xff", '{"format": 1}'):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(InputError):
            formats.find(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": D_SAE + 1}, "'k' is 18, more than the 17 features"),
        ({"k": 0}, "'k' is 0"),
        ({"normalisation": "bogus"}, "'normalisation' is 'bogus'"),
        ({"skip": True}, "has a skip connection"),
        ({"d_out": 3}, "has 3 outputs"),
        ({"target": "resid.1"}, r"predicts resid\.1 from resid\.2, which comes after it"),
        ({"d_sae": 10**9}, "has shape"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict, message: str, tmp_path: Path):
    files.save(random_sae("topk"), tmp_path)
    changed(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        formats.read(formats.find(tmp_path)[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(dtype: torch.dtype, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    files.save(random_sae("topk"), tmp_path)
    tensors = load_file(tmp_path / folder.WEIGHTS)
    save_file(tensors | {"b_enc": tensors["b_enc"].to(dtype)}, tmp_path / folder.WEIGHTS)
    with pytest.raises(InputError, match="b_enc holds"):
        files.load(tmp_path)


def request(path: Path, digest: str) -> Request:
    record = SaeRecord(hook="resid.2", architecture="topk", d_in=6, d_sae=D_SAE, path="saes/resid.2", digest=digest)
    return Request(Settings(), Stream([record]), Run(path))


def loaded(path: Path, digest: str) -> Any:
    made = request(path, digest)
    return load_saes(sae_sources(made, stage="interp"), [HookPoint(2, "resid")], model="gpt2", adapter=None)


def test_a_runs_sae_is_the_recorded_one_in_weights_and_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    directory = tmp_path / "saes/resid.2"
    digest = files.save(random_sae("topk"), directory)
    assert loaded(tmp_path, digest) and not caplog.records
    changed(directory, k=3)
    with pytest.raises(InputError, match=r"weights or configuration in .* are not those that were recorded"):
        loaded(tmp_path, digest)


def test_a_record_of_the_weights_alone_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    directory = tmp_path / "saes/resid.2"
    files.save(random_sae("topk"), directory)
    earlier = file_digest(directory / folder.WEIGHTS)
    with caplog.at_level(logging.WARNING, logger="circuitcli"):
        assert loaded(tmp_path, earlier)
    (record,) = caplog.records
    assert "of an earlier version and holds for its weights alone" in record.getMessage()
    files.save(random_sae("topk", seed=1), directory)
    with pytest.raises(InputError, match="not those that were recorded"):
        loaded(tmp_path, earlier)
