"""What every record is: one line, whose kind comes first."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """One line; fields that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str


class UnknownRecord(Record):
    """A line of a kind that this version does not know."""
