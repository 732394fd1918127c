"""Well-known releases of SAEs by short name, and fetching them; needs no torch.

What is known of a release is data, in catalogue_listed.toml and catalogue.toml; which files an SAE has, its own format
knows.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from circuitcli.errors import InputError, ToolError, first_line
from circuitcli.hookpoints import HookPoint
from circuitcli.models.hub import hub_answers, refusal
from circuitcli.saes.exchange import hooks
from circuitcli.saes.exchange.place import Changes

# Of the list that SAELens comes with, by tests/make_catalogue.py; and what is written by hand, which counts where both
# have a release.
LISTED, BY_HAND = (Path(__file__).with_name(name) for name in ("catalogue_listed.toml", "catalogue.toml"))
# At the top of a repository and about all of its SAEs.
SHARED = ("config.json", "config.yaml")


@dataclass(frozen=True)
class Entry:
    """One SAE of a release: its id, where it lies in the repository, and what its files may not say.

    also: a further file of it. layer: where it is, even if only its files tell the site. revision: of its repository.
    """

    id: str
    path: str
    changes: Changes
    also: str | None = None
    layer: int | None = None
    revision: str | None = None

    @property
    def hook(self) -> HookPoint | None:
        """Its hook point, if the catalogue tells it."""
        return self.changes.hook

    @property
    def short_names(self) -> tuple[str, ...]:
        """What stands for its path where no other has it: the last part, without the file's type, or parts joined."""
        last = self.path.rpartition("/")[2]
        return (last, last.removesuffix(".safetensors").removesuffix(".pt"), self.path.replace("/", "_"))


@dataclass(frozen=True)
class Release:
    """SAEs that were published together; ``changes`` is what is known of all of them."""

    name: str
    repo: str
    format: str
    changes: Changes
    entries: tuple[Entry, ...]

    def entry(self, wanted: str) -> Entry:
        """The SAE of an id, SAELens's too, of a hook point in our words or TransformerLens's, or of a path.

        Of several at a hook point the catalogue's first counts. Raises InputError for what cannot be a path either.
        """
        for found in self.entries:
            if wanted in (found.id, found.path):
                return found
        of_part = [found for found in self.entries if wanted in found.short_names]
        if len(of_part) == 1:
            return of_part[0]
        hook = _of_transformer_lens(wanted)
        for found in self.entries:
            if found.hook is not None and (wanted == str(found.hook) or found.hook == hook):
                return found
        known = [found.id for found in self.entries] + [str(found.hook) for found in self.entries if found.hook]
        if not self.entries or "/" in wanted:
            return Entry(wanted, wanted, self.changes)
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
        hint = f"did you mean {self.name}/{near[0]}?" if near else f"it has {' '.join(dict.fromkeys(known[-1:-9:-1]))}"
        raise InputError(f"{self.name} has no SAE '{wanted}'", hint=hint)

    def at(self, wanted: Collection[HookPoint]) -> list[Entry]:
        """The SAEs at these hook points, one each; of those whose site their files tell all of these layers."""
        layers = {hook.layer for hook in wanted}
        of_layers = [entry for entry in self.entries if entry.hook is None and entry.layer in layers]
        return [entry for hook, entry in self.by_hook().items() if hook in wanted] + of_layers

    def by_hook(self) -> dict[HookPoint, Entry]:
        """One SAE for each hook point: the catalogue's first."""
        found: dict[HookPoint, Entry] = {}
        for entry in self.entries:
            if entry.hook is not None:
                found.setdefault(entry.hook, entry)
        return {hook: found[hook] for hook in sorted(found)}


@cache
def releases() -> dict[str, Release]:
    """All releases by name."""
    return {name: _release(name, table) for name, table in _content().items() if "refused" not in table}


def refused() -> dict[str, str]:
    """Why some releases cannot be used, by name."""
    return {name: table["refused"] for name, table in _content().items() if "refused" in table}


@cache
def _content() -> dict[str, Any]:
    listed, by_hand = (tomllib.loads(path.read_text(encoding="utf-8")) for path in (LISTED, BY_HAND))
    return {**listed, **by_hand}


def cross_layer(name: str) -> str | None:
    """The release of the cross-layer transcoder in the repository of a release that cannot be used, if there is one."""
    repo = _content()[name].get("repo")
    of_repo = (release for release in releases().values() if release.repo == repo)
    return next((release.name for release in of_repo if any(entry.also for entry in release.entries)), None)


def nearest(name: str) -> list[str]:
    """Names of releases that look like this one, best first; of models of the same size if there are such."""
    known = [*releases(), *refused()]
    begun = [one for one in known if one.startswith(name)]
    near = difflib.get_close_matches(name, known, n=len(known), cutoff=0.6)
    same = [one for one in near if _sizes(name) == _sizes(one)]
    return list(dict.fromkeys(begun + (same or near)))[:3]


def _sizes(name: str) -> list[str]:
    """The numbers in a name: a model of another version or size is another model."""
    return re.findall(r"[0-9.]+[bmk]?", name.lower())


def fetch(release: Release, entry: Entry) -> Path:
    """Where the SAE lies on this machine, downloaded if it is not there yet and the hub answers.

    Raises ToolError if it cannot be had, InputError if the repository has no such path.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    online = hub_answers()
    patterns = [entry.path, f"{entry.path}/*", *([entry.also] if entry.also else []), *SHARED]
    try:
        root = snapshot_download(
            release.repo, revision=entry.revision, allow_patterns=patterns, local_files_only=not online
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        told = refusal(error, repository=release.repo, kind="repository") if online else None
        raise told or _not_there(release, entry, online=online, why=first_line(error)) from None
    path = Path(root) / entry.path
    if not path.exists():
        raise _not_there(release, entry, online=online, why="no such path")
    return path


def _of_transformer_lens(name: str) -> HookPoint | None:
    try:
        return hooks.from_transformer_lens(name).hook
    except InputError:
        return None


def _not_there(release: Release, entry: Entry, *, online: bool, why: str) -> InputError | ToolError:
    what = f"{release.name}/{entry.id} ({entry.path} of {release.repo})"
    if not online:
        return ToolError(
            f"{what} is not in the local cache, and the hub cannot be reached",
            hint="connect once to fill the cache, or name files that are here with --sae PATH",
        )
    if why == "no such path":
        return InputError(f"{what}: the repository has no such path", hint=f"see https://huggingface.co/{release.repo}")
    return ToolError(f"cannot download {what}: {why}", hint="a gated repository needs HF_TOKEN, or `hf auth login`")


def _release(name: str, table: Mapping[str, Any]) -> Release:
    changes = Changes(normalisation=table.get("normalisation"), model=table["model"], bos=table.get("bos"))
    entries = tuple(entry for group in table.get("saes", ()) for entry in _entries(group, changes))
    return Release(name, table["repo"], table["format"], changes, entries)


def _entries(group: Mapping[str, Any], changes: Changes) -> Iterator[Entry]:
    """The SAEs of one line: one for each layer, or for each value where there is a single layer."""
    first, last = map(int, group["layers"].split(":"))
    layers, values = list(range(first, last)), group.get("values")
    if len(layers) == 1 and values is not None:
        layers *= len(values)
    for number, layer in enumerate(layers):
        words = {"layer": layer, "value": values[number] if values is not None else ""}
        hook, target, also = (
            None if name not in group else str(group[name]).format(**words) for name in ("hook", "target", "also")
        )
        yield Entry(
            group.get("id", group["path"]).format(**words),
            group["path"].format(**words),
            replace(
                changes,
                hook=None if hook is None else HookPoint.parse(hook),
                target=None if target is None else HookPoint.parse(target),
                scale=group["scales"][number] if "scales" in group else None,
            ),
            also=also,
            layer=layer,
        )
