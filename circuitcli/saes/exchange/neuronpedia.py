"""Where Neuronpedia shows the features of published SAEs: model and source by repository and path; needs no torch."""

import re
import tomllib
from functools import cache
from pathlib import Path

# Of the list that SAELens comes with, by tests/make_neuronpedia.py.
LISTED = Path(__file__).with_name("neuronpedia.toml")
SITE = "https://www.neuronpedia.org"
# A model and a source, such as gpt2-small/8-res-jb.
_SOURCE = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,200}")


def source_of(repository: str, path: str) -> str | None:
    """What Neuronpedia calls the SAE at a path of a repository, ``gpt2-small/8-res-jb``; None if it has none."""
    return _sources().get((repository, path))


def is_source(text: object) -> bool:
    """Whether a text has the form of a model and a source."""
    return isinstance(text, str) and _SOURCE.fullmatch(text) is not None


def address(source: str) -> str:
    """The page of a source; that of a feature has its number behind another slash."""
    return f"{SITE}/{source}"


@cache
def _sources() -> dict[tuple[str, str], str]:
    found = {}
    for repository, table in tomllib.loads(LISTED.read_text(encoding="utf-8")).items():
        for path, sources in table.items():
            for source, layers in sources.items():
                found.update({(repository, path.format(layer=n)): source.format(layer=n) for n in layers})
    return found
