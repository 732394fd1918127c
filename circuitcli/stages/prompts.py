"""The prompts of a graph, which it is tested on."""

from pathlib import Path

from circuitcli.attribution.behaviours import own_examples
from circuitcli.attribution.examples import Example
from circuitcli.graphs import CircuitGraph


def graph_examples(graph: CircuitGraph, run: Path) -> tuple[Example, ...]:
    """The prompts of a graph: those that were kept in the run beside it, else those that its head tells.

    Raises InputError if they are not there.
    """
    return own_examples(graph.head, folder=run, hint="name them: --prompts FILE")
