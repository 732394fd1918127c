"""The prompts that a command is about: those of a graph, of a file, or the one in the settings."""

from circuitcli.attribution.asked import asked_example as asked_example
from circuitcli.attribution.examples import Example
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.graphs import CircuitGraph


def graph_example(graph: CircuitGraph) -> Example:
    """The prompt of a graph, token by token as the graph saw it if its head tells."""
    head = graph.head
    target = head.target if head.target_id is None else head.target_id
    return Example(head.prompt, target, head.foil, ids=head.ids or None)


def read_prompts(name: str, *, chat: bool = False) -> tuple[Example, ...]:
    """The prompts of a file; with ``chat`` texts are what a user says. Raises InputError, naming the line."""
    return read_examples(name, chat=chat)
