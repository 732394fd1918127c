"""Writes where Neuronpedia shows the features of known SAEs, from the list that the installed SAELens comes with.

python tests/make_neuronpedia.py

The list names for each SAE its repository and path and, where Neuronpedia has it, its model and source there.
Checkpoints of the training of others are left out, and what circuit does not read.
"""

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from make_catalogue import REFUSED, sae_lens_list

from circuitcli.saes.exchange.neuronpedia import LISTED

_HEAD = """\
# Written by `python tests/make_neuronpedia.py` from the list of SAELens {version}: by repository, where in it an SAE
# lies and what model and source Neuronpedia calls it, in which layers.

"""
_LAYER = r"(?:layer_?|blocks\.|^l?)(?P<layer>{layer})(?!\d)|-L(?P<large>{layer})(?=[A-Z])"


def known(listed: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Model and source at Neuronpedia by repository and path; of two names of one SAE the shorter."""
    found: dict[tuple[str, str], str] = {}
    for release, about in listed.items():
        if any(re.fullmatch(pattern, release) for pattern in REFUSED):
            continue
        for sae in about["saes"]:
            place, name = (about["repo_id"], str(sae["path"])), sae.get("neuronpedia")
            if name and "_checkpoints/" not in place[1]:
                found[place] = min(name, found.get(place, name), key=len)
    return found


def tables(found: Mapping[tuple[str, str], str]) -> dict[str, dict[tuple[str, str], list[int]]]:
    """By repository, patterns of a path and a source with the layers that they hold for."""
    made: dict[str, dict[tuple[str, str], list[int]]] = {}
    for (repo, path), name in found.items():
        model, _, source = name.partition("/")
        layer = re.match(r"\d+", source)
        span = _span(path, layer[0]) if layer else None
        if layer is None or span is None:
            pattern = (path, name)
        else:
            pattern = (f"{path[: span[0]]}{{layer}}{path[span[1] :]}", f"{model}/{{layer}}{source[layer.end() :]}")
        made.setdefault(repo, {}).setdefault(pattern, []).append(int(layer[0]) if layer else 0)
    return made


def _span(path: str, layer: str) -> tuple[int, int] | None:
    match = re.search(_LAYER.format(layer=layer), path)
    return None if match is None else match.span("layer" if match["layer"] else "large")


def generated() -> str:
    """The text of the generated file."""
    head = _HEAD.format(version=importlib.metadata.version("sae-lens"))
    return head + "\n".join(_lines(tables(known(sae_lens_list()))))


def _lines(made: Mapping[str, Mapping[tuple[str, str], list[int]]]) -> Iterator[str]:
    for repo in sorted(made):
        yield f'["{repo}"]'
        by_path: dict[str, list[str]] = {}
        for (path, name), layers in made[repo].items():
            by_path.setdefault(path, []).append(f"{json.dumps(name)} = {sorted(layers)}")
        yield from (f"{json.dumps(path)} = {{ {', '.join(sources)} }}" for path, sources in by_path.items())
        yield ""


if __name__ == "__main__":
    LISTED.write_text(generated(), encoding="utf-8")
    print(LISTED)
