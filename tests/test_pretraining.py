"""Small models trained from nothing: what they read, how they learn, and that a broken run ends like a whole one."""

import json
import math
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Outcome, here
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import circuitcli
from circuitcli import progress
from circuitcli.errors import InputError, SettingsError
from circuitcli.pretraining import corpus, optimiser, tokenizer, vocabularies
from circuitcli.pretraining.batches import Batch, Windows
from circuitcli.pretraining.characters import CharacterTable, ascii_tokenizer, character_tokenizer
from circuitcli.pretraining.job import read_text
from circuitcli.settings.pretrain import PretrainSettings, checkpoint_steps
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed

SMALL = {
    "pretrain.validation_every": 6,
    "pretrain.vocab_size": 290,
    "pretrain.n_layers": 2,
    "pretrain.n_heads": 2,
    "pretrain.d_model": 12,
    "pretrain.context_length": 16,
    "pretrain.batch_size": 3,
    "pretrain.steps": 12,
    "pretrain.learning_rate": 1e-2,
    "pretrain.warmup_steps": 3,
    "pretrain.evaluate_every": 4,
    "pretrain.save_every": 4,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A folder of small programs."""
    folder = tmp_path_factory.mktemp("texts")
    chooser = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "result", "value"]
    for number in range(24):
        lines = [f"    self.{chooser.choice(words)} = {chooser.choice(words)}({number})" for _ in range(30)]
        (folder / f"{number:02}.py").write_text("class A:\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def one_text(texts: Path, tmp_path_factory) -> Path:
    """All of them in one file."""
    path = tmp_path_factory.mktemp("text") / "one.txt"
    path.write_text("".join(file.read_text() for file in sorted(texts.iterdir())))
    return path


@pytest.fixture
def small(texts: Path) -> Settings:
    """A run of a second."""
    return settings_with({"data.text": str(texts)})


def settings_with(values: dict[str, object]) -> Settings:
    return changed(Settings(), SMALL | values)


def pretrain(text: Path, output: Path, values: dict[str, object] | None = None, *words: str) -> Outcome:
    """The command, in this process."""
    chosen = SMALL | (values or {})
    sets = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    words = ("pretrain", "--text", str(text), "--output", str(output), "--json", *sets, *words)
    return here(*words, cwd=output.parent)


def model_of(outcome: Outcome) -> dict[str, object]:
    assert outcome.status == 0, outcome.stderr
    return outcome.records[0]


@contextmanager
def interrupted_after(n_steps: int) -> Iterator[None]:
    """Ctrl-C in the run's own loop after so many steps."""
    before = progress.set_sink

    @contextmanager
    def sink(title: str, total: float | None, unit: str, done: float) -> Iterator[progress.Advance]:
        left = n_steps

        def advance(amount: float = 1, *, note: str = "") -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        yield advance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "task", lambda title, total, unit, done=0: sink(title, total, unit, done))
        yield
    assert progress.set_sink is before


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"pretrain.autocast": True, "pretrain.dropout": 0.2, "pretrain.accumulation": 2, "pretrain.keep": "best"},
        {"pretrain.tokenizer": "characters", "pretrain.order": "sequential", "pretrain.checkpoints": "log,5"},
    ],
    ids=["plain", "dropout", "characters"],
)
def test_an_interrupted_run_ends_bit_for_bit_like_an_unbroken_one(
    tmp_path: Path, texts: Path, values: dict[str, object]
):
    unbroken = pretrain(texts, tmp_path / "unbroken", values)
    for n_steps in (2, 7, 3):
        with interrupted_after(n_steps):
            assert pretrain(texts, tmp_path / "broken", values).status == 130
    resumed = pretrain(texts, tmp_path / "broken", values)
    assert [{**one, "path": ""} for one in resumed.records] == [{**one, "path": ""} for one in unbroken.records]
    paths = {path.relative_to(tmp_path / "unbroken") for path in (tmp_path / "unbroken").rglob("*") if path.is_file()}
    of_model = {path for path in paths if path.parts[0] != "training"}
    assert {Path("model.safetensors"), Path("tokenizer.json"), Path("config.json")} < of_model
    for path in of_model:
        assert (tmp_path / "broken" / path).read_bytes() == (tmp_path / "unbroken" / path).read_bytes(), path
    assert not (tmp_path / "broken" / "training" / "state").exists()
    again = pretrain(texts, tmp_path / "broken", values)
    assert again.stdout == resumed.stdout


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_takes_effect_behind_the_step_it_came_in_with_a_state_of_it(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    number, learn = getattr(signal, name), optimiser.ModelOptimiser.learn

    def with_signal(self: optimiser.ModelOptimiser, batches: object, *, step: int, seed: int) -> object:
        if step == 5:
            signal.raise_signal(number)
        return learn(self, batches, step=step, seed=seed)

    # As the command itself answers it.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    monkeypatch.setattr(optimiser.ModelOptimiser, "learn", with_signal)
    try:
        outcome = pretrain(texts, tmp_path / "out", {"pretrain.save_every": 100})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.status == 128 + number
    assert len(outcome.errors) == 2 and "the same command goes on" in outcome.errors[1]
    (state,) = (tmp_path / "out/training/state").iterdir()
    assert state.name == "step-00000006"


def test_a_tracker_gets_every_line_of_the_metrics_once(tmp_path: Path, texts: Path):
    with interrupted_after(6):
        pretrain(texts, tmp_path / "out", {"pretrain.log": "tensorboard"})
    assert pretrain(texts, tmp_path / "out", {"pretrain.log": "tensorboard"}).status == 0
    shown = EventAccumulator(str(tmp_path / "out/training/logs/tensorboard/model"), size_guidance={"scalars": 0})
    shown.Reload()
    lines = [json.loads(line) for line in (tmp_path / "out/training/metrics.jsonl").read_text().splitlines()]
    for tag in ("validation_loss", "loss", "learning_rate"):
        expected = [(line["step"], pytest.approx(line[tag], rel=1e-6)) for line in lines if tag in line]
        # What was logged before the break is not logged again.
        assert [(event.step, event.value) for event in shown.Scalars(tag)] == expected


def test_a_run_learns_and_another_seed_learns_something_else(tmp_path: Path, texts: Path):
    longer = {"pretrain.steps": 60}
    quality = model_of(pretrain(texts, tmp_path / "a", longer))
    assert quality["validation_loss"] < quality["unigram_loss"] < quality["uniform_loss"]
    assert quality["uniform_loss"] == pytest.approx(math.log(290))
    other = model_of(pretrain(texts, tmp_path / "b", longer, "--seed", "1"))
    assert other["validation_loss"] != quality["validation_loss"]
    assert quality["n_tokens_seen"] == 60 * 3 * 16


def test_a_directory_with_another_model_is_refused_and_stays_as_it_is(tmp_path: Path, texts: Path):
    first = model_of(pretrain(texts, tmp_path / "run", {"pretrain.checkpoints": "log"}))
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    other = pretrain(texts, tmp_path / "run", {"pretrain.checkpoints": "log"}, "--seed", "1")
    assert other.status == 3 and "seed was 0 and is now 1" in other.errors[0]
    assert "another --output" in other.errors[1]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    foreign = pretrain(texts, tmp_path / "foreign")
    assert foreign.status == 3 and "holds another model: config.json" in foreign.errors[0]
    assert not (tmp_path / "foreign" / "training").exists()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    forced = model_of(pretrain(texts, tmp_path / "run", {}, "--seed", "1", "--force"))
    assert forced["digest"] != first["digest"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_output_and_its_checkpoints_are_hugging_face_directories_that_say_their_loss(tmp_path: Path, texts: Path):
    values = {"pretrain.dtype": "float16", "pretrain.checkpoints": "log:4,every:6"}
    outcome = pretrain(texts, tmp_path / "out", values)
    settings = settings_with({"data.text": str(texts), **values})
    windows = Windows(read_text(settings).corpus, settings.pretrain, seed=0)
    model, *checkpoints = outcome.records
    assert [one["name"] for one in checkpoints] == [f"step{step}" for step in (0, 1, 2, 4, 6, 12)]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert optimiser.evaluate(loaded, windows.held_out(), device=torch.device("cpu")) == model["validation_loss"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float16
    for one in checkpoints:
        place = tmp_path / "out" / one["path"]
        loaded = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        loss = optimiser.evaluate(loaded, windows.held_out(n_batches=8), device=torch.device("cpu"))
        # They are stored with eleven bits.
        assert loss == pytest.approx(one["validation_loss"], abs=2e-3)
        assert AutoTokenizer.from_pretrained(place).get_vocab() == AutoTokenizer.from_pretrained(place).get_vocab()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o077 == 0o044


def test_a_pipe_gives_the_model_and_its_text_to_the_next_command(tmp_path: Path, one_text: Path, monkeypatch):
    made = pretrain(one_text, tmp_path / "gpt", {"pretrain.tokenizer": "characters"})
    monkeypatch.setattr("circuitcli.cli.jobs.stdin_has_records", lambda: True)
    monkeypatch.setattr("circuitcli.cli.jobs.stdin_lines", lambda: tuple(made.stdout.splitlines()))
    collected = here("collect", "--layers", "1:", "--sites", "resid", "--tokens", "300", "--json", cwd=tmp_path)
    assert collected.status == 0, collected.stderr
    assert collected.kinds == ["model", "run", "activations"]
    assert collected.records[1]["path"] == "runs/gpt"
    manifest = json.loads((tmp_path / "runs" / "gpt" / "run.json").read_text())
    assert manifest["model"] == str(tmp_path / "gpt")
    assert manifest["stages"]["collect"]["text"] == str(one_text)


@pytest.mark.parametrize(
    "text", ["def f(x):\n        return x\n\n\n\n\ta = 1  \n", "don't <|endoftext|> ?", "  x\r\n y", "12345 1.5e-3", ""]
)
@pytest.mark.parametrize("kind", ["bpe", "ascii", "characters"])
def test_every_tokenizer_restores_every_text_and_reads_the_same_from_its_directory(
    tmp_path: Path, small: Settings, text: str, kind: str
):
    chosen = small.pretrain.model_copy(update={"tokenizer": kind})
    made = vocabularies.fixed(chosen) or vocabularies.made(
        [*corpus.split_text(small).texts(held_out=True), text, " "], chosen
    )
    made.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    ids = made.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert read(text, add_special_tokens=False).input_ids == ids
    if kind != "bpe":
        assert ids == CharacterTable(made).encode(text).tolist()
        assert len(ids) == len(text) and not made.all_special_tokens
        assert read.decode(ids) == text
    else:
        assert made.bos_token_id == made.eos_token_id == made.pad_token_id == 0
        assert read.decode(ids) == text


def test_tokenizers_of_characters_read_what_they_do_not_know_as_a_question_mark():
    assert ascii_tokenizer(context_length=8)("na\u00efve \U0001f642").input_ids == [ord(c) for c in "na?ve ?"]
    table = CharacterTable(ascii_tokenizer(context_length=8))
    assert table.encode("na\u00efve \U0001f642\ud800").tolist() == [ord(c) for c in "na?ve ??"]
    for known, stand_in in (("ab?", "?"), ("ab ", " "), ("ab", "\n")):
        made = character_tokenizer([known], context_length=8)
        expected = [made.get_vocab()[stand_in]]
        assert made("z").input_ids == CharacterTable(made).encode("z").tolist() == expected


def test_a_word_after_indentation_is_the_token_it_is_after_a_space():
    vocabulary = tokenizer.train([" return x\n        return y\n" * 20], vocab_size=290, context_length=16)
    assert vocabulary.tokenize(" x\n        return") == ["Ġx", "ĊĠĠĠĠĠĠĠ", "Ġreturn"]


def test_gpt2s_two_files_and_a_tokenizer_of_one_are_the_tokenizer_that_they_hold(tmp_path: Path, texts: Path):
    trained = tokenizer.train([file.read_text() for file in texts.iterdir()], vocab_size=300, context_length=16)
    trained.backend_tokenizer.model.save(str(tmp_path))
    trained.save_pretrained(tmp_path / "whole")
    for place in ("", "vocab.json", "whole", "whole/tokenizer.json"):
        read = vocabularies.fixed(PretrainSettings(tokenizer=str(tmp_path / place)))
        assert read is not None and read.get_vocab() == trained.get_vocab()
        assert read.bos_token_id == read.eos_token_id == 0
        assert read.decode(read(" self.alpha = 1\n").input_ids) == " self.alpha = 1\n"


def test_token_ids_are_read_with_the_tokenizer_that_they_were_made_with(tmp_path: Path):
    np.save(tmp_path / "ids.npy", np.arange(100, dtype=np.uint16) % 90)
    settings = settings_with({"data.text": str(tmp_path / "ids.npy"), "pretrain.tokenizer": "ascii"})
    settings = changed(settings, {"pretrain.hold_out": "tail", "pretrain.validation_share": 0.1})
    with pytest.raises(InputError, match="too few"):
        read_text(settings)
    np.save(tmp_path / "ids.npy", np.arange(600, dtype=np.uint16) % 90)
    read = read_text(settings).corpus
    assert read.training.tolist() + read.validation.tolist() == (np.arange(600) % 90).tolist()
    assert len(read.training) == 512 and read.n_validation_bytes is None
    with pytest.raises(InputError, match="token ids"):
        read_text(changed(settings, {"pretrain.tokenizer": "bpe"}))


def test_the_tail_of_one_text_is_held_out_and_documents_are_where_there_are_many(small: Settings, one_text: Path):
    split = corpus.split_text(changed(small, {"data.text": str(one_text), "pretrain.validation_share": 0.25}))
    whole = one_text.read_text()
    n_training = int(len(whole) * 0.75) // 256 * 256
    assert (split.training, split.validation) == ([whole[:n_training]], [whole[n_training:]])
    of_folder = corpus.split_text(small)
    assert (len(of_folder.training), len(of_folder.validation)) == (20, 4)
    few = corpus.split_text(changed(small, {"pretrain.most_characters": 5_000, "pretrain.hold_out": "tail"}))
    assert sum(map(len, few.training + few.validation)) == 5_000


def test_tiny_shakespeare_is_split_as_in_the_original():
    path = Path(__file__).parents[2] / "shared" / "data" / "tiny-shakespeare.txt"
    if not path.is_file():
        pytest.skip("tiny Shakespeare is not beside the checkout")
    read = read_text(settings_with({"data.text": str(path), "pretrain.tokenizer": "ascii"})).corpus
    assert (len(read.training), len(read.validation), read.n_ids) == (1_003_776, 111_618, 128)
    assert read.end_of_text is None and read.n_validation_bytes == 111_618


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_windows_depend_on_seed_and_number_alone(small: Settings, kind: str):
    settings = changed(small, {"pretrain.tokenizer": kind})
    read = read_text(settings)
    windows = Windows(read.corpus, settings.pretrain, seed=0)
    batch = windows.batch(5)
    assert batch.inputs.shape == (3, 16) and batch.targets.shape == (3, 15 if kind == "bpe" else 16)
    assert torch.equal(batch.inputs, windows.batch(5).inputs)
    assert not torch.equal(batch.inputs, windows.batch(6).inputs)
    if kind == "bpe":
        assert (batch.inputs[:, 0] == read.corpus.end_of_text).all()
        assert int((read.corpus.training == read.corpus.end_of_text).sum()) == 20


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_windows_in_sequence_ask_for_every_token_once_and_begin_again(small: Settings, kind: str):
    settings = changed(small, {"pretrain.tokenizer": kind, "pretrain.order": "sequential"})
    windows = Windows(read_text(settings).corpus, settings.pretrain, seed=0)
    stream, n = windows.corpus.training, windows.n_batches
    asked = torch.cat([windows.batch(number).targets.flatten() for number in range(n)])
    assert torch.equal(asked.int(), stream[1 : len(asked) + 1])
    assert len(stream) - 1 - len(asked) < 3 * windows.n_predictions
    assert torch.equal(windows.batch(n).inputs, windows.batch(0).inputs)
    held_out = torch.cat([batch.targets.flatten() for batch in windows.held_out()])
    assert torch.equal(held_out.int(), windows.corpus.validation[1 : len(held_out) + 1])
    assert len(windows.corpus.validation) - 1 - len(held_out) < windows.n_predictions


def test_the_unigram_guess_is_the_cross_entropy_of_counted_frequencies():
    stream = [torch.tensor(ids, dtype=torch.int32) for ids in ([0, 1, 1, 2], [1, 3])]
    tokens = corpus.Corpus(*stream, n_ids=4, end_of_text=0, n_validation_bytes=2)
    assert corpus.unigram_loss(tokens) == pytest.approx(-(math.log(3 / 8) + math.log(1 / 8)) / 2)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_minimum():
    settings = PretrainSettings(steps=40, warmup_steps=8, learning_rate=1e-2, minimum_rate=1e-3)
    rates = [optimiser.learning_rate(settings, step=step) for step in range(41)]
    assert max(rates) == rates[8] == pytest.approx(1e-2) and rates[0] == 1e-2 / 8
    assert rates[:8] == sorted(rates[:8]) and rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3) and rates[24] == pytest.approx(5.5e-3)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert optimiser.learning_rate(constant, step=39) == optimiser.learning_rate(constant, step=8) == 1e-2


def test_several_batches_of_a_step_give_the_gradient_of_one_that_holds_them_all(small: Settings):
    def after(accumulation: int, n: int) -> dict[str, torch.Tensor]:
        settings = changed(small, {"pretrain.accumulation": accumulation, "pretrain.weight_decay": 0.0}).pretrain
        model = optimiser.new_model(settings, n_ids=7, end_of_text=None, seed=0)
        made = optimiser.ModelOptimiser(model, settings, device=torch.device("cpu"))
        made.learn([Batch(ids[:, :-1], ids[:, 1:]) for ids in whole.chunk(n)], step=0, seed=0)
        return {name: parameter.grad for name, parameter in made.model.named_parameters()}

    whole = torch.randint(7, (6, 17), generator=torch.Generator().manual_seed(0))
    one, three = after(1, 1), after(3, 3)
    for name, gradient in one.items():
        torch.testing.assert_close(three[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_step_is_that_of_plain_pytorch(small: Settings):
    """The oracle: the step written down, with decay of what has two axes, clipping, and the loss of transformers."""
    settings = changed(small, {"pretrain.warmup_steps": 0, "pretrain.gradient_norm": 0.5}).pretrain
    ids = torch.randint(7, (4, 17), generator=torch.Generator().manual_seed(0))
    made = optimiser.ModelOptimiser(
        optimiser.new_model(settings, n_ids=7, end_of_text=None, seed=3), settings, device=torch.device("cpu")
    )
    model = optimiser.new_model(settings, n_ids=7, end_of_text=None, seed=3)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    for step in range(3):
        learned = made.learn([Batch(ids[:, :-1], ids[:, 1:])], step=step, seed=0)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = optimiser.learning_rate(settings, step=step)
        loss = functional.cross_entropy(model(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert float(learned.loss) == pytest.approx(float(loss.detach()), rel=1e-6)
    for own, expected in zip(made.model.parameters(), model.parameters(), strict=True):
        # Where a gradient is next to nothing, as those of biases of keys are, Adam divides rounding by rounding.
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=2e-5)


def test_the_best_weights_are_those_of_the_smallest_loss_at_a_look(tmp_path: Path, texts: Path, monkeypatch):
    told = iter([5.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr(optimiser.ModelOptimiser, "evaluate", lambda self, batches: next(told))
    outcome = pretrain(texts, tmp_path / "out", {"pretrain.keep": "best", "pretrain.checkpoints": "4,8,12"})
    assert [one["validation_loss"] for one in outcome.records[1:]] == [3.0, 1.0, 2.0]
    final = load_file(tmp_path / "out/model.safetensors")
    kept, last = (load_file(tmp_path / f"out/checkpoints/step{step}/model.safetensors") for step in (8, 12))
    assert all(torch.equal(final[name], kept[name]) for name in kept)
    assert not all(torch.equal(final[name], last[name]) for name in last)


def test_metrics_tell_loss_rate_norm_and_speed_of_every_step_that_they_look_at(tmp_path: Path, texts: Path):
    model_of(pretrain(texts, tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out/training/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(13)]
    assert all(line["tokens"] == 48 * line["step"] for line in lines)
    wanted = {"loss", "gradient_norm", "learning_rate", "tokens_per_s", "memory_mib"}
    assert all(wanted <= line.keys() for line in lines[1:])
    drawn = here("render", "--curves", "--run", "out/training", "-o", "curves.svg", "--json", cwd=tmp_path)
    assert drawn.status == 0, drawn.stderr
    text = (tmp_path / "curves.svg").read_text()
    assert all(word in text for word in ("Training of out", "held out", "batches", "nats per token", "gradient"))


@pytest.mark.parametrize(
    ("moments", "steps"),
    [
        ((), []),
        (("log",), [0, 1, 2, 4, 8, 16]),
        (("log:4", "every:5"), [0, 1, 2, 4, 5, 10, 15, 20]),
        (("20", "7"), [7, 20]),
        (("log:999", "every:50"), [0, 1, 2, 4, 8, 16]),
    ],
)
def test_checkpoints_are_log_spaced_linear_or_numbered(moments: tuple[str, ...], steps: list[int]):
    assert checkpoint_steps(moments, n_steps=20) == steps


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        ({"pretrain.learning_rat": "1e-3"}, 2, "learning_rat"),
        ({"pretrain.steps": 0}, 2, "pretrain.steps"),
        ({"pretrain.d_model": 13}, 2, "not a multiple of n_heads 2"),
        ({"pretrain.minimum_rate": 1}, 2, "above learning_rate"),
        ({"pretrain.checkpoints": "13"}, 2, "behind the last of 12"),
        ({"pretrain.checkpoints": "often"}, 2, "'often' is not a moment"),
        ({"pretrain.checkpoints": "every:0"}, 2, "'every:0' is not a moment"),
        ({"pretrain.steps": 10**6, "pretrain.checkpoints": "every:1"}, 2, "more than the 10,000"),
        ({"data.field": "text"}, 2, "no fields"),
        ({"data.text": "-"}, 2, "several times"),
        ({"pretrain.tokenizer": "words"}, 3, "no tokenizer at 'words'"),
        ({"pretrain.validation_every": 25}, 3, "24 documents, too few"),
        ({"pretrain.context_length": 30_000}, 3, "a window of 30000"),
        ({"pretrain.order": "sequential", "pretrain.batch_size": 30_000}, 3, "fewer than a batch of 30000"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(
    tmp_path: Path, texts: Path, values: dict[str, object], status: int, message: str
):
    text = values.get("data.text", texts)
    outcome = pretrain(text, tmp_path / "out", {k: v for k, v in values.items() if k != "data.text"})
    assert outcome.status == status
    error, hint = outcome.errors
    assert message in error and hint.startswith("hint: ")
    assert outcome.stdout == "" and not (tmp_path / "out").exists()


def test_a_place_is_needed_and_must_be_a_directory(tmp_path: Path, texts: Path):
    nowhere = here("pretrain", "--text", str(texts), cwd=tmp_path)
    assert nowhere.status == 2 and "--output DIR" in nowhere.errors[1]
    (tmp_path / "file").write_text("x")
    assert "is a file" in pretrain(texts, tmp_path / "file").errors[0]
    (tmp_path / "run.json").write_text("{}")
    a_run = pretrain(texts, tmp_path, {}, "--force")
    assert a_run.status == 3 and "is a run" in a_run.errors[0] and not (tmp_path / "training").exists()


def test_a_broken_state_is_told_as_such_and_force_begins_again(tmp_path: Path, texts: Path):
    with interrupted_after(5):
        pretrain(texts, tmp_path / "out")
    (state,) = (tmp_path / "out/training/state").iterdir()
    (weights,) = state.glob("*.safetensors")
    for path in (weights, state / "state.json"):
        path.write_bytes(path.read_bytes()[:100])
        outcome = pretrain(texts, tmp_path / "out")
        assert outcome.status == 3 and path.name in outcome.errors[0] and "--force" in outcome.errors[1]
    assert pretrain(texts, tmp_path / "out", {}, "--force").status == 0


def test_a_plan_names_what_a_run_takes_and_writes_nothing(tmp_path: Path, texts: Path):
    outcome = pretrain(texts, tmp_path / "out", {"pretrain.checkpoints": "log"}, "--dry-run")
    assert outcome.status == 0 and not (tmp_path / "out").exists()
    for word in ("290 tokens", "parameters", "12 steps", "0 1 2 4 8", "a step took", "memory"):
        assert word in outcome.stdout + outcome.stderr, word


def test_python_gives_the_model_of_the_command_and_goes_on_where_it_was_broken_off(tmp_path: Path, texts: Path):
    expected = model_of(pretrain(texts, tmp_path / "command"))
    with interrupted_after(7), pytest.raises(KeyboardInterrupt):
        circuitcli.pretrain(texts, tmp_path / "python", settings=SMALL)
    for _ in range(2):
        model = circuitcli.pretrain(texts, tmp_path / "python", settings=SMALL)
        assert model.adapter.n_layers == 2 and model.tokenizer.vocab_size == 290
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("command", "python")]
    assert weights[0] == weights[1] and expected["n_parameters"] > 0
    with pytest.raises(InputError, match="another model"):
        circuitcli.pretrain(texts, tmp_path / "python", settings=SMALL, seed=1)


def test_too_little_text_is_refused(tmp_path: Path, small: Settings):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(InputError, match="too few"):
        corpus.split_text(changed(small, {"data.text": str(tmp_path / "a.txt")}))
    with pytest.raises(SettingsError):
        changed(small, {"pretrain.n_heads": 5}).pretrain.check()
