"""Models that ship with the package, as Hugging Face directories; ``circuitcli.pretraining`` makes them."""

from pathlib import Path

from circuitcli.errors import InputError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The built-in models by name, sorted."""
    return sorted(path.parent.name for path in _HERE.glob("*/config.json"))


def directory(name: str) -> Path:
    """Where the model of this name lies; raises InputError for a name that is none."""
    if name not in names():
        known = ", ".join(f"builtin:{known}" for known in names()) or "none in this installation"
        raise InputError(f"there is no built-in model '{name}'", hint=f"built-in models: {known}")
    return _HERE / name
