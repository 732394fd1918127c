"""Sizes of circuits by what is put in the place of everything else, as gpt-circuits compared them.

    python -m tests.bench.bench_search --run RUN --model GPT --text FILE [--prompts 50] [--length 3] [--json FILE]

RUN has SAEs of shakespeare_64x4 and cached training text; FILE is held-out text, of which each prompt is the first
characters of every 1,024. For each way the features kept at all hook points together, and the divergence there,
averaged over hook points. Published for 100 prompts of 3 characters, end-to-end JumpReLU SAEs, 0.25 nats, median and
mean: nearest 14 and 18.09; without position 17.5 and 21.92; zero 31 and 31.40; random of the same position 46 and
45.35; random 50 and 48.61.

    python -m tests.bench.bench_search --run RUN --model GPT --text FILE --prompts 2 --speed

compares many choices of features in one pass with one choice after the other.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import torch

from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution import subject as subjects
from circuitcli.attribution.prompts import Prompt
from circuitcli.attribution.search import nodes
from circuitcli.attribution.search.circuit import PromptSearch
from circuitcli.attribution.search.codes import TextCodes, kept_codes
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel, load_model
from circuitcli.saes import files
from circuitcli.saes.coders import Coders
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.search import SearchSettings

WAYS = {
    "nearest": {"by": "nearest"},
    "nearest, any position": {"by": "nearest", "position_weight": 0.0},
    "zero": {"by": "zero"},
    "random, same position": {"by": "random"},
    "random": {"by": "random", "position_weight": 0.0},
}
PUBLISHED = {
    "nearest": (14, 18.09),
    "nearest, any position": (17.5, 21.92),
    "zero": (31, 31.40),
    "random, same position": (46, 45.35),
    "random": (50, 48.61),
}


def prompts_of(model: LanguageModel, text: str, *, n: int, length: int) -> Iterator[Prompt]:
    """The first characters of every 1,024."""
    for number in range(n):
        ids = tuple(model.tokenizer.encode(text[number * 1024 : number * 1024 + length]))
        yield Prompt("", ids, tuple(model.tokenizer.token_strings(ids)), 0)


def searched(subject: Subject, codes: dict[HookPoint, TextCodes], way: str, *, max_kl: float) -> tuple[int, float]:
    """Size of the circuit, and its divergence, mean over hook points."""
    settings = SearchSettings(max_kl=max_kl, **WAYS[way])
    search = PromptSearch(subject, settings, codes, 128, seed=0)
    before, found = None, []
    for hook in search.hooks:
        before = search.nodes(hook, before)
        found.append(before)
    return sum(len(one.places) for one in found), fmean(one.kl for one in found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--length", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--max-kl", type=float, default=0.25)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(ModelSettings(name=asked.model, device="cpu"))
    coders = Coders.of(
        subjects.fitted(files.load(folder), model.adapter)
        for folder in sorted((asked.run / "saes").iterdir())
        if (folder / "weights.safetensors").exists()
    )
    cache = ActivationCache(asked.run / "activations", coders.hooks)
    codes = {
        hook: kept_codes(cache, coder, hook, n_rows=asked.tokens, path=asked.run / "codes" / f"{hook}-{asked.tokens}")
        for hook, coder in coders.items()
    }
    text = asked.text.read_text(encoding="utf-8")
    prompts = list(prompts_of(model, text, n=asked.prompts, length=asked.length))
    made = [subjects.build(model.adapter, coders, [prompt], metric="kl") for prompt in prompts]
    if asked.speed:
        _speed(made, codes, max_kl=asked.max_kl)
        return
    rows: dict[str, list[tuple[int, float]]] = {}
    for way in asked.ways.split(";") if ";" in asked.ways else [way for way in WAYS if way in asked.ways]:
        start = time.perf_counter()
        rows[way] = [searched(subject, codes, way, max_kl=asked.max_kl) for subject in made]
        sizes, divergences = zip(*rows[way], strict=True)
        print(
            f"{way:24} median {median(sizes):5.1f} mean {fmean(sizes):6.2f}   published {PUBLISHED[way]}   "
            f"KL median {median(divergences):.3f}   {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        if asked.json is not None:
            asked.json.write_text(json.dumps(rows))


def _speed(made: list[Subject], codes: dict[HookPoint, TextCodes], *, max_kl: float) -> None:
    """Many choices in a pass beside one, and the time of each."""
    usual, found = nodes._CHOICES, {}
    for _ in range(2):
        for size in (usual, 1):
            nodes._CHOICES = size
            start = time.perf_counter()
            sizes = [searched(subject, codes, "nearest", max_kl=max_kl)[0] for subject in made]
            found.setdefault(size, []).append((time.perf_counter() - start, sizes))
    best = {size: min(each[0] for each in some) for size, some in found.items()}
    print(f"together {best[usual]:.1f} s, one by one {best[1]:.1f} s, {best[1] / best[usual]:.1f} times as fast")
    print("same sizes:", found[usual][0][1] == found[1][0][1])


if __name__ == "__main__":
    main()
