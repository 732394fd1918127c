"""What a user writes, strictly typed: mypy checks it with the package, a test runs it on the built-in model."""

from typing import assert_type

from torch import Tensor

import circuitcli as circuit


def encoding(model: circuit.LanguageModel, run: str) -> circuit.Encoded:
    """Codes of a text."""
    coders = circuit.load_coders(run, model=model)
    for hook, coder in coders.items():
        assert_type(hook, circuit.HookPoint)
        assert_type(coder, circuit.SparseCoder)
    encoded = circuit.encode(model, coders, "for i in range(")
    assert_type(encoded.tokens, tuple[str, ...])
    codes: Tensor = encoded.codes["resid.1"]
    assert codes.shape[0] == len(encoded.tokens)
    return encoded


def main(run: str = "runs/builtin-tiny") -> None:
    """All of it."""
    model = circuit.load_model("builtin:tiny", device="cpu")
    assert_type(model, circuit.LanguageModel)
    encoding(model, run)
    try:
        circuit.load_coders("no/such/run")
    except circuit.CircuitError as error:
        assert_type(error.hint, str)


if __name__ == "__main__":
    main()
