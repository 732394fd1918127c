"""Settings of a pretraining run, read from one TOML file."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from circuitcli.errors import SettingsError
from circuitcli.reading import read_toml


class PretrainingSettings(BaseModel):
    """Everything that decides which weights come out; a run is reproducible from it, the text and the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    text: str = "builtin:python"
    """Text source, as in `circuit collect --text`."""
    field: str | None = None
    """Field of a JSON line that is the text; by default text."""
    validation_every: int = Field(20, ge=2)
    """Every n-th document is held out."""
    vocab_size: int = Field(2048, ge=257, le=65_536)
    """Tokens of the byte-level BPE, with the 256 bytes and the end-of-text token."""
    n_layers: int = Field(4, ge=1)
    """Transformer blocks."""
    n_heads: int = Field(4, ge=1)
    """Attention heads of a block."""
    d_model: int = Field(128, ge=1)
    """Width of the residual stream."""
    context_length: int = Field(256, ge=2)
    """Tokens of a window; the first is always the end-of-text token."""
    batch_size: int = Field(8, ge=1)
    """Windows of a step."""
    steps: int = Field(12_000, ge=1)
    """Optimiser steps."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak rate of AdamW: linear warm-up, then a cosine down to zero."""
    warmup_steps: int = Field(300, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of the weight matrices; biases and norms have none."""
    gradient_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    autocast: bool = True
    """Multiply matrices in bfloat16, about twice as fast on a CPU that knows the format."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; a killed run goes on from the last."""
    seed: int = 0
    """Of the first weights and of the batches."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "PretrainingSettings":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self

    @property
    def digest(self) -> str:
        """Identifies the settings that a checkpoint belongs to."""
        return "sha256:" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load(path: Path) -> PretrainingSettings:
    """Settings from a TOML file; raises SettingsError if it is missing, broken or has an unknown key."""
    hint = "pass --config FILE.toml, for example configs/tiny-model.toml"
    try:
        return PretrainingSettings.model_validate(read_toml(path, hint=hint, error=SettingsError))
    except ValidationError as error:
        known = ", ".join(PretrainingSettings.model_fields)
        raise SettingsError(f"{path}: {_first(error)}", hint=f"the keys are {known}") from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}".removeprefix(": ")
