"""What all sections of the settings share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Frozen; an unknown key is refused; the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, populate_by_name=True
    )


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _lines(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# "resid,attn" from a flag or the environment, ["resid", "attn"] from a file.
Split = BeforeValidator(_split)
Words = Annotated[tuple[str, ...], Split]
# A list whose entries may hold commas; a single text is a list of one.
Texts = Annotated[tuple[str, ...], BeforeValidator(_lines)]
# "0.25,0.5,1" likewise.
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_split)]
