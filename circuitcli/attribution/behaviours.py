"""A behaviour: what is explained, as one value. Needs no torch until its prompts are encoded."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuitcli.attribution.examples import Example, LeftOut, Written, digest_of
from circuitcli.attribution.prompt_files import example_of, read_examples
from circuitcli.errors import InputError, SettingsError
from circuitcli.models.chat import Conversation
from circuitcli.records import GraphRecord
from circuitcli.settings.graph import Baseline, Metric

if TYPE_CHECKING:
    from circuitcli.attribution.prompts import Prompt
    from circuitcli.models.adapter import ModelAdapter
    from circuitcli.models.tokenizer import Tokenizer

Prompts = str | Path | Example | Iterable[str | Example]


@dataclass(frozen=True)
class Behaviour:
    """Prompts with targets, foils and counterfactuals; the metric; and what a node is set to when it is taken away.

    metric: log-prob of the target, logit-diff (target minus foil), cross-entropy or kl. baseline: zero, mean, resample
    or counterfactual. source: the file that the prompts are from, if any.
    """

    examples: tuple[Example, ...]
    metric: Metric = "log-prob"
    baseline: Baseline = "mean"
    source: str = ""

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        *,
        target: str | int | None = None,
        foil: str | int | None = None,
        counterfactual: Written | None = None,
        metric: Metric = "log-prob",
        baseline: Baseline = "mean",
        chat: bool = False,
        left_out: LeftOut | None = None,
    ) -> "Behaviour":
        """The behaviour of one text, of several, or of a file of prompts, which is named by a Path.

        target, foil, counterfactual: of all prompts that have none of their own. chat: texts are what a user says.
        left_out: takes bad prompts of a file; without it the first is an error. Raises InputError for a file without
        prompts, SettingsError where no prompt is given.
        """
        examples = tuple(
            replace(
                example,
                target=target if example.target is None else example.target,
                foil=foil if example.foil is None else example.foil,
                counterfactual=counterfactual if example.counterfactual is None else example.counterfactual,
            ).with_chat(chat)
            for example in _examples(prompts, left_out)
        )
        if not examples:
            raise SettingsError("no prompt is given", hint="give a text, several, or the Path of a file of prompts")
        return cls(examples, metric, baseline, str(prompts) if isinstance(prompts, Path) else "")

    @property
    def digest(self) -> str:
        """A digest of what the prompts ask, whatever file they are from."""
        return digest_of(self.examples)

    def encoded(
        self,
        tokenizer: "Tokenizer",
        adapter: "ModelAdapter",
        *,
        positions: str | None = None,
        most: int | None = None,
        left_out: LeftOut | None = None,
    ) -> "tuple[Prompt, ...]":
        """The first ``most`` prompts that can be used, in tokens, with all that metric, baseline and positions need.

        left_out: takes bad prompts; without it the first is an error. Raises InputError if none is left.
        """
        from circuitcli.attribution.prompts import Needs, encode_all

        needs = Needs.of(metric=self.metric, baseline=self.baseline, spans=positions == "spans")
        return encode_all(self.examples, tokenizer, adapter, needs=needs, left_out=left_out or LeftOut(), most=most)


def _examples(prompts: Prompts, left_out: LeftOut | None) -> Iterable[Example]:
    if isinstance(prompts, Path):
        return read_examples(str(prompts), left_out=left_out)
    several = (prompts,) if isinstance(prompts, str | Example) else prompts
    return (Example(each) if isinstance(each, str) else each for each in several)


def own_examples(head: GraphRecord, *, folder: Path, hint: str) -> tuple[Example, ...]:
    """The prompts of a graph: those of its file, which is named from the folder, or those that its head holds; where it
    names none the one of the head, token by token as the graph saw it. Raises InputError if the file is not there."""
    inside = getattr(head, "examples", None)
    if inside is not None:
        return tuple(example_of(line, f"prompt {number}") for number, line in enumerate(inside, 1))
    if head.n_prompts == 1 and head.prompts is None:
        target = head.target if head.target_id is None else head.target_id
        return (Example(head.prompt, target, head.foil, ids=head.ids or None, counterfactual=_other(head)),)
    path = None if head.prompts is None else folder / head.prompts
    if path is None or not path.is_file():
        where = "its head names no file" if path is None else f"{path} is not there"
        raise InputError(f"graph '{head.name}' is about {head.n_prompts} prompts, and {where}", hint=hint)
    return read_examples(str(path))


def _other(head: GraphRecord) -> Written | None:
    """The counterfactual of a graph of one prompt."""
    if head.counterfactual_ids is not None:
        return head.counterfactual_ids
    if head.chat and head.counterfactual is not None:
        return Conversation.of_user(head.counterfactual)
    return head.counterfactual
