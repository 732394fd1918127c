"""Sparse feature circuits in language models, from Python and from the command line.

    import circuitcli as circuit

    model = circuit.load_model("builtin:tiny")
    coders = circuit.load_coders("runs/builtin-tiny")
    graph = circuit.find_circuit(model, coders, "for i in range(", down=5, up=3)
    scores = circuit.validate(model, coders, graph)

pretrain                        a small language model, trained from nothing on a text
load_model, load_coders         a model, and sparse coders of its activations: a run's, or anybody's
collect, train, evaluate        activations of a text, coders that learn from them, and how good these are
encode, features_on             a text in features, all of them or the strongest at each token
describe, run                   what a feature means, the model without some or with more of them
explain, write_pages            a run's features as a language model puts them, and pages of all of them
steer                           what it writes with some features turned up or down
toy                             autoencoders of planted features, and how much of these each found
match                           which features of two coders are the same
find_behaviour, find_circuit    something to explain, and the features and errors behind it
search_circuit                  the fewest features that keep the next token's probabilities
validate, draw                  how far a circuit can be believed, and its picture
read_graph, write_graph         circuits in the files of other programs; read_cards gives their labels

What a name stands for is loaded when it is first asked for: PyTorch and transformers take seconds. Plain texts, tensors
and paths go in, frozen values come out; nothing is written unless a path is given. What can be mended is raised as a
`CircuitError` with a ``hint``.
"""

from importlib import import_module
from typing import Any

from circuitcli import display

__version__ = "0.1.0"

# Where each name lives. __init__.pyi tells type checkers and editors the same.
_PLACES = {
    "ActivationCache": "circuitcli.activations.cache",
    "Behaviour": "circuitcli.attribution.behaviours",
    "Card": "circuitcli.api.describing",
    "CircuitError": "circuitcli.errors",
    "CircuitGraph": "circuitcli.graphs",
    "Encoded": "circuitcli.api.encoding",
    "Example": "circuitcli.attribution.examples",
    "HookPoint": "circuitcli.hookpoints",
    "InputError": "circuitcli.errors",
    "LanguageModel": "circuitcli.models.loading",
    "Pairs": "circuitcli.features.pairing",
    "Picture": "circuitcli.api.drawing",
    "Run": "circuitcli.api.running",
    "Scores": "circuitcli.api.validating",
    "SettingsError": "circuitcli.errors",
    "SparseCoder": "circuitcli.saes.base",
    "Steered": "circuitcli.api.steering",
    "ToolError": "circuitcli.errors",
    "collect": "circuitcli.api.collecting",
    "describe": "circuitcli.api.describing",
    "draw": "circuitcli.api.drawing",
    "encode": "circuitcli.api.encoding",
    "explain": "circuitcli.stages.doors",
    "evaluate": "circuitcli.api.evaluating",
    "features_on": "circuitcli.api.texts",
    "find_behaviour": "circuitcli.api.behaviours",
    "find_circuit": "circuitcli.api.circuits",
    "load_coders": "circuitcli.api.coders",
    "load_model": "circuitcli.api.models",
    "match": "circuitcli.api.matching",
    "pretrain": "circuitcli.api.pretraining",
    "read_cards": "circuitcli.api.sharing",
    "read_graph": "circuitcli.api.sharing",
    "run": "circuitcli.api.running",
    "search_circuit": "circuitcli.api.searching",
    "steer": "circuitcli.api.steering",
    "toy": "circuitcli.api.toys",
    "train": "circuitcli.api.training",
    "validate": "circuitcli.api.validating",
    "write_graph": "circuitcli.api.sharing",
    "write_pages": "circuitcli.stages.doors",
}
__all__ = sorted([*_PLACES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


def _drawn(value: object, form: str) -> str | None:
    made: str | None = import_module("circuitcli.render.notebook").drawn(value, form)
    return made


# Values show themselves in notebooks; what draws them is loaded then.
display.set_drawer(_drawn)
