"""The files of a native SAE's directory, and what config.json says; needs no torch."""

import json
from pathlib import Path
from typing import Any

from circuitcli.errors import InputError

FORMAT = 1
WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a native SAE. Raises InputError if there is none."""
    path = directory / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "name a directory that `circuit train` wrote"
        raise InputError(f"{directory} holds no SAE: {error}", hint=hint) from None
    if content.get("format") != FORMAT:
        raise InputError(f"{path} has SAE format {content.get('format')}; this version reads {FORMAT}")
    return dict(content)
