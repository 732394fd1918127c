"""Which coders make a circuit: by what they read and write, told without their weights."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exchange_support import D_IN, inputs, random_sae

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.records import SaeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.exchange.choosing import chosen, resolve
from circuitcli.saes.exchange.naming import texts_of
from circuitcli.saes.exchange.place import ACROSS, Place
from circuitcli.settings.settings import Settings
from circuitcli.stages import fitting
from circuitcli.stages.request import Request
from circuitcli.stages.saes import graph_sources, hook_of_pin, load_saes, sae_sources


def place(reads: str, *writes: str) -> Place:
    """A coder that lies in a file with the name of what it reads."""
    target, *further = [HookPoint.parse(name) for name in writes or (None,) if name] or [None]
    return Place("circuit", Path(reads), (), HookPoint.parse(reads), target, further=tuple(further))


# A run in which everything was trained: SAEs, a transcoder within a layer, a CLT and one that writes the next layer.
ALL = [
    place("resid_pre.0"),
    place("mlp_in.1", "mlp.1"),
    place("mlp_in.2", "mlp.2", "mlp.3", "mlp.5"),
    place("resid.2"),
    place("mlp_in.3", "mlp.3"),
    place("attn_in.4", "attn.5"),
    place("mlp.4"),
]
PLACES = {made.hook: made for made in ALL if made.hook is not None}


def told(found: dict[HookPoint, Place]) -> list[str]:
    return [f"{hook}>{','.join(map(str, made.writes))}" for hook, made in found.items()]


@pytest.mark.parametrize(
    ("layers", "sites", "expected"),
    [
        (None, None, [f"{hook}>{','.join(map(str, made.writes))}" for hook, made in sorted(PLACES.items())]),
        ({0, 1}, None, ["resid_pre.0>resid_pre.0", "mlp_in.1>mlp.1"]),
        # What is written in other layers is cut off, in the middle too.
        ({2, 5}, None, ["mlp_in.2>mlp.2,mlp.5", "resid.2>resid.2"]),
        ({2, 3}, {"mlp_in"}, ["mlp_in.2>mlp.2,mlp.3", "mlp_in.3>mlp.3"]),
        # The site that is first written is as good a name as the one that is read.
        ({2, 3, 4}, {"mlp"}, ["mlp_in.2>mlp.2,mlp.3", "mlp_in.3>mlp.3", "mlp.4>mlp.4"]),
        # Nothing is left of a coder that writes in other layers alone.
        ({4}, {"attn"}, []),
        ({4, 5}, {"attn"}, ["attn_in.4>attn.5"]),
        ({9}, None, []),
    ],
)
def test_a_coder_is_in_by_what_it_reads_and_writes_within_the_layers(
    layers: set[int] | None, sites: set[str] | None, expected: list[str]
):
    assert told(chosen(PLACES, layers=layers, sites=sites)) == expected


def test_a_hook_point_that_is_explained_twice_names_both_files():
    twice = {made.hook: made for made in (place("mlp.3"), PLACES[HookPoint(2, "mlp_in")]) if made.hook}
    with pytest.raises(InputError, match=r"mlp\.3 is explained twice: .* in mlp\.3 and .* in mlp_in\.2"):
        chosen(twice)
    # Not where what would collide is cut off, or left out.
    assert told(chosen(twice, layers={2})) == ["mlp_in.2>mlp.2"]
    assert told(chosen(twice, sites={"mlp_in"})) == ["mlp_in.2>mlp.2,mlp.3,mlp.5"]
    # Transcoders add up.
    assert len(chosen({made.hook: made for made in ALL if made.hook and made.hook.site == "mlp_in"})) == 3


def clt(layer: int, *, d_out: int = D_IN, beyond: int = 3) -> Any:
    writes = [HookPoint(later, "mlp") for later in range(layer, beyond + 1)]
    config = {"target": writes[0], "further": tuple(writes[1:]), "d_out": d_out, "subtract_decoder_bias": False}
    return random_sae("topk", hook=HookPoint(layer, "mlp_in"), **config)


def test_several_texts_name_coders_of_several_places(tmp_path: Path):
    files.save(clt(1), tmp_path / "a,b/mlp_in.1")
    files.save(random_sae("relu"), tmp_path / "sae")
    assert texts_of(f"{tmp_path}/a,b") == [f"{tmp_path}/a,b"]
    assert texts_of("release/x, other@mlp.3,") == ["release/x", "other@mlp.3"]
    found = resolve([f"{tmp_path}/sae@resid.3", f"{tmp_path}/a,b"])
    assert told(found) == ["mlp_in.1>mlp.1,mlp.2,mlp.3", "resid.3>resid.3"]
    with pytest.raises(InputError, match=r"more than one SAE at resid\.2: .*sae and .*sae"):
        resolve([f"{tmp_path}/sae", f"{tmp_path}/sae"])


def request(tmp_path: Path, *coders: Any, sae_path: str | None = None) -> Request:
    """Of a run that trained these coders."""
    records = []
    for coder in coders:
        path = f"saes/{coder.hook}"
        shape = {"architecture": coder.architecture, "d_in": coder.d_in, "d_sae": coder.d_sae}
        digest = files.save(coder, tmp_path / path)
        records.append(SaeRecord(hook=str(coder.hook), path=path, digest=digest, **shape))
    return Request(Settings(sae_path=sae_path), Stream(records), Run(tmp_path))


MODEL: Any = SimpleNamespace(d_model=D_IN, n_layers=4)


def loaded(sources: Any, **options: Any) -> Any:
    return load_saes(sources, sources, model="m", adapter=MODEL, **options)


def test_a_graph_of_some_layers_loads_coders_that_write_in_them(tmp_path: Path):
    asked = request(tmp_path, clt(1), clt(2), random_sae("relu"))
    sources = sae_sources(asked, stage="graph-grad")
    assert {str(hook): [str(w) for w in found.place.writes] for hook, found in sources.items()} == {
        "mlp_in.1": ["mlp.1", "mlp.2", "mlp.3"],
        "mlp_in.2": ["mlp.2", "mlp.3"],
        "resid.2": ["resid.2"],
    }
    inside = graph_sources(sources, layers=range(1, 3), sites={"mlp"})
    found = {hook: coder.sae.writes for hook, coder in loaded(inside).items()}
    one, two = HookPoint(1, "mlp"), HookPoint(2, "mlp")
    assert found == {HookPoint(1, "mlp_in"): (one, two), HookPoint(2, "mlp_in"): (two,)}
    # As a graph's head tells what was written.
    again = loaded({hook: sources[hook] for hook in inside}, writes={one, two})
    assert {hook: coder.sae.writes for hook, coder in again.items()} == found
    with pytest.raises(InputError, match="writes none of the hook points of the circuit"):
        loaded(inside, writes={one})
    with pytest.raises(InputError, match="no SAE at layers 0 3, sites any") as caught:
        graph_sources(sources, layers={3, 0})
    assert "mlp_in.1 mlp_in.2 resid.2" in (caught.value.hint or "")


def test_pins_of_a_layer_are_of_the_only_coder_that_reads_there(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    sources = sae_sources(request(tmp_path, clt(1), clt(2), random_sae("relu")), stage="validate")
    assert hook_of_pin(HookPoint(1, "resid"), sources) == HookPoint(1, "mlp_in")
    assert hook_of_pin(HookPoint(2, "resid"), sources) == HookPoint(2, "resid")
    assert hook_of_pin(HookPoint(3, "resid"), sources) == HookPoint(3, "resid")


@pytest.mark.parametrize(
    ("coder", "message"),
    [
        (clt(1, d_out=5), r"mlp_in\.1 to mlp\.1 writes activations of width 5, the model has 6"),
        (clt(2, beyond=5), r"mlp_in\.2 writes mlp\.4 mlp\.5, and the model has 4 layers"),
    ],
)
def test_a_coder_that_the_model_cannot_take_is_refused_by_its_path(coder: Any, message: str, tmp_path: Path):
    sources = sae_sources(request(tmp_path, coder), stage="graph-grad")
    with pytest.raises(InputError, match=message) as caught:
        loaded(sources)
    assert str(tmp_path) in caught.value.message and caught.value.hint


def test_the_layers_of_a_clt_of_several_files_are_taken_by_name(tmp_path: Path):
    for layer in (1, 2):
        files.save(clt(layer), tmp_path / f"clt/mlp_in.{layer}")
    files.save(random_sae("relu"), tmp_path / "residual")
    sources = sae_sources(request(tmp_path, sae_path=f"{tmp_path}/clt,{tmp_path}/residual"), stage="graph-grad")
    assert list(map(str, sources)) == ["mlp_in.1", "mlp_in.2", "resid.2"]
    assert [len(found.sae.writes) for found in loaded(sources).values()] == [3, 2, 1]


def test_coders_that_write_together_are_judged_by_their_sum(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    alone = random_sae("relu", hook=HookPoint(0, "mlp_in"), target=HookPoint(0, "mlp"), d_out=D_IN)
    coders = [alone, clt(1), clt(2), clt(3)]
    asked = request(tmp_path, *coders)
    sources = {hook: replace(source, is_own=False) for hook, source in sae_sources(asked, stage="graph-grad").items()}
    found = loaded(sources)
    rows = {hook: inputs(30).roll(hook.layer, 0)[None] for coder in coders for hook in (coder.hook, *coder.writes)}
    model: Any = SimpleNamespace(tokenizer=SimpleNamespace(bos_id=None))
    clean: Any = SimpleNamespace(activations=rows)
    no_cache = Request(asked.settings, Stream(), asked.run)

    def warned(*hooks: str) -> list[str]:
        caplog.clear()
        some = {hook: coder for hook, coder in found.items() if str(hook) in hooks}
        fitting.warn_of_misfits(no_cache, sources, some, model, clean=clean)
        return [message.getMessage().split(" explain")[0] for message in caplog.records]

    together = [f"the coders that write mlp.{layer}" for layer in (1, 2, 3)]
    assert warned("mlp_in.0", "mlp_in.1", "mlp_in.2", "mlp_in.3") == [*together, "the SAE at mlp_in.0"]
    # What they write together is what there is.
    for layer in (1, 2, 3):
        rows[HookPoint(layer, "mlp")] = torch.zeros_like(rows[HookPoint(layer, "mlp")])
        for reading in range(1, layer + 1):
            coder = found[HookPoint(reading, "mlp_in")].sae
            codes = coder.encode(rows[coder.hook])
            rows[HookPoint(layer, "mlp")] += coder.decode(codes, hook=HookPoint(layer, "mlp"))
    assert warned("mlp_in.1", "mlp_in.2", "mlp_in.3") == []
    assert set(warned("mlp_in.2", "mlp_in.3")) <= set(together)
    # Of a single one its file may say that it is one of several.
    assert warned("mlp_in.3") == ["the SAE at mlp_in.3"]
    hook = HookPoint(3, "mlp_in")
    found[hook] = found[hook]._replace(about=found[hook].about.noting(ACROSS))
    assert warned("mlp_in.3") == ["the coders that write mlp.3"]
