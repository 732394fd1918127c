"""Which questions score a label, and what their answers make of it; needs no torch.

A label is scored by how well a language model can tell from it where its feature is active, on text that the label was
not made from. Beside it stand the label of another feature, judged in the same way, and the label that rules make from
the same texts, which needs no judge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from circuitcli.explaining import prompts
from circuitcli.explaining.answers import judgements_of
from circuitcli.explaining.asking import Answer, Ask
from circuitcli.explaining.examples import ACTIVE, MOVED, Example, Subject
from circuitcli.explaining.tallies import Tally, correlation

DETECTION, FUZZING, SIMULATION = "detection", "fuzzing", "simulation"
OWN, OTHER, BY_RULE = "model", "random", "rules"


@dataclass(frozen=True)
class Question:
    """One question about examples of a feature, by a label which is its own or another one's."""

    ask: Ask
    feature: str
    score: str
    labels: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class How:
    """Which scores, and how they are asked for: one example at a time where a model gives probabilities."""

    scores: Sequence[str]
    singly: bool
    per_prompt: int
    max_tokens: int
    temperature: float
    seed: int


@dataclass
class Scored:
    """Judgements by score and whose label it is, of one feature; correlations, of simulation, by whose label."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    correlations: dict[str, float] = field(default_factory=dict)

    def tally(self, score: str, labels: str) -> Tally:
        """The judgements so far."""
        return self.tallies.setdefault((score, labels), Tally())


def questions(subject: Subject, label: str, labels: str, how: How) -> Iterator[Question]:
    """All that is asked about one feature by one label."""
    for score in how.scores:
        examples = of_score(subject, score, seed=how.seed)
        size = 1 if how.singly or score == SIMULATION else how.per_prompt
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            yield Question(_ask(score, label, part, how), subject.id, score, labels, part)


def _ask(score: str, label: str, examples: Sequence[Example], how: How) -> Ask:
    if score == SIMULATION:
        return prompts.simulation(label, examples[0])
    if how.singly:
        return (prompts.one_detection if score == DETECTION else prompts.one_fuzzing)(label, examples[0])
    make = prompts.detection if score == DETECTION else prompts.fuzzing
    return make(label, examples, max_tokens=how.max_tokens, temperature=how.temperature)


def of_score(subject: Subject, score: str, *, seed: int) -> tuple[Example, ...]:
    """The examples of a score in the order in which they are asked about, always the same."""
    random = Random(f"{seed} {subject.id} {score}")
    active = [example for example in subject.held if example.kind == ACTIVE]
    silent = [example for example in subject.held if example.kind != ACTIVE]
    if score == SIMULATION:
        return tuple(active)
    examples = [*active, *(_wrongly_marked(active, silent, random) if score == FUZZING else silent)]
    random.shuffle(examples)
    return tuple(examples)


def _wrongly_marked(active: Sequence[Example], silent: Sequence[Example], random: Random) -> Iterator[Example]:
    """Active examples with their marks elsewhere, and silent ones with marks, half of each."""
    half = (len(active) + 1) // 2
    for example in active[:half]:
        elsewhere = [place for place, value in enumerate(example.activations) if value == 0]
        if elsewhere:
            n_marks = min(sum(example.marks), len(elsewhere))
            yield example.marked_at(random.sample(elsewhere, n_marks), MOVED)
    sizes = [sum(example.marks) for example in active] or [1]
    for example in silent[: len(active) - half]:
        n_marks = min(random.choice(sizes), len(example.tokens))
        yield example.marked_at(random.sample(range(len(example.tokens)), n_marks), example.kind)


def score(asked: Sequence[Question], answers: Mapping[int, Answer]) -> dict[str, Scored]:
    """What the answers come to, by feature."""
    found: dict[str, Scored] = {}
    simulated: dict[tuple[str, str], list[tuple[Example, Answer]]] = {}
    for number, question in enumerate(asked):
        answer = answers.get(number, Answer(problem="no answer"))
        scored = found.setdefault(question.feature, Scored())
        if question.score == SIMULATION:
            simulated.setdefault((question.feature, question.labels), []).append((question.examples[0], answer))
        else:
            _judge(scored.tally(question.score, question.labels), question, answer)
    for (feature, labels), pairs in simulated.items():
        _simulate(found[feature], labels, pairs)
    return found


def _judge(tally: Tally, question: Question, answer: Answer) -> None:
    if question.ask.kind == "choice":
        yes, no = answer.numbers or (None, None)
        is_known = yes is not None and no is not None and yes != no
        total = (yes or 0.0) + (no or 0.0)
        share = yes / total if is_known and yes is not None and total > 0 else None
        tally.add(question.examples[0].kind, None if share is None else share > 0.5, share)
        return
    said = judgements_of(answer.text, len(question.examples))
    for number, example in enumerate(question.examples):
        tally.add(example.kind, None if said is None else said[number])


def _simulate(scored: Scored, labels: str, pairs: Iterable[tuple[Example, Answer]]) -> None:
    """Correlation of expected and real activations over all tokens of a feature's examples."""
    tally = scored.tally(SIMULATION, labels)
    expected: list[float] = []
    real: list[float] = []
    for example, answer in pairs:
        if answer.numbers is None or len(answer.numbers) != len(example.tokens):
            tally.invalid += 1
            continue
        tally.total[ACTIVE] += 1
        expected += answer.numbers
        real += example.activations
    if expected:
        scored.correlations[labels] = correlation(expected, real)


def by_rule(subject: Subject, how: How) -> dict[str, Tally]:
    """What the rules' label comes to on the same examples, by score; nothing for simulation."""
    found: dict[str, Tally] = {}
    for name in how.scores:
        if name == SIMULATION or subject.rule is None:
            continue
        found[name] = Tally()
        for example in of_score(subject, name, seed=how.seed):
            found[name].add(example.kind, example.fits(subject.rule, marked=name == FUZZING))
    return found
