"""circuit-tracer's sets whose files lie in other repositories: config.yaml lists one for each layer, from 0 on."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.exchange import circuit_tracer, gemma_scope, hooks
from circuitcli.saes.exchange.fields import LONGEST

_SCHEME = "hf"


@dataclass(frozen=True)
class Listed:
    """A transcoder of a list: what it reads and writes, and the file of a repository in which it is."""

    hook: HookPoint
    target: HookPoint
    repo: str
    path: str
    revision: str | None

    @property
    def format(self) -> str:
        """Of the file: Gemma Scope's where it is from there, else circuit-tracer's own."""
        is_gemma = self.path.endswith(".npz") or "gemma-scope-2" in self.repo
        return gemma_scope.NAME if is_gemma else circuit_tracer.NAME


def listed(path: Path) -> list[Listed]:
    """The transcoders that a config, or that of a directory, lists; none where it does not, or where files are there.

    Raises InputError for a list that cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    config_path = directory / circuit_tracer.CONFIG
    if path not in (directory, config_path) or not config_path.is_file():
        return []
    config = circuit_tracer.config_of(config_path)
    ends = [config.get(name) for name in ("feature_input_hook", "feature_output_hook")]
    if not config.get("transcoders") or None in ends or any(map(circuit_tracer.LAYER.fullmatch, _names(directory))):
        return []
    return [_one(layer, uri, ends, config_path) for layer, uri in enumerate(config["transcoders"])]


def _names(directory: Path) -> list[str]:
    return [found.name for found in directory.iterdir()]


def _one(layer: int, uri: object, ends: list[str | None], config_path: Path) -> Listed:
    found = urlparse(uri) if isinstance(uri, str) and len(uri) < LONGEST else None
    parts = [] if found is None else found.path.strip("/").split("/", 1)
    if found is None or found.scheme != _SCHEME or not found.netloc or len(parts) < 2:
        raise InputError(
            f"{config_path}: transcoder {layer} is {uri!r:.60}, not a file in a repository",
            hint="write hf://OWNER/REPOSITORY/PATH, or name its file with --sae",
        )
    read, written = (hooks.from_transformer_lens(f"blocks.{layer}.{name}") for name in ends)
    revision = next(iter(parse_qs(found.query).get("revision", [])), None)
    made = Listed(read.hook, written.hook, f"{found.netloc}/{parts[0]}", parts[1], revision)
    if read.before_gain and made.format == circuit_tracer.NAME:
        raise InputError(
            f"{config_path}: transcoder {layer} reads a norm before its weight, which its own repository does not tell",
            hint="copy the config.yaml beside the file, and name that with --sae",
        )
    return made
