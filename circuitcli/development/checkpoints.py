"""The checkpoints of a model: directories of one training, or the branches and tags of a hub model; torch-free."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from circuitcli.errors import InputError, SettingsError, ToolError, first_line
from circuitcli.models.hub import hub_answers, refusal
from circuitcli.reading import as_path
from circuitcli.schema import name_problem

FOLDER = "checkpoints"
# What every model in Hugging Face's format has.
_CONFIG = "config.json"
_SHOWN = 8


@dataclass(frozen=True)
class Checkpoint:
    """One point of a training. ``name`` names its folder in the run; ``step`` is the number in it, None without one."""

    name: str
    model: str
    revision: str | None = None

    @property
    def step(self) -> int | None:
        """The last number in the name: 1000 of step1000."""
        numbers = re.findall(r"\d+", self.name)
        return int(numbers[-1]) if numbers else None


def chosen(model: str, patterns: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of a model that the patterns name, by step; those without a number come last.

    Raises InputError for a model without checkpoints and for a pattern that fits none, ToolError where only the hub
    could tell and does not answer.
    """
    found = listed(model)
    names = [one.name for one in found]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"{model} has no checkpoint '{pattern}'", hint=_others(pattern, names))
    return in_order(one for one in found if any(fnmatchcase(one.name, pattern) for pattern in patterns))


def in_order(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """By step, then by name; those without a number, such as the branch main, come last."""
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, one.name))


def listed(model: str) -> list[Checkpoint]:
    """All checkpoints: of a directory the models in its folder ``checkpoints``, else those right in it; else the
    branches and tags of a hub model, or without a network those in the local cache."""
    if model.startswith("builtin:"):
        raise InputError(
            f"{model} comes without checkpoints", hint="name a directory of them with --model, or a hub model"
        )
    path = as_path(model)
    if path.is_dir():
        return _of_directory(path, model)
    if path.exists() or model.endswith(".gguf") or model.startswith(("/", ".", "~")):
        raise InputError(
            f"{model} is not a directory of checkpoints", hint="DIR/checkpoints/step1000 and so on, or a hub model"
        )
    return [_checked(Checkpoint(name.replace("/", "-"), model, name)) for name in _revisions(model)]


def _of_directory(path: Path, model: str) -> list[Checkpoint]:
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    found = [_checked(Checkpoint(one.name, str(one))) for one in sorted(folder.iterdir()) if (one / _CONFIG).is_file()]
    if not found:
        raise InputError(
            f"{folder} holds no checkpoints: none of its folders has a {_CONFIG}",
            hint=f"--model DIR means the models in DIR/{FOLDER}, as DIR/{FOLDER}/step1000",
        )
    return found


def _checked(one: Checkpoint) -> Checkpoint:
    if problem := name_problem(one.name):
        raise InputError(
            f"the checkpoint {one.name[:60]!r} of {one.model} cannot name a folder: {problem}",
            hint="rename it, or leave it out",
        )
    return one


def _revisions(model: str) -> list[str]:
    """Names of branches and tags."""
    from huggingface_hub import HfApi

    if not hub_answers():
        return _cached(model)
    try:
        refs = HfApi().list_repo_refs(model)
    except Exception as error:
        told = refusal(error, repository=model, kind="model")
        raise told or ToolError(f"the hub does not list the revisions of {model}: {first_line(error)}") from None
    return list(dict.fromkeys(one.name for one in [*refs.branches, *refs.tags]))


def _cached(model: str) -> list[str]:
    """The revisions of a hub model that are in the local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "refs"
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    if not found:
        raise ToolError(
            f"the hub does not answer, and the local cache has no revision of {model}",
            hint="get online, or name a directory of checkpoints with --model"
            + (", or unset HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else ""),
        )
    return found


def _others(pattern: str, names: Sequence[str]) -> str:
    near = get_close_matches(pattern, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"there are {' '.join(names[:_SHOWN])}{more}; --revisions takes names and patterns such as 'step*'"


def check_patterns(patterns: Sequence[str]) -> None:
    """Raise SettingsError if no checkpoint is asked for."""
    if not patterns:
        raise SettingsError("develop.revisions is empty", hint="for example --revisions 'step*'")
