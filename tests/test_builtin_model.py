"""The model that ships with the package: it loads anywhere, and it has learnt what there is to interpret."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitcli.errors import InputError
from circuitcli.models import builtin
from circuitcli.pretraining import corpus, optimiser
from circuitcli.pretraining.batches import Windows
from circuitcli.pretraining.tokenizer import END_OF_TEXT
from circuitcli.settings.sources import load

CONFIG = Path(__file__).parents[1] / "configs" / "tiny-model.toml"
WHOLE = load(config=[CONFIG], environment={}, directory=CONFIG.parent).settings
SETTINGS = WHOLE.pretrain
DIRECTORY = builtin.directory("tiny")


@pytest.fixture(scope="module")
def tokens(vocabulary):
    """The text that the model was trained on, and what was held out of it."""
    return corpus.tokenize(corpus.split_text(WHOLE), vocabulary, SETTINGS)


@pytest.fixture(scope="module")
def vocabulary():
    """The shipped tokenizer."""
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model():
    """The shipped model in float32."""
    return AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def next_token(model, vocabulary) -> Callable[[str], dict[str, float]]:
    """Probability of each token's text after a prompt."""
    texts = [vocabulary.decode([token]) for token in range(len(vocabulary))]

    def probabilities(prompt: str) -> dict[str, float]:
        ids = torch.tensor([[vocabulary.bos_token_id, *vocabulary(prompt).input_ids]])
        with torch.no_grad():
            last = model(input_ids=ids).logits[0, -1].softmax(-1)  # (vocab,)
        return dict(zip(texts, last.tolist(), strict=True))

    return probabilities


def test_it_is_small_and_has_the_shape_of_its_configuration(model, vocabulary):
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) < 5_000_000
    assert len(vocabulary) == model.config.vocab_size == SETTINGS.vocab_size
    assert (model.config.n_layer, model.config.n_head) == (SETTINGS.n_layers, SETTINGS.n_heads)
    assert (model.config.n_embd, model.config.n_positions) == (SETTINGS.d_model, SETTINGS.context_length)


def test_its_files_name_no_place_on_the_machine_that_made_them():
    for path in DIRECTORY.glob("*.json"):
        if path.name != "tokenizer.json":
            values = json.loads(path.read_text()).values()
            assert not any(isinstance(value, str) and value.startswith(("/", "~")) for value in values)


def test_one_special_token_begins_ends_and_pads(model, vocabulary):
    assert vocabulary.all_special_tokens == [END_OF_TEXT]
    special = {vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.pad_token_id}
    assert special == {model.config.bos_token_id} == {0}
    assert 0 not in vocabulary("def f(): pass").input_ids


@pytest.mark.parametrize("text", ["def f(x):\n\treturn  x\r\n\n\n", "naïve 日本語 🙂", "  lead", "a\0b", ""])
def test_its_tokenizer_restores_every_text(vocabulary, text: str):
    assert vocabulary.decode(vocabulary(text).input_ids) == text


def test_held_out_text_is_predicted_far_better_than_by_frequency(model, tokens):
    unigram = corpus.unigram_loss(tokens)
    held_out = Windows(tokens, SETTINGS, seed=0).held_out(n_batches=8)
    loss = optimiser.evaluate(model, held_out, device=torch.device("cpu"))
    assert loss < unigram - 2.5 < corpus.uniform_loss(SETTINGS.vocab_size)


@pytest.mark.parametrize(
    ("prompt", "expected", "at_least"),
    [
        ('print("hello world', '"', 0.2),
        ("    return len(self.items", ")", 0.6),
        ("if not isinstance(value, str", ")", 0.5),
        ("    def __init__(self", ",", 0.6),
        ("class Foo(object", ")", 0.5),
        ("open(path, 'r", "'", 0.1),
        ('print(f"{name', "}", 0.5),
        ("a[i", "]", 0.4),
        ("        self", ".", 0.7),
        ("        return self", ".", 0.7),
        ("if x is None", ":", 0.5),
        ("except KeyError", ":", 0.5),
        ("    while True", ":", 0.3),
        ("for key, value in self.items", "()", 0.6),
        ("if __name__ ==", "__", 0.4),
    ],
)
def test_what_is_open_is_closed_and_what_is_usual_goes_on(next_token, prompt: str, expected: str, at_least: float):
    told = next_token(prompt)
    assert sum(p for text, p in told.items() if expected in text) > at_least


@pytest.mark.parametrize(
    ("pattern", "first", "second"),
    [
        ("print({}hello world", '"', "'"),
        ("raise ValueError({}cannot open file", '"', "'"),
        ("x = {}1, 2, 3", "[", "("),
        ("y = f{}a, b", "(", "["),
    ],
)
def test_what_closes_is_what_was_opened(next_token, pattern: str, first: str, second: str):
    closing = {"[": "]", "(": ")"}
    odds = []
    for opened in (first, second):
        told = next_token(pattern.format(opened))
        odds.append([_starting(told, closing.get(mark, mark)) for mark in (first, second)])
    assert odds[0][0] > 5 * odds[1][0]
    assert odds[1][1] > 5 * odds[0][1]


def _starting(told: dict[str, float], mark: str) -> float:
    return sum(p for text, p in told.items() if text.startswith(mark))


def test_a_name_seen_before_is_copied(next_token):
    pattern = "    def get_{0}(self):\n        return self._{0}\n\n    def set_{0}(self, {0}):\n        self._"
    names = ("frame", "value", "path", "state", "parent", "key", "count", "index")
    told = {name: next_token(pattern.format(name)) for name in names}
    for name in names:
        assert told[name][name] > 0.5
        assert max(told[other][name] for other in names if other != name) < 0.1


def test_held_out_text_is_far_easier_the_second_time(model, tokens):
    losses = _losses_of_repeats(model, tokens.validation[tokens.validation != 0], length=20)  # (position,)
    assert losses[21:].mean() < 0.65 * losses[:20].mean()


def test_even_random_words_are_easier_the_second_time(model, vocabulary):
    texts = [vocabulary.decode([token]) for token in range(len(vocabulary))]
    words = torch.tensor([token for token, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha()])
    chosen = words[torch.randint(len(words), (4_000,), generator=torch.Generator().manual_seed(0))]
    losses = _losses_of_repeats(model, chosen, length=20)  # (position,)
    assert losses[21:].mean() < losses[:20].mean() - 0.4


def _losses_of_repeats(model, stream: Tensor, *, length: int) -> Float[Tensor, " position"]:
    """Nats at each position of pieces of the stream said twice, averaged over the pieces."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(stream) - length, (64, 1), generator=generator)
    pieces = stream[starts + torch.arange(length)]  # (batch, length)
    ids = torch.cat([torch.zeros(64, 1, dtype=torch.long), pieces, pieces], dim=1)  # (batch, position)
    with torch.no_grad():
        logits = model(input_ids=ids).logits  # (batch, position, vocab)
    return functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none").mean(0)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'huge'") as caught:
        builtin.directory("huge")
    assert "builtin:tiny" in caught.value.hint
    assert builtin.names() == ["tiny"]
    with pytest.raises(InputError):
        builtin.directory("../builtin/tiny")
