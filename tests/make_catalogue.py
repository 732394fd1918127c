"""Writes the catalogue of releases from the list that the installed SAELens comes with.

python -m tests.make_catalogue

The list says for each release its repository, its model in TransformerLens's words, how SAELens converts its files, and
of each SAE an id and a path. What it does not say, and only the releases' own papers, cards or code do, is in the
tables below. Releases that are not in the list are written by hand, in catalogue.toml; what is there is left out here.
"""

import importlib.metadata
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from circuitcli.errors import InputError
from circuitcli.saes.exchange import catalogue, hooks
from circuitcli.saes.exchange.place import Changes

# A model's name at the hub; all others are the same in TransformerLens's words.
MODELS = {
    r"gpt2-small": "gpt2",
    r"pythia-(.*)": r"EleutherAI/pythia-\1",
    r"gemma-(.*)": r"google/gemma-\1",
    r"mistral-7b": "mistralai/Mistral-7B-v0.1",
    r"qwen3-(.*)b": r"Qwen/Qwen3-\1B",
}
# Our format for each of SAELens's converters; SAELens's own files need none.
FORMATS = {
    None: "sae_lens",
    "dictionary_learning_1": "dictionary_learning",
    "gemma_2": "gemma_scope",
    "gemma_2_transcoder": "gemma_scope",
    "gemma_3": "gemma_scope",
    "goodfire": "goodfire",
    "deepseek_r1": "goodfire",
    "llama_scope": "llama_scope",
    "llama_scope_r1_distill": "llama_scope",
    "mwhanna_transcoder": "circuit_tracer",
    "qwen_scope": "qwen_scope",
    "temporal": "temporal",
}
# By name of the release, all that fit: what neither the list nor the files say.
FACTS: dict[str, dict[str, Any]] = {
    # Trained on models whose writing weights are centred, as TransformerLens loads them unless told otherwise.
    r"gpt2-small-(res-jb.*|mlp-tm|res_s.*-ajt)": {"normalisation": "centre"},
    r"mistral-7b-res-wg": {"normalisation": "rms-norm"},
    # Text begins with a BOS in training, or does not.
    r"gpt2-small-(res-jb.*|mlp-tm)": {"bos": True},
    r"gpt2-small-.*-v5-.*": {"bos": False},
    r"gemma-scope-.*|llama_scope_.*|sae_?bench_gemma-2-2b_.*|deepseek-r1-distill-llama-8b-qresearch": {"bos": True},
    # The list says gemma-2-9b, and so the base model.
    r"gemma-scope-9b-it-.*": {"model": "google/gemma-2-9b-it"},
}
# Their files tell the factor of their inputs themselves.
SCALED_BY_FILES = {r"llama_scope_lx.*": True}
OF_HEADS = (
    "its SAEs read what the attention heads give before the output projection mixes them, which is no hook point here"
)
REFUSED = {
    r"gpt2-small-hook-z-kk|gemma-scope-.*-att(-all|-canonical)?": OF_HEADS,
    r"mntss-.*-clt-as-per-layer": "it is a cross-layer transcoder, each of whose features writes to many layers; "
    "added up, as SAELens reads it, its decoders reconstruct no layer",
}
# Where an SAE reads, by its path, and for transcoders where it writes; else by its id, a name of TransformerLens.
HOOKS = {
    r"resid_post(_all)?/layer_(?P<layer>\d+)_.*": "resid.{layer}",
    r"mlp_out(_all)?/layer_(?P<layer>\d+)_.*": "mlp.{layer}",
    r"transcoder(_all)?/layer_(?P<layer>\d+)_.*": "mlp_in.{layer} mlp.{layer}",
    r"layer_(?P<layer>\d+)\.safetensors": "mlp_in.{layer} mlp.{layer}",
    r"layer(?P<layer>\d+)\.sae\.pt": "resid.{layer}",
    r"(.*/)?resid_post_layer_(?P<layer>\d+)(_checkpoints)?/trainer_.*": "resid.{layer}",
    r".*[-/]L(?P<layer>\d+)R(-\d+x)?": "resid.{layer}",
    r".*-L(?P<layer>\d+)M-\d+x": "mlp.{layer}",
    r".*-L(?P<layer>\d+)A-\d+x": "attn.{layer}",
    r".*-SAE-l(?P<layer>\d+)\.pth?": "resid.{layer}",
}
# Gemma Scope's paths do not tell the site, its releases' names do.
HOOKS_OF_RELEASES = {
    r"gemma-scope-.*-res-canonical": "resid.{layer}",
    r"gemma-scope-.*-mlp-canonical": "mlp.{layer}",
    r"gemma-scope-2b-pt-transcoders": "mlp_in.{layer} mlp.{layer}",
}
LAYER_OF_GEMMA_SCOPE = re.compile(r"layer_(?P<layer>\d+)/.*")
LAYER_OF_TRANSFORMER_LENS = re.compile(r"blocks\.(?P<layer>\d+)\.hook_[a-z]+_[a-z]+")
# What differs between SAEs of one pattern besides the layer.
VALUES = re.compile(
    r"(?:average_l0_|/trainer_|:v)(?P<value>\w+)$|^(?:resid_post|mlp_out|transcoder)/layer_\d+_(?P<all>\w+)$"
)
# Of several SAEs at one hook point the first is meant where nobody says which.
_SIZES = ("medium", "small", "big")
_HEAD = """\
# Written by `python -m tests.make_catalogue` from the list of SAELens {version}; catalogue.toml is
# written by hand and says what the keys mean.

"""


@dataclass(frozen=True)
class Listed:
    """One SAE of the list, with what is the same for others of its release replaced by {layer} and {value}."""

    path: str
    id: str
    hook: str
    target: str | None
    layer: int
    value: int | str | None
    scale: float | None

    @property
    def pattern(self) -> tuple[str, str, str, str | None]:
        """What all SAEs of one line have in common."""
        return self.path, self.id, self.hook, self.target


@dataclass
class Line:
    """SAEs of one pattern: one for each layer of a range, or several values of one layer."""

    saes: list[Listed] = field(default_factory=list)

    def takes(self, sae: Listed) -> bool:
        """Whether the SAE goes on where the line ends."""
        if not self.saes:
            return True
        first, last = self.saes[0], self.saes[-1]
        alike = sae.pattern == first.pattern and (sae.value is None) == (first.value is None)
        alike &= (sae.scale is None) == (first.scale is None)
        if first.layer == last.layer and sae.layer == last.layer:
            return alike and sae.value is not None
        return alike and sae.layer == last.layer + 1 and last.layer - first.layer == len(self.saes) - 1

    def table(self) -> dict[str, Any]:
        """The line as the catalogue holds it."""
        first = self.saes[0]
        values, scales = [sae.value for sae in self.saes], [sae.scale for sae in self.saes]
        table: dict[str, Any] = {"path": first.path, "id": first.id, "hook": first.hook, "target": first.target}
        table |= {"layers": f"{first.layer}:{self.saes[-1].layer + 1}"}
        table |= {"values": values if first.value is not None else None}
        table |= {"scales": scales if first.scale is not None else None}
        table["id"] = None if table["id"] == table["path"] else table["id"]
        return {name: value for name, value in table.items() if value is not None}


def sae_lens_list() -> dict[str, Any]:
    """The releases that the installed SAELens knows, without importing it. Raises ImportError if there is none."""
    found = importlib.util.find_spec("sae_lens")
    if found is None or found.origin is None:
        raise ImportError("sae-lens is not installed")
    path = Path(found.origin).with_name("pretrained_saes.yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return dict(content.get("SAES", content))


def catalogued(listed: Mapping[str, Any], *, by_hand: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The tables of the catalogue by release. Raises ValueError for a release that the tables above do not cover."""
    return {name: _table(name, listed) for name in listed if name not in set(by_hand)}


def _table(name: str, listed: Mapping[str, Any]) -> dict[str, Any]:
    about = listed[name]
    model = next((re.sub(p, to, about["model"]) for p, to in MODELS.items() if re.fullmatch(p, about["model"])), None)
    table: dict[str, Any] = {"repo": about["repo_id"], "model": model or about["model"]}
    if reasons := _fitting(REFUSED, name):
        return {**table, "refused": reasons[0]}
    converter = about.get("conversion_func")
    if converter not in FORMATS:
        raise ValueError(f"{name}: no format is known for what SAELens converts by {converter}")
    table["format"] = FORMATS[converter]
    for facts in _fitting(FACTS, name):
        table |= facts
    # All SAEs of a release whose best ones have a release of their own are named by their paths.
    return table if f"{name}-canonical" in listed else {**table, "saes": _lines(name, about["saes"])}


def _fitting(table: Mapping[str, Any], name: str) -> list[Any]:
    return [value for pattern, value in table.items() if re.fullmatch(pattern, name)]


def _lines(release: str, saes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [_listed(release, sae) for sae in saes]
    patterns = list(dict.fromkeys(sae.pattern for sae in found))
    ranks = {pattern: (*_rank(pattern[0]), number) for number, pattern in enumerate(patterns)}
    lines = [Line()]
    for sae in sorted(
        found, key=lambda sae: (ranks[sae.pattern], sae.layer, *_rank(str(sae.value)), _number(sae.value))
    ):
        if not lines[-1].takes(sae):
            lines.append(Line())
        lines[-1].saes.append(sae)
    return [line.table() for line in lines if line.saes]


def _listed(release: str, sae: Mapping[str, Any]) -> Listed:
    path, name = str(sae["path"]), str(sae["id"])
    found, hook = _hook(release, path, name)
    read, _, written = hook.partition(" ")
    layer = found["layer"]
    varied = VALUES.search(path)
    end = varied["value"] or varied["all"] if varied else None
    path_pattern = _replaced(path, found.span("layer") if found.string == path else _span(path, layer), end)
    by_path = name in (path, *catalogue.Entry(path, path, Changes()).short_names)
    if by_path or _is_transformer_lens(name):
        id_pattern = path_pattern
    else:
        id_pattern = _replaced(name, _span(name, layer), end if end and name.endswith(end) else None)
    chosen = int(end) if end and end.isdecimal() else end
    scale = None if _fitting(SCALED_BY_FILES, release) else sae.get("norm_scaling_factor")
    return Listed(path_pattern, id_pattern, read, written or None, int(layer), chosen, scale)


def _hook(release: str, path: str, name: str) -> tuple[re.Match[str], str]:
    """The match that holds the layer, and the hook points read and written, with {layer}."""
    for hook in _fitting(HOOKS_OF_RELEASES, release):
        if found := LAYER_OF_GEMMA_SCOPE.fullmatch(path):
            return found, hook
    for pattern, hook in HOOKS.items():
        if found := re.fullmatch(pattern, path):
            return found, hook
    if found := LAYER_OF_TRANSFORMER_LENS.match(name):
        return found, f"{hooks.from_transformer_lens(found[0]).hook.site}.{{layer}}"
    raise ValueError(f"{release}: no hook point is known for {path}")


def _is_transformer_lens(name: str) -> bool:
    try:
        hooks.from_transformer_lens(name)
    except InputError:
        return False
    return True


def _span(text: str, layer: str) -> tuple[int, int] | None:
    """Where a path or an id has its layer."""
    found = re.search(rf"(layer_?|blocks\.|^l?)(?P<layer>{layer})(?!\d)", text)
    return found.span("layer") if found else None


def _replaced(text: str, layer: tuple[int, int] | None, value: str | None) -> str:
    """The text with its last part {value} and its number of the layer {layer}, if it has them."""
    if value is not None:
        text = text.removesuffix(value) + "{value}"
    return text if layer is None else f"{text[: layer[0]]}{{layer}}{text[layer[1] :]}"


def _rank(path: str) -> tuple[bool, float, int]:
    """Checkpoints and affine ones last, narrow ones before wide ones, of middle sparsity ones before others."""
    if split := re.search(r"hook_resid_pre_(\d+)$", path):
        # The narrow ones of the experiment on feature splitting are there to be compared with.
        return False, -float(split[1]), 0
    width = re.search(r"width_(\d+)([km])", path)
    size = next((number for number, word in enumerate(_SIZES) if f"l0_{word}" in path), 0)
    narrow = float(width[1]) * (1000 if width[2] == "m" else 1) if width else 0.0
    return "_checkpoints/" in path or path.endswith("_affine"), narrow, size


def _number(value: int | str | None) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", str(value))]


def as_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as TOML, one SAE pattern a line."""
    return "\n".join("\n".join(_table_lines(name, table)) for name, table in tables.items())


def _table_lines(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{name}]" if re.fullmatch(r"[\w-]+", name) else f"[{json.dumps(name)}]"
    for key, value in table.items():
        if key != "saes":
            yield f"{key} = {json.dumps(value)}"
            continue
        yield "saes = ["
        for line in value:
            yield f"  {{ {', '.join(f'{name} = {json.dumps(one)}' for name, one in line.items())} }},"
        yield "]"
    yield ""


def generated() -> str:
    """The text of the catalogue's generated file."""
    by_hand = tomllib.loads(catalogue.BY_HAND.read_text(encoding="utf-8"))
    version = importlib.metadata.version("sae-lens")
    return _HEAD.format(version=version) + as_toml(catalogued(sae_lens_list(), by_hand=by_hand))


if __name__ == "__main__":
    catalogue.LISTED.write_text(generated(), encoding="utf-8")
    print(f"{catalogue.LISTED}: {len(catalogue.releases())} releases with those by hand")
