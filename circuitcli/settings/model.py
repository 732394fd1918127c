"""Which language model, and where it runs."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from circuitcli.reading import as_path
from circuitcli.settings.section import Device, FilePath, FolderPath, Section, Words

# Where a model runs changes none of its numbers but the last digits: what was made elsewhere is still valid.
PLACEMENT = ("model.device", "model.device_map", "model.max_memory", "model.offload_folder")

_LIMIT = re.compile(
    r"(cpu|mps|(?:cuda:)?[0-9]{1,3})=([0-9]{1,9}(?:\.[0-9]{1,9})?)(KB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.ASCII
)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def _limits(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not _LIMIT.fullmatch(word):
            raise ValueError(f"{word[:80]!r} is not a limit: write DEVICE=SIZE, for example 0=20GiB or cpu=64GiB")
    return words


class ModelSettings(Section):
    """Which language model, and where it runs."""

    name: FilePath = "builtin:tiny"
    """Hub id, local directory, .gguf file, or builtin:tiny."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; training checkpoints are revisions too."""
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    """Number type of weights and activations."""
    device: Device = "auto"
    """cpu, cuda, cuda:1, mps, or another device of PyTorch; auto takes a GPU if there is one, else the CPU."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Spread a model that is too large for one device over GPUs, memory and disk, by accelerate; not with --device."""
    max_memory: Annotated[Words, AfterValidator(_limits)] = ()
    """The most memory that weights may take on each device, as 0=20GiB,cpu=64GiB: GPUs by number, then memory; the rest
    stays on disk. On devices that are not named they may take all that is free. Implies device_map=auto."""
    offload_folder: FolderPath | None = None
    """Where weights that stay on disk are written, if the model's own files cannot be read piece by piece; removed when
    the command ends. By default the system's folder for temporary files."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Begin every text with the tokenizer's BOS token; auto does so if there is one. A text that already begins with it
    gets no second one; with never it keeps its own. The position of BOS carries no features."""

    @property
    def memory_limits(self) -> dict[int | str, int]:
        """Bytes by device of ``max_memory``; GPUs are numbers."""
        limits: dict[int | str, int] = {}
        for word in self.max_memory:
            limit = _LIMIT.fullmatch(word)
            assert limit is not None
            device, number, unit = limit.groups()
            name = device.removeprefix("cuda:")
            base = 1024 if unit[1:] == "iB" else 1000
            limits[int(name) if name.isdigit() else name] = int(float(number) * base ** _POWERS[unit[0]])
        return limits


def absolute_name(name: str) -> str:
    """The model's name as it can be loaded from any folder: of a local one the whole path, others as they are."""
    if name.startswith("builtin:"):
        return name
    path = as_path(name)
    if not path.is_dir() and path.suffix != ".gguf":
        return name
    # A link to a model stays one, wherever it points to later.
    return str(path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name)
