"""What ``--sae`` names: files in any format, a release of the catalogue, a repository on the hub; needs no torch.

    PATH  FORMAT:PATH  FORMAT:hf://OWNER/REPOSITORY/PATH  RELEASE  RELEASE/HOOK  RELEASE/ID

several with commas between, each with ``@HOOK`` (a transcoder's ``@HOOK:TARGET``) behind it where files and path do not
tell the hook point.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.reading import as_path
from circuitcli.saes.exchange import catalogue, gemma_scope
from circuitcli.saes.exchange.catalogue import Entry, Release
from circuitcli.saes.exchange.circuit_tracer import NAME as TRACER
from circuitcli.saes.exchange.circuit_tracer_lists import listed
from circuitcli.saes.exchange.formats import FORMATS, find
from circuitcli.saes.exchange.neuronpedia import source_of
from circuitcli.saes.exchange.place import Changes, Place

HUB = "hf://"
RUN_FILE, RUN_SAES = "run.json", "saes"


def named(text: str, *, hooks: Collection[HookPoint] = ()) -> list[Place]:
    """The SAEs that a text names; of a whole release those at ``hooks``.

    Raises InputError, with the nearest name, for what is neither a path nor a release, and for an SAE whose hook point
    nobody tells; ToolError for one that cannot be downloaded.
    """
    base, changes = _split(text)
    there = _named(base, hooks)
    if changes.hook is not None and len(there) > 1:
        raise InputError(
            f"{base} names {len(there)} SAEs, but only one can belong at {changes.hook}",
            hint="name one of them in front of the @",
        )
    found = [place.changed(_joined(place.changes, changes)) for place in there]
    for place in found:
        if place.hook is None:
            what = "hook points, what it reads and what it predicts" if place.transcodes else "hook point"
            example = f"them behind an @, for example {base}@mlp_in.8:mlp.8"
            raise InputError(
                f"neither the files nor the path of {place.path} tell its {what}",
                hint=f"say {example if place.transcodes else f'it behind an @, for example {base}@resid.8'}",
            )
    return found


def by_hook(places: Iterable[Place]) -> dict[HookPoint, Place]:
    """One SAE for each hook point, in model order. Raises InputError if there are two at one."""
    found: dict[HookPoint, Place] = {}
    for place in places:
        assert place.hook is not None
        if place.hook in found:
            raise InputError(
                f"there is more than one SAE at {place.hook}: {found[place.hook].path} and {place.path}",
                hint="name one of them with --sae",
            )
        found[place.hook] = place
    return {hook: found[hook] for hook in sorted(found)}


def texts_of(written: str) -> list[str]:
    """What is named by a text in which commas part names: the whole of it if that is a path."""
    if _exists(Path(written)):
        return [written]
    return [part for text in written.split(",") if (part := text.strip())] or [written]


def _split(text: str) -> tuple[str, Changes]:
    """The text without the hook points behind its last @, and these."""
    base, at, behind = text.rpartition("@")
    if not at or _exists(Path(text)):
        return text, Changes()
    hook, colon, target = behind.partition(":")
    try:
        return base, Changes(hook=HookPoint.parse(hook), target=HookPoint.parse(target) if colon else None)
    except SettingsError:
        return text, Changes()


def _joined(known: Changes, said: Changes) -> Changes:
    """What is said wins over what is known."""
    return replace(known, **{name: value for name, value in vars(said).items() if value is not None})


def _named(text: str, hooks: Collection[HookPoint]) -> list[Place]:
    name, colon, rest = text.partition(":")
    if colon and name in FORMATS:
        if rest.startswith(HUB):
            return _of_hub(name, rest.removeprefix(HUB), hooks)
        return _of_list(_path(rest), hooks, name) or find(_path(rest), name)
    if _exists(_path(text)):
        return _of_list(_path(text), hooks) or _at(_path(text))
    release, _, wanted = text.partition("/")
    if release in catalogue.releases():
        return _of_release(catalogue.releases()[release], wanted, hooks)
    if why := catalogue.refused().get(release):
        other = catalogue.cross_layer(release)
        hint = f"{other} is all of it" if other else "choose SAEs of attn, mlp or a residual stream"
        raise InputError(f"{release} cannot be used: {why}", hint=hint)
    near = catalogue.nearest(release)
    hint = f"did you mean {' or '.join(near)}?" if near else "--sae takes a path, FORMAT:PATH or the name of a release"
    raise InputError(f"no SAE in {text}: there is no such path, and no release of that name", hint=hint)


def _path(text: str) -> Path:
    return as_path(text, hint="--sae takes a path, FORMAT:PATH or the name of a release")


def _exists(path: Path) -> bool:
    """Whether there is something; not for what is too long or too odd to be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _at(path: Path) -> list[Place]:
    """All SAEs of a path; of a run's directory those that it trained as its own, no sweep and nothing else."""
    return find(path / RUN_SAES, depth=1) if (path / RUN_FILE).is_file() else find(path)


def _of_list(path: Path, hooks: Collection[HookPoint], format_: str = TRACER) -> list[Place]:
    """Of circuit-tracer's list of transcoders in other repositories those in the layers of ``hooks``; none if all are
    meant, so that nothing is downloaded in vain.
    """
    layers, found = {hook.layer for hook in hooks}, []
    for one in listed(path) if layers and format_ == TRACER else ():
        if one.hook.layer in layers:
            entry = Entry(one.path, one.path, Changes(hook=one.hook, target=one.target), revision=one.revision)
            found += _fetched(Release(one.repo, one.repo, one.format, Changes(), ()), entry)
    return found


def _of_hub(format_: str, place: str, hooks: Collection[HookPoint]) -> list[Place]:
    """The SAEs of a path in a repository of the hub."""
    owner, _, rest = place.partition("/")
    repository, _, path = rest.partition("/")
    if not path:
        raise InputError(f"{HUB}{place} is not a path in a repository", hint=f"write {HUB}OWNER/REPOSITORY/PATH")
    repo = f"{owner}/{repository}"
    release, entry = Release(repo, repo, format_, Changes(), ()), Entry(path, path, Changes())
    if layers := gemma_scope.files_of_layers(path, {hook.layer for hook in hooks}):
        return [place for name in layers for place in _fetched(release, Entry(name, name, Changes()))]
    return _of_list(catalogue.fetch(release, entry), hooks, format_) or _fetched(release, entry)


def _of_release(release: Release, wanted: str, hooks: Collection[HookPoint]) -> list[Place]:
    """The SAE of an id or a hook point; without one, those at ``hooks``, so that nothing is downloaded in vain."""
    if wanted:
        named_layers = gemma_scope.files_of_layers(wanted, {hook.layer for hook in hooks})
        return [place for name in named_layers or [wanted] for place in _fetched(release, release.entry(name))]
    chosen = release.at(hooks)
    if not chosen and len(known := release.by_hook()) == 1:
        chosen = list(known.values())
    if not chosen:
        example = f"{release.name}/{_example(release)}" if release.entries else f"{release.name}/PATH"
        raise InputError(
            f"{release.name} is a release of {len(release.entries) or 'many'} SAEs, but none of them is named",
            hint=f"write {example}; `circuit inspect {release.name}` lists them",
        )
    return [place for entry in chosen for place in _fetched(release, entry)]


def _example(release: Release) -> str:
    middle = release.entries[len(release.entries) // 2]
    return str(middle.hook) if middle.hook is not None else middle.id


def _fetched(release: Release, entry: Entry) -> list[Place]:
    there = source_of(release.repo, entry.path)
    found = [place.changed(entry.changes) for place in find(catalogue.fetch(release, entry), release.format)]
    # A path may hold several SAEs, of which the list does not tell which is meant.
    return [replace(place, neuronpedia=there) for place in found] if len(found) == 1 else found
