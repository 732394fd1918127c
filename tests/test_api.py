"""The Python API: what `import circuitcli` costs and offers, and that its values are those of the commands."""

import ast
import gc
import inspect
import json
import subprocess
import sys
from pathlib import Path

import api_user
import nursery
import pytest
import torch
from support import random_sae
from test_graph_stages import trained as trained

import circuitcli as circuit
from circuitcli.hookpoints import HookPoint
from circuitcli.models.taps import read
from circuitcli.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "circuitcli"
TEXT = "for i in range("


@pytest.fixture(scope="module")
def model():
    return circuit.load_model("builtin:tiny", device="cpu")


@pytest.fixture(scope="module")
def coders(trained: Path):
    return circuit.load_coders(trained)


def test_importing_takes_less_than_half_a_second_and_neither_torch_nor_transformers():
    program = """
import sys, time
begun = time.perf_counter()
import circuitcli as circuit
assert time.perf_counter() - begun < 0.5
assert "load_model" in dir(circuit) and set(circuit.__all__) <= set(dir(circuit))
heavy = {"torch", "transformers", "pydantic", "numpy"} & set(sys.modules)
assert not heavy, heavy
try:
    circuit.load_modle
except AttributeError as error:
    assert "load_modle" in str(error)
else:
    raise SystemExit("a name that is none was found")
circuit.InputError
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_every_name_that_is_offered_is_there_and_type_checkers_are_told_of_the_same():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    told = {alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*told, "__version__"} == set(circuit.__all__)
    for name, module in told.items():
        assert getattr(circuit, name) is getattr(sys.modules[str(module)], name)
        assert getattr(circuit, name).__doc__
    assert (PACKAGE / "py.typed").is_file()


def test_coders_of_a_run_of_one_folder_and_of_a_list_are_the_same(trained: Path, coders):
    saes = trained / "saes"
    listed = circuit.load_coders([saes / "mlp.1", str(saes / "resid.1"), coders["mlp.2"], coders["resid.2"]])
    assert [*map(str, coders)] == ["mlp.1", "resid.1", "mlp.2", "resid.2"] == [*map(str, listed)]
    for hook, coder in coders.items():
        assert torch.equal(coder.W_enc, listed[hook].W_enc) and coder.hook == hook
    assert "mlp.1" in coders and HookPoint(1, "mlp") in coders
    assert not any(other in coders for other in ("mlp.3", "mlp", "", None, 7))
    one = circuit.load_coders(trained, hooks="resid.2")
    assert [*one] == [HookPoint(2, "resid")] and torch.equal(one["resid.2"].W_dec, coders["resid.2"].W_dec)


def test_codes_and_errors_of_a_text_add_up_to_the_models_activations(model, coders):
    encoded = circuit.encode(model, coders, TEXT)
    ids = torch.tensor([encoded.ids])
    assert "".join(encoded.tokens[encoded.first :]) == TEXT and encoded.first == 1
    with torch.no_grad():
        seen = read(model.adapter, ids, None, list(coders))
    for hook, coder in coders.items():
        x = seen[hook][0, encoded.first :]
        codes, errors = (part[hook][encoded.first :] for part in (encoded.codes, encoded.errors))
        assert torch.equal(codes, coder.encode(x))
        assert torch.allclose(coder.decode(codes, coder.frame(x)) + errors, x, atol=1e-5)
        assert not encoded.codes[hook][: encoded.first].any() and not encoded.errors[hook][: encoded.first].any()


def test_a_crosscoder_encodes_several_hook_points_side_by_side(model, trained: Path):
    cache = circuit.ActivationCache(trained / "activations", [HookPoint(1, "resid"), HookPoint(2, "resid")])
    shape = dict(k=4, d_sae=40, batch_size=256, tokens=512, device="cpu")
    (coder,) = circuit.train(cache, architecture="crosscoder", **shape).values()
    encoded = circuit.encode(model, coder, TEXT)
    with torch.no_grad():
        seen = read(model.adapter, torch.tensor([encoded.ids]), None, cache.hooks)
    joined = torch.cat([seen[hook][0, encoded.first :] for hook in cache.hooks], dim=-1)
    codes = encoded.codes["resid.1"][encoded.first :]
    assert torch.allclose(codes, coder.encode(joined), atol=1e-5)
    errors = torch.cat([encoded.errors[hook][encoded.first :] for hook in cache.hooks], dim=-1)
    assert torch.allclose(errors, joined - coder.reconstruct(joined), atol=1e-4)
    with pytest.raises(circuit.InputError, match="crosscoder"):
        circuit.find_circuit(model, coder, TEXT, baseline="zero")


def test_token_ids_are_encoded_as_the_text_that_they_make(model, coders):
    text, ids = circuit.encode(model, coders, TEXT), model.tokenizer.encode(TEXT)
    assert torch.equal(circuit.encode(model, coders, ids).codes["mlp.2"], text.codes["mlp.2"])


def test_the_strongest_features_are_the_largest_codes_and_named_as_nodes(model, coders):
    encoded = circuit.encode(model, coders, TEXT)
    everything = sorted((float(code) for codes in encoded.codes.values() for code in codes.flatten()), reverse=True)
    strongest = encoded.strongest(7)
    assert [one.activation for one in strongest] == pytest.approx(everything[:7])
    for one in strongest:
        hook, _, place = one.id.partition("/")
        feature, _, position = place.partition("@")
        assert float(encoded.codes[hook][int(position), int(feature)]) == one.activation
        assert encoded.tokens[int(position)] == one.token


def test_collecting_stores_what_the_command_stores_and_nothing_is_made_again(model, trained: Path, tmp_path: Path):
    def collected(**changes):
        asked = dict(layers="1:3", sites=["resid", "mlp"], tokens=3000, block_length=64, path=tmp_path / "cache")
        return circuit.collect(model, **(asked | changes))

    cache, of_run = collected(), circuit.ActivationCache(trained / "activations", [HookPoint(1, "mlp")])
    assert [*map(str, cache.hooks)] == ["mlp.1", "resid.1", "mlp.2", "resid.2"]
    hook, n = HookPoint(1, "mlp"), of_run.n_tokens
    assert cache.n_tokens == n and torch.equal(cache.rows(hook, 0, n), of_run.rows(hook, 0, n))
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.h5")}
    assert collected().n_tokens == n
    assert written == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.h5")}
    for others in ({"tokens": 2000}, {"text": ["a b c"]}, {"hooks": "resid.1"}):
        with pytest.raises(circuit.InputError, match="other activations"):
            collected(**others)


def test_texts_at_hand_are_collected_and_gone_with_the_value(model):
    texts = ["for i in range(10):", "import os\nimport sys", "class A:\n    pass"]
    cache = circuit.collect(model, texts, hooks=["resid.2", "mlp.0"], dtype="float32")
    folder, hook = cache.path, HookPoint(2, "resid")
    lengths = [len(model.tokenizer.encode(text)) for text in texts]
    assert cache.block_lengths(0, cache.n_tokens) == lengths
    seen = read(model.adapter, torch.tensor([model.tokenizer.with_bos(model.tokenizer.encode(texts[1]))]), None, [hook])
    assert torch.allclose(cache.rows(hook, lengths[0], lengths[0] + lengths[1]), seen[hook][0, 1:], atol=1e-5)
    del cache
    gc.collect()
    assert not folder.exists()


SHAPE = dict(k=6, d_sae=150, batch_size=256, device="cpu", settings={"train.eval_tokens": 512})


@pytest.fixture(scope="module")
def cache(trained: Path) -> circuit.ActivationCache:
    return circuit.ActivationCache(trained / "activations", [HookPoint(1, "resid"), HookPoint(2, "mlp")])


def test_training_gives_the_coders_that_the_command_trains(cache, coders, tmp_path: Path):
    made = circuit.train(cache, **SHAPE, path=tmp_path / "made")
    assert [*map(str, made)] == ["resid.1", "mlp.2"]
    for hook, coder in made.items():
        assert all(torch.equal(value, coders[hook].state_dict()[name]) for name, value in coder.state_dict().items())
        assert not coder.W_enc.requires_grad and not coder.training
    loaded = circuit.load_coders(tmp_path / "made")
    assert torch.equal(loaded["mlp.2"].W_dec, coders["mlp.2"].W_dec)
    assert (tmp_path / "made" / "mlp.2" / "metrics.jsonl").is_file() and not (tmp_path / "made" / "checkpoint").exists()


def test_a_training_that_broke_off_goes_on_and_a_finished_one_is_kept(cache, tmp_path: Path, monkeypatch):
    def trained(name: str, **changes):
        return circuit.train(cache, hooks="mlp.2", path=tmp_path / name, **(SHAPE | {"tokens": 1500} | changes))

    whole, path = trained("whole"), tmp_path / "broken"
    steps, step = [], Trainer._step

    def broken(self, batch):
        steps.append(self.done)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        trained("broken", settings={"train.checkpoint_tokens": 512} | SHAPE["settings"])
    resumed = trained("broken", settings={"train.checkpoint_tokens": 512} | SHAPE["settings"])
    assert steps == [0, 1, 2, 3, 2, 3, 4] and not (path / "checkpoint").exists()
    assert torch.equal(resumed["mlp.2"].W_dec, whole["mlp.2"].W_dec)
    assert torch.equal(trained("whole")["mlp.2"].W_enc, whole["mlp.2"].W_enc) and len(steps) == 7
    with pytest.raises(circuit.InputError, match="other coders"):
        trained("whole", seed=1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda trained: circuit.load_model("builtin:tiny", device="gpu 0"), "gpu 0"),
        (lambda trained: circuit.load_model(trained / "nothing"), "nothing"),
        (lambda trained: circuit.load_coders(trained / "nothing"), "nothing"),
        (lambda trained: circuit.load_coders(trained, hooks="resid.7"), "no coder"),
        (lambda trained: circuit.load_coders(trained, hooks=["resid"]), "resid"),
        (lambda trained: circuit.load_coders([]), "no coder"),
        (lambda trained: circuit.load_coders([trained, trained / "saes" / "mlp.1"]), "mlp.1"),
        (lambda trained: circuit.load_coders(trained)["resid.7"], "resid.7"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_a_hint(trained: Path, wrong, said: str):
    with pytest.raises(circuit.CircuitError) as raised:
        wrong(trained)
    assert said in raised.value.message and raised.value.hint


def test_what_does_not_fit_the_model_is_refused(model, coders):
    narrow = random_sae(HookPoint(1, "resid"), dtype=torch.float32)
    for wrong in (narrow, [coders["resid.1"], random_sae(HookPoint(9, "mlp"), dtype=torch.float32)]):
        with pytest.raises(circuit.CircuitError) as raised:
            circuit.encode(model, wrong, TEXT)
        assert raised.value.hint
    with pytest.raises(circuit.InputError, match="empty"):
        circuit.encode(model, coders, "")


# Under pytest types are checked by beartype before the functions are called, so this is for a process of its own.
WRONG_TYPES = """
from pathlib import Path
import circuitcli as circuit
model = circuit.load_model("builtin:tiny", device="cpu")
coders = circuit.load_coders("runs/builtin-tiny")
cache = circuit.ActivationCache(Path("runs/builtin-tiny/activations"), [circuit.HookPoint.parse("resid.1")])
calls = {
    "load_model(7)": lambda: circuit.load_model(7),
    "load_model(dtype)": lambda: circuit.load_model("builtin:tiny", dtype="int8"),
    "load_model(max_memory)": lambda: circuit.load_model("builtin:tiny", max_memory=4),
    "load_coders(7)": lambda: circuit.load_coders(7),
    "load_coders([None])": lambda: circuit.load_coders([None]),
    "load_coders(hooks=3)": lambda: circuit.load_coders("runs/builtin-tiny", hooks=3),
    "collect(7)": lambda: circuit.collect(model, 7),
    "collect([])": lambda: circuit.collect(model, []),
    "collect([7])": lambda: circuit.collect(model, ["a", 7]),
    "collect(tokens)": lambda: circuit.collect(model, tokens=0),
    "collect(dtype)": lambda: circuit.collect(model, dtype="float8"),
    "collect(sites)": lambda: circuit.collect(model, sites=["residual"]),
    "collect(layers)": lambda: circuit.collect(model, layers="9:"),
    "collect(hooks)": lambda: circuit.collect(model, hooks=["resid.9"]),
    "collect(text)": lambda: circuit.collect(model, "no/such/file"),
    "collect(model)": lambda: circuit.collect("builtin:tiny"),
    "train(7)": lambda: circuit.train(7),
    "train(k)": lambda: circuit.train(cache, k=0),
    "train(k > d_sae)": lambda: circuit.train(cache, k=20, d_sae=10, batch_size=256),
    "train(architecture)": lambda: circuit.train(cache, architecture="toppk"),
    "train(hooks)": lambda: circuit.train(cache, hooks="resid.0"),
    "train(settings)": lambda: circuit.train(cache, settings={"train.kep": "best"}),
    "train(setting)": lambda: circuit.train(cache, settings={"train.sweep": "sae.k=3,4"}),
    "train(start)": lambda: circuit.train(cache, settings={"train.start": "runs/other"}),
    "train(objective)": lambda: circuit.train(cache, settings={"train.objective": "joint"}),
    "train(batch)": lambda: circuit.train(cache, batch_size=10**6),
    "train(pair)": lambda: circuit.train(cache, architecture="transcoder", batch_size=256),
    "train(jacobian)": lambda: circuit.train(cache, architecture="jacobian-block", batch_size=256),
    "train(device)": lambda: circuit.train(cache, device="cuda:77", batch_size=256),
    "find_circuit(7)": lambda: circuit.find_circuit(model, coders, 7),
    "find_circuit([7.5])": lambda: circuit.find_circuit(model, coders, [7.5]),
    "find_circuit(model)": lambda: circuit.find_circuit("builtin:tiny", coders, "a"),
    "find_circuit(coders)": lambda: circuit.find_circuit(model, "runs/builtin-tiny", "a"),
    "find_circuit(no coders)": lambda: circuit.find_circuit(model, [], "a"),
    "find_circuit(metric)": lambda: circuit.find_circuit(model, coders, "a", metric="loss"),
    "find_circuit(baseline)": lambda: circuit.find_circuit(model, coders, "a", baseline="median"),
    "find_circuit(target)": lambda: circuit.find_circuit(model, coders, "a", target=2.5),
    "find_circuit(method)": lambda: circuit.find_circuit(model, coders, "a", method="eap"),
    "find_circuit(positions)": lambda: circuit.find_circuit(model, coders, "a", positions="first"),
    "find_circuit(sites)": lambda: circuit.find_circuit(model, coders, "a", sites="heads"),
    "find_circuit(cache)": lambda: circuit.find_circuit(model, coders, "a", cache="activations"),
    "find_circuit(settings)": lambda: circuit.find_circuit(model, coders, "a", settings=3),
    "find_behaviour(cache)": lambda: circuit.find_behaviour(model, "activations"),
    "find_behaviour(n)": lambda: circuit.find_behaviour(model, cache, 0),
    "validate(7)": lambda: circuit.validate(model, coders, 7),
    "validate(text)": lambda: circuit.validate(model, coders, "resid.1/3"),
    "validate([])": lambda: circuit.validate(model, coders, [], "a"),
    "validate(nodes)": lambda: circuit.validate(model, coders, ["resid.1/3"]),
    "validate(bad node)": lambda: circuit.validate(model, coders, ["resid.1"], "a"),
    "validate(samples)": lambda: circuit.validate(model, coders, ["resid.1/3"], "a", samples=-1),
    "validate(errors)": lambda: circuit.validate(model, coders, ["resid.1/3"], "a", errors="none"),
    "run(ablate)": lambda: circuit.run(model, coders, "a", ablate=7),
    "run(scale)": lambda: circuit.run(model, coders, "a", scale=["resid.1/3"]),
    "run(scale text)": lambda: circuit.run(model, coders, "a", scale={"resid.1/3": "2"}),
    "run(prompts)": lambda: circuit.run(model, coders, ["a", "b"]),
    "describe(7)": lambda: circuit.describe(model, coders, 7, "a"),
    "describe(text)": lambda: circuit.describe(model, coders, "resid.1/3", 7),
    "describe(contexts)": lambda: circuit.describe(model, coders, "resid.1/3", "a", contexts=0),
    "draw(7)": lambda: circuit.draw(7),
    "evaluate(cache)": lambda: circuit.evaluate(model, coders, "activations"),
    "evaluate(tokens)": lambda: circuit.evaluate(model, coders, cache, tokens=0),
    "evaluate(missing)": lambda: circuit.evaluate(model, coders, cache),
    "encode(7)": lambda: circuit.encode(model, coders, 7),
    "encode(coders=7)": lambda: circuit.encode(model, 7, "a"),
    "encode(coders=text)": lambda: circuit.encode(model, "runs/builtin-tiny", "a"),
    "encode(words)": lambda: circuit.encode(model, coders, ["a", "b"]),
    "encode(model=text)": lambda: circuit.encode("builtin:tiny", coders, "a"),
}
missed = []
for name, call in calls.items():
    try:
        call()
    except circuit.CircuitError as error:
        assert error.message and error.hint, name
    else:
        missed.append(name)
assert not missed, missed
"""


def test_arguments_of_wrong_types_are_refused_with_a_hint(trained: Path, tmp_path: Path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "builtin-tiny").symlink_to(trained)
    done = nursery.run(["-c", WRONG_TYPES], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_typed_program_of_a_user_runs(trained: Path, tmp_path: Path):
    api_user.main(str(trained), tmp_path)


def examples(name: str) -> list[ast.Call]:
    """The calls of the API in the examples of a docstring: lines that are indented in it."""
    lines = (inspect.getdoc(getattr(circuit, name)) or "").split("\n")
    program = "\n".join(line[4:] for line in lines if line.startswith("    "))
    return [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call) and of_api(node)]


def of_api(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "circuit"


@pytest.mark.parametrize("name", sorted(name for name in circuit.__all__ if inspect.isroutine(getattr(circuit, name))))
def test_each_function_shows_examples_that_call_what_is_there(name: str):
    calls = examples(name)
    assert name in {call.func.attr for call in calls}
    for call in calls:
        named = {word.arg: None for word in call.keywords if word.arg is not None}
        inspect.signature(getattr(circuit, call.func.attr)).bind(*call.args, **named)


def test_coders_are_measured_as_by_the_command_that_trained_them(model, coders, trained: Path):
    cache = circuit.ActivationCache(trained / "activations", [*coders])
    # What training held out: a tenth of the cache, where that is less than was asked for.
    quality = circuit.evaluate(model, coders, cache, tokens=int(cache.n_tokens * 0.1))
    for hook in coders:
        kept = json.loads((trained / "saes" / str(hook) / "config.json").read_text(encoding="utf-8"))
        measured = {name: value for name, value in quality[hook].items() if isinstance(value, float)}
        assert {"explained_variance", "l0", "kl_spliced"} <= set(measured)
        assert measured == pytest.approx({name: kept[name] for name in measured}, rel=1e-5)


def test_end_to_end_training_reads_the_text_by_the_model(model, tmp_path: Path):
    cache = circuit.collect(model, hooks="resid.2", tokens=600, dtype="float32", block_length=32)
    shape = dict(k=4, d_sae=40, batch_size=128, settings={"train.objective": "end-to-end", "train.local_share": 0.5})
    with pytest.raises(circuit.SettingsError) as raised:
        circuit.train(cache, **shape)
    assert "model=" in raised.value.hint
    (coder,) = circuit.train(cache, **shape, model=model, path=tmp_path / "made").values()
    (local,) = circuit.train(cache, **(shape | {"settings": {}})).values()
    lines = (tmp_path / "made" / "resid.2" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "kl" in lines and not torch.equal(coder.W_dec, local.W_dec)


def test_pairs_learn_from_the_mlps_of_the_model(model):
    cache = circuit.collect(model, layers=1, sites="mlp_in,mlp", tokens=600, dtype="float32")
    shape = dict(architecture="jacobian", k=4, d_sae=40, batch_size=256)
    with pytest.raises(circuit.SettingsError, match="MLP") as raised:
        circuit.train(cache, **shape)
    assert "model=" in raised.value.hint
    made = circuit.train(cache, **shape, model=model)
    assert [*map(str, made)] == ["mlp_in.1", "mlp.1"]
    assert circuit.encode(model, made, TEXT).codes["mlp.1"].count_nonzero(dim=1).max() <= 4
