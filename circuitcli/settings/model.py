"""Which language model, and where it runs."""

from typing import Literal

from circuitcli.settings.section import Section


class ModelSettings(Section):
    """Which language model, and where it runs."""

    name: str = "builtin:tiny"
    """Hub id, local directory, .gguf file, or builtin:tiny."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; training checkpoints are revisions too."""
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    """Number type of weights and activations."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or what else PyTorch calls a GPU; auto takes the one that is there, else the CPU."""
    device_map: str | None = None
    """Spread a model over devices as accelerate does, for example auto; needs no --device."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Begin every text with the tokenizer's BOS token; auto does so if there is one.
    Its position carries no features."""
