"""What pydantic refuses is told in the words of this package's errors, wherever it is refused."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from circuitcli.errors import InputError
from circuitcli.faults import checked, first_fault

PACKAGE = Path(__file__).parents[1] / "circuitcli"


class Inner(BaseModel):
    size: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: tuple[Inner, ...] = ()
    name: str = ""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name == "NOBODY":
            raise ValueError(f"There is no {name}")
        return name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"inner": [{"size": 1}, {"size": "A"}]}, "inner.1.size: input should be a valid integer, unable to parse"),
        ({"inner": [{}]}, "inner.0.size: field required"),
        ({"name": "NOBODY"}, "name: there is no NOBODY"),
        ({"x" * 1000: 1}, "x" * 80 + ": extra inputs are not permitted"),
        ([], "input should be a valid dictionary"),
    ],
)
def test_the_first_fault_is_told_with_its_place(content: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(Outer, content, place="FILE", hint="make it again")
    assert caught.value.message.startswith(f"FILE: {said}")
    assert caught.value.hint == "make it again"
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate(content)
    assert first_fault(refused.value).is_missing == ("required" in said)


def test_what_fits_is_given_back() -> None:
    assert checked(Outer, {"name": "somebody"}, place="FILE") == Outer(name="somebody")


def test_no_other_module_words_the_faults_of_pydantic() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert [name for name, text in sources.items() if re.search(r"\.errors\(\)", text)] == ["faults.py"]
