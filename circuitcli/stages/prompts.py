"""The prompts of a graph: kept beside it in the run, or told by its head."""

from pathlib import Path

from circuitcli.attribution.examples import Example, Written
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.errors import InputError
from circuitcli.graphs import CircuitGraph
from circuitcli.models.chat import Conversation
from circuitcli.records import GraphRecord


def graph_examples(graph: CircuitGraph, run: Path) -> tuple[Example, ...]:
    """The prompts of a graph: those that were kept in the run beside it; where its head names none the one of the head,
    token by token as the graph saw it if it tells. Raises InputError if they are not there."""
    head = graph.head
    if head.n_prompts == 1 and head.prompts is None:
        target = head.target if head.target_id is None else head.target_id
        other = _counterfactual(head)
        return (Example(head.prompt, target, head.foil, ids=head.ids or None, counterfactual=other),)
    path = None if head.prompts is None else run / head.prompts
    if path is None or not path.is_file():
        where = "its head names no file" if path is None else f"{path} is not there"
        raise InputError(
            f"graph '{head.name}' is about {head.n_prompts} prompts, and {where}", hint="name them: --prompts FILE"
        )
    return read_examples(str(path))


def _counterfactual(head: GraphRecord) -> Written | None:
    if head.counterfactual_ids is not None:
        return head.counterfactual_ids
    if head.chat and head.counterfactual is not None:
        return Conversation.of_user(head.counterfactual)
    return head.counterfactual
