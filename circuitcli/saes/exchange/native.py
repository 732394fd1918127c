"""This package's own files, as one format among the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange.place import NATIVE, About, Place
from circuitcli.saes.folder import CONFIG, WEIGHTS, read_config

if TYPE_CHECKING:
    from circuitcli.saes.exchange.tensors import Foreign

NAME = NATIVE
_FIELDS = ("model", "bos", "context_length", "dataset", "before_gain")


def places(directory: Path, names: frozenset[str]) -> list[Place]:
    """The SAE of a directory with these files."""
    if not {CONFIG, WEIGHTS} <= names:
        return []
    config = read_config(directory)
    hook, target = HookPoint.parse(config["hook"]), config.get("target")
    return [
        Place(
            NAME,
            directory,
            (directory / WEIGHTS, directory / CONFIG),
            hook,
            HookPoint.parse(target) if target else None,
            config.get("model"),
            further=tuple(map(HookPoint.parse, config.get("further", ()))),
        )
    ]


def read(place: Place) -> "Foreign":
    """The SAE. Raises InputError for missing or damaged files."""
    from circuitcli.saes import files
    from circuitcli.saes.base import SaeConfig
    from circuitcli.saes.exchange.tensors import Foreign

    config = read_config(place.path)
    own = SaeConfig.of(config).writes
    # By number, as the place may call its hook points by other names than the file does.
    sae = files.load(place.path, [own[number] for number in place.numbers] if place.uncut else None)
    shape = {"format", "architecture", *sae.config.content(), *sae.options, *_FIELDS, "notes"}
    about = About(
        hook=str(sae.hook),
        target=str(sae.target) if sae.is_transcoder else None,
        dtype="float32",
        notes=tuple(config.get("notes", ())),
        training={name: value for name, value in config.items() if name not in shape and value is not None},
        **{name: config[name] for name in _FIELDS if config.get(name) is not None},
    )
    return Foreign(sae, about)


def write(items: "Sequence[Foreign]", directory: Path) -> list[Path]:
    """Write each SAE into a directory of its own, named by its hook point."""
    from circuitcli.saes import files

    made = []
    for sae, about, _ in items:
        facts = {name: getattr(about, name) for name in _FIELDS}
        files.save(sae, directory / str(sae.hook), **{**about.training, **facts, "notes": list(about.notes)})
        made.append(directory / str(sae.hook))
    return made
