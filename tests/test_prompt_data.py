"""Real files of prompts, as their projects publish them, give the prompts that a slow count finds usable."""

import csv
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from circuitcli.attribution.examples import LeftOut
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.attribution.prompts import Needs, encode_all
from circuitcli.errors import InputError
from circuitcli.models.loading import LanguageModel, load_model, load_tokenizer
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.settings.model import ModelSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
GREATER, IOI = DATA / "greater-than.csv", DATA / "ioi-llama.csv"
NOUNS, SIMPLE = (DATA / "subject-verb" / name for name in ("nounpp_test.json", "simple_test.json"))
# Of a file so many prompts are looked at: each is encoded by itself.
FIRST = 150
MODEL = os.environ.get("CIRCUIT_TEST_MODEL")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside this checkout")


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load_model(ModelSettings(name="builtin:tiny", device="cpu"))


def rows(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Clean text, corrupted text, answer and other answer of a file, by its own fields."""
    if path.suffix == ".json":
        for line in path.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            yield tuple(found[name] for name in ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"))
    else:
        with path.open(encoding="utf-8", newline="") as stream:
            for found in csv.DictReader(stream):
                # Years of one digit are written without their zero.
                yield found["clean"], found["corrupted"], f"{int(found['label']):02d}", "a"


def slow_count(path: Path, tokenizer: Tokenizer) -> tuple[int, int]:
    """Prompts whose answers are single tokens, and those of them whose counterfactual is equally long."""
    encode = tokenizer.encode
    single = [row for row in islice(rows(path), FIRST) if len(encode(row[2])) == len(encode(row[3])) == 1]
    return len(single), sum(len(encode(clean)) == len(encode(corrupted)) for clean, corrupted, *_ in single)


def counts(path: Path, tokenizer: Tokenizer, tiny: LanguageModel, *, foil: bool = True) -> tuple[int, int]:
    """The same by this program; none left is an error."""
    found, examples = [], read_examples(str(path))[:FIRST]
    for needs in (Needs(foil=foil), Needs(foil=foil, counterfactual=True)):
        left_out = LeftOut(allowed=True)
        try:
            prompts = encode_all(examples, tokenizer, tiny.adapter, needs=needs, left_out=left_out)
        except InputError:
            prompts = ()
        assert len(prompts) + left_out.n == len(examples)
        found.append(len(prompts))
    return found[0], found[1]


def test_subject_verb_pairs_of_the_built_in_model(tiny):
    assert counts(NOUNS, tiny.tokenizer, tiny) == slow_count(NOUNS, tiny.tokenizer) == (117, 60)
    assert counts(SIMPLE, tiny.tokenizer, tiny) == slow_count(SIMPLE, tiny.tokenizer) == (96, 55)


def test_years_of_one_token_are_the_labels_of_greater_than(tiny):
    assert counts(GREATER, tiny.tokenizer, tiny, foil=False) == slow_count(GREATER, tiny.tokenizer)
    examples = read_examples(str(GREATER))
    assert len(examples) == 1000 and all(len(example.target) == 2 for example in examples)
    assert examples[0].target == "52" and examples[0].prompt.endswith("from the year 1352 to the year 13")


def test_the_ids_of_another_models_tokenizer_are_refused(tiny):
    examples = read_examples(str(IOI))
    assert len(examples) == 499 and (examples[0].target, examples[0].foil) == (47764, 26757)
    assert examples[0].counterfactual.endswith("Tiffany decided to give a drink to")
    with pytest.raises(InputError, match=r"ioi-llama\.csv line 2: the target is token id 47764"):
        encode_all(examples, tiny.tokenizer, tiny.adapter, needs=Needs(), left_out=LeftOut(allowed=True))


@pytest.mark.real
@pytest.mark.skipif(not MODEL, reason="CIRCUIT_TEST_MODEL names no model directory (see .ci/run)")
def test_pairs_and_years_of_a_real_tokenizer(tiny):
    tokenizer = load_tokenizer(ModelSettings(name=MODEL))
    for path in (NOUNS, SIMPLE, GREATER):
        expected = slow_count(path, tokenizer)
        assert counts(path, tokenizer, tiny, foil=path != GREATER) == expected
        # Models write verbs as one token, and so their forms, but some write each digit as one.
        assert path == GREATER or expected[0] > expected[1] > expected[0] / 2
