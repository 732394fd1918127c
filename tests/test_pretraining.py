"""The pretraining tool: an interrupted run ends bit for bit where an unbroken one does."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitcli import progress
from circuitcli.errors import InputError, SettingsError
from circuitcli.pretraining import configuration, corpus, tokenizer, trainer
from circuitcli.pretraining.__main__ import main, pretrain
from circuitcli.pretraining.configuration import PretrainingSettings

CONFIGURATION = Path(__file__).parents[1] / "configs" / "tiny-model.toml"


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


@pytest.fixture
def small(texts: Path) -> PretrainingSettings:
    """A run of a second."""
    return PretrainingSettings(
        text=str(texts),
        validation_every=6,
        vocab_size=290,
        n_layers=2,
        n_heads=2,
        d_model=12,
        context_length=16,
        batch_size=3,
        steps=12,
        learning_rate=1e-2,
        warmup_steps=3,
        checkpoint_every=4,
    )


@contextmanager
def _interrupted_after(n_steps: int) -> Iterator[None]:
    """Ctrl-C in the run's own loop after so many steps."""

    @contextmanager
    def sink(title: str, total: float | None, unit: str, done: float) -> Iterator[progress.Advance]:
        left = n_steps

        def advance(amount: float = 1, *, note: str = "") -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        yield advance

    progress.set_sink(sink)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        progress.set_sink(None)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


@pytest.mark.parametrize("autocast", [False, True])
def test_an_interrupted_run_ends_bit_for_bit_like_an_unbroken_one(
    tmp_path: Path, small: PretrainingSettings, autocast: bool
):
    chosen = small.model_copy(update={"autocast": autocast})
    unbroken = pretrain(chosen, output=tmp_path / "unbroken")
    for n_steps in (2, 7, 3):
        with _interrupted_after(n_steps):
            pretrain(chosen, output=tmp_path / "broken")
    resumed = pretrain(chosen, output=tmp_path / "broken")
    assert resumed == unbroken
    expected, weights = _weights(tmp_path / "unbroken"), _weights(tmp_path / "broken")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_a_run_learns_and_another_seed_learns_something_else(tmp_path: Path, small: PretrainingSettings):
    longer = small.model_copy(update={"steps": 60})
    quality = pretrain(longer, output=tmp_path / "a")
    assert quality.validation_loss < quality.unigram_loss < quality.uniform_loss == pytest.approx(math.log(290))
    other = pretrain(longer.model_copy(update={"seed": 1}), output=tmp_path / "b")
    assert other.validation_loss != quality.validation_loss


def test_a_checkpoint_of_other_settings_or_text_is_refused(tmp_path: Path, small: PretrainingSettings):
    pretrain(small, output=tmp_path / "run")
    with pytest.raises(InputError, match="another settings"):
        pretrain(small.model_copy(update={"seed": 1}), output=tmp_path / "run")
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "run")
    tokens = corpus.tokenize(corpus.documents(small), vocabulary, context_length=small.context_length)
    changed = corpus.Corpus(tokens.training + 1, tokens.validation, tokens.n_validation_bytes, tokens.end_of_text)
    training = trainer.begin(small, end_of_text=tokens.end_of_text)
    with pytest.raises(InputError, match="another corpus"):
        trainer.resume(training, changed, small, output=tmp_path / "run")


def test_the_output_is_a_hugging_face_directory_stored_in_float16(tmp_path: Path, small: PretrainingSettings):
    quality = pretrain(small, output=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    vocabulary = AutoTokenizer.from_pretrained(tmp_path)
    tokens = corpus.tokenize(corpus.documents(small), vocabulary, context_length=small.context_length)
    assert trainer.evaluate(model, tokens, small) == quality.validation_loss
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16


def test_every_window_begins_with_end_of_text_and_depends_on_the_step_alone(small: PretrainingSettings):
    documents = corpus.documents(small)
    vocabulary = tokenizer.train(documents.training, vocab_size=290, context_length=16)
    tokens = corpus.tokenize(documents, vocabulary, context_length=16)
    windows = corpus.batch(tokens, small, step=5)
    assert windows.shape == (3, 16)
    assert (windows[:, 0] == vocabulary.bos_token_id).all()
    assert torch.equal(windows, corpus.batch(tokens, small, step=5))
    assert not torch.equal(windows, corpus.batch(tokens, small, step=6))
    assert int((tokens.training == vocabulary.bos_token_id).sum()) == len(documents.training) == 20


def test_held_out_windows_ask_for_every_token_once(small: PretrainingSettings):
    documents = corpus.documents(small)
    vocabulary = tokenizer.train(documents.training, vocab_size=290, context_length=16)
    tokens = corpus.tokenize(documents, vocabulary, context_length=16)
    asked = torch.cat([window[0, 1:] for window in corpus.held_out_windows(tokens, context_length=16)])
    assert torch.equal(asked, tokens.validation[1 : len(asked) + 1])
    assert len(tokens.validation) - 1 - len(asked) < 15


def test_the_unigram_guess_is_the_cross_entropy_of_counted_frequencies():
    tokens = corpus.Corpus(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 3]), 2, 0)
    expected = -(math.log(3 / 8) + math.log(1 / 8)) / 2
    assert corpus.unigram_loss(tokens, vocab_size=4) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["def f(x):\n        return x\n\n\n\n\ta = 1  \n", "naïve 日本語 🙂 don't", "  x\r\n y", "12345 1.5e-3", ""]
)
def test_the_tokenizer_restores_every_text(small: PretrainingSettings, text: str):
    vocabulary = tokenizer.train(corpus.documents(small).training, vocab_size=290, context_length=16)
    assert vocabulary.decode(vocabulary(text).input_ids) == text
    assert vocabulary.bos_token_id == vocabulary.eos_token_id == vocabulary.pad_token_id == 0


def test_a_word_after_indentation_is_the_token_it_is_after_a_space(small: PretrainingSettings):
    vocabulary = tokenizer.train([" return x\n        return y\n" * 20], vocab_size=290, context_length=16)
    assert vocabulary.tokenize(" x\n        return") == ["Ġx", "ĊĠĠĠĠĠĠĠ", "Ġreturn"]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(small: PretrainingSettings):
    rates = [trainer.learning_rate(small, step=step) for step in range(small.steps + 1)]
    assert max(rates) == rates[small.warmup_steps] == small.learning_rate
    assert rates[: small.warmup_steps] == sorted(rates[: small.warmup_steps])
    assert rates[small.warmup_steps :] == sorted(rates[small.warmup_steps :], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_the_shipped_configuration_loads_and_is_what_the_defaults_say():
    assert configuration.load(CONFIGURATION) == PretrainingSettings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat = 1e-3", "learning_rat"),
        ("steps = 0", "steps"),
        ("d_model = 30", "not a multiple of n_heads"),
        ("steps = ", "is not TOML"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, capsys, content: str, message: str):
    path = tmp_path / "wrong.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        configuration.load(path)
    assert main(["--config", str(path), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_little_text_is_refused(tmp_path: Path, small: PretrainingSettings):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(InputError, match="too few"):
        corpus.documents(small.model_copy(update={"text": str(tmp_path / "a.txt")}))


def test_the_command_line_tells_the_quality(tmp_path: Path, small: PretrainingSettings, capsys):
    # TOML has no word for what is not set.
    values = small.model_dump(exclude_none=True)
    lines = [
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()
    ]
    (tmp_path / "small.toml").write_text("\n".join(lines))
    try:
        assert main(["--config", str(tmp_path / "small.toml"), "--output", str(tmp_path / "run")]) == 0
    finally:
        progress.set_sink(None)
    told = capsys.readouterr()
    for name in ("validation_loss", "uniform_loss", "unigram_loss", "bits_per_byte"):
        assert name in told.out
    assert "12/12 steps" in told.err
