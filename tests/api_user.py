"""What a user writes, strictly typed: mypy checks it with the package, a test runs it on the built-in model."""

from pathlib import Path
from typing import assert_type

from torch import Tensor

import circuitcli as circuit

PROMPT = "for i in range("


def encoding(model: circuit.LanguageModel, run: str) -> circuit.Encoded:
    """Codes of a text."""
    coders = circuit.load_coders(run, model=model)
    for hook, coder in coders.items():
        assert_type(hook, circuit.HookPoint)
        assert_type(coder, circuit.SparseCoder)
    encoded = circuit.encode(model, coders, PROMPT)
    assert_type(encoded.tokens, tuple[str, ...])
    codes: Tensor = encoded.codes["resid.1"]
    assert codes.shape[0] == len(encoded.tokens)
    return encoded


def finding(model: circuit.LanguageModel, run: str) -> circuit.CircuitGraph:
    """A circuit, tested, drawn, and its best feature described and ablated."""
    coders = circuit.load_coders(run, hooks=["resid.1", "resid.2"])
    behaviour = circuit.Behaviour.of([PROMPT, "while i in range("], target="0", baseline="zero")
    graph = circuit.find_circuit(model, coders, behaviour, down=2, up=1, method="atp")
    assert_type(graph, circuit.CircuitGraph)
    scores = circuit.validate(model, coders, graph, samples=2, minimality=False)
    assert_type(scores, circuit.Scores)
    assert_type(scores.faithfulness, float)
    feature = next(node.id for node in graph.nodes if node.place is not None and not node.place.is_error)
    card = circuit.describe(model, coders, feature, ["for i in range(10):\n    print(i)"])
    assert_type(card.contexts[0].tokens if card.contexts else (), tuple[str, ...])
    changed = circuit.run(model, coders, PROMPT, ablate=[feature], scale={"resid.2/0": 2.0})
    assert_type(changed.effect, float)
    assert_type(changed.top(3)[0].token, str)
    assert_type(circuit.draw(graph, cards=[card], scores=scores), circuit.Picture)
    return graph


def training(model: circuit.LanguageModel, folder: Path) -> None:
    """Coders of a text, without a run."""
    cache = circuit.collect(model, ["import os\nimport sys\n" * 40], hooks="resid.1", path=folder / "cache")
    assert_type(cache, circuit.ActivationCache)
    coders = circuit.train(cache, architecture="topk", k=4, d_sae=32, batch_size=64, path=folder / "coders")
    coder: circuit.SparseCoder = coders["resid.1"]
    assert coder.d_sae == 32


def main(run: str = "runs/builtin-tiny", folder: Path = Path("mine")) -> None:
    """All of it."""
    model = circuit.load_model("builtin:tiny", device="cpu")
    assert_type(model, circuit.LanguageModel)
    encoding(model, run)
    finding(model, run)
    training(model, folder)
    try:
        circuit.load_coders("no/such/run")
    except circuit.CircuitError as error:
        assert_type(error.hint, str)


if __name__ == "__main__":
    main()
