"""The README's lines about small models, toys and circuits through training, on a text that is made here."""

import json
import random
import re
from pathlib import Path

import pytest
import test_readme
from test_readme import README, adapted, run

NAMES = ("ROMEO", "JULIET", "NURSE", "TYBALT")
WORDS = ("the", "of", "love", "night", "and", "moon", "thou", "art", "sword", "rose", "name", "would", "smell", "sweet")
SMALL = {
    "CIRCUIT_PRETRAIN__STEPS": "24",
    "CIRCUIT_PRETRAIN__BATCH_SIZE": "16",
    "CIRCUIT_PRETRAIN__WARMUP_STEPS": "4",
    "CIRCUIT_PRETRAIN__EVALUATE_EVERY": "12",
    "CIRCUIT_PRETRAIN__CHECKPOINTS": "every:12",
    "CIRCUIT_DATA__TOKENS": "3000",
    "CIRCUIT_SAE__D_SAE": "48",
    "CIRCUIT_TRAIN__TOKENS": "3000",
    "CIRCUIT_INTERACTION__LENGTH": "24",
    "CIRCUIT_VALIDATE__SEQUENCES": "2",
    "CIRCUIT_TOY__STEPS": "20",
    "CIRCUIT_SYNTHETIC__SAMPLES": "4000",
    "CIRCUIT_SYNTHETIC__SHRINK": "64",
    "CIRCUIT_SYNTHETIC__BASELINES": "pca",
}


def lines() -> list[str]:
    (block,) = re.findall(r"<!-- run by tests/test_small_models.py -->\s*```sh\n(.*?)```", README, flags=re.DOTALL)
    return block.strip().split("\n")


def book(speeches: int) -> str:
    numbers = random.Random(0)
    return "".join(
        f"{numbers.choice(NAMES)}:\n{' '.join(numbers.choices(WORDS, k=numbers.randint(6, 20)))}.\n\n"
        for _ in range(speeches)
    )


def test_every_line_about_small_models_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book.txt").write_text(book(600), encoding="utf-8")
    prompts = [{"prompt": f"so sweet.\n\n{name}", "target": ":"} for name in NAMES[:2]]
    (tmp_path / "colon.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts), encoding="utf-8")
    monkeypatch.setattr(test_readme, "SMALL", {**test_readme.SMALL, **SMALL})
    for line in lines():
        done = run(re.sub("--sequences [0-9]+", "--sequences 2", adapted(line, tmp_path)), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert (tmp_path / "gpt/checkpoints/step12/config.json").is_file() and (tmp_path / "learned.svg").is_file()
    assert (tmp_path / "grown/figures/development.html").is_file()
