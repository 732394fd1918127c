"""How a language model is asked what features mean, and how its answers are scored."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import NodeId
from circuitcli.reading import whole_number
from circuitcli.settings.section import MOST_TOKENS, FilePath, FilePaths, Section, Words

# Which features: each of these takes a number, or for `graph` a name.
GRAPH, BEST, RANDOM, ALL = "graph", "best", "random", "all"
Scorer = Literal["detection", "fuzzing", "simulation"]


def _chosen(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        word, colon, rest = text.partition(":")
        if word in (BEST, RANDOM) and colon and (whole_number(rest) or 0) > 0:
            continue
        if (word == GRAPH and bool(rest) == bool(colon)) or text == ALL:
            continue
        node = NodeId.parse(text)
        if node.index is None:
            raise SettingsError(f"'{text}' is not a feature", hint="write HOOK/INDEX, graph, best:20, random:20 or all")
    return texts


def _scorers(texts: object) -> object:
    return tuple(part.strip() for part in texts.split(",") if part.strip()) if isinstance(texts, str) else texts


class ExplainSettings(Section):
    """How a language model is asked what features mean, and how its answers are scored."""

    features: Annotated[Words, AfterValidator(_chosen)] = ()
    """Features to explain, with commas between: ids such as resid.9/331, graph (those of the last graph) or graph:NAME,
    best:N (the N of the largest effects in all graphs), random:N of each hook point, all; by default graph, or
    random:20 where there is none."""
    model: str | None = None
    """Language model that explains and is asked to score: a Hugging Face name or directory, or what the server at the
    base URL calls it."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, for example http://127.0.0.1:8080/v1; the key is read from the variable
    OPENAI_API_KEY and is kept nowhere."""
    key_file: FilePath | None = None
    """File that holds the key for the base URL, instead of the variable."""
    score: Annotated[tuple[Scorer, ...], BeforeValidator(_scorers)] = ("detection", "fuzzing")
    """Scores by which labels are tested on text that they were not made from: detection (which texts are the feature
    active in), fuzzing (are the right tokens marked), simulation (guess each activation; needs log-probabilities)."""
    random_label: bool = True
    """Score each feature with the label of another one too, which doubles the questions."""
    least_score: float = Field(0.0, ge=0, le=1)
    """Least balanced accuracy of a label (0.5 by chance); where one scores less the rules' own stands."""
    tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Cached tokens from which examples are taken; by default all."""
    window: int = Field(16, ge=1, le=2000)
    """Tokens of an example on either side of its middle."""
    shown: int = Field(12, ge=1, le=1000)
    """Examples that a label is made from: the strongest, and as many from all quantiles."""
    scored: int = Field(10, ge=1, le=1000)
    """Active examples of other texts on which a label is scored, and as many in which the feature is silent."""
    per_prompt: int = Field(5, ge=1, le=100)
    """Examples judged in one question to a server; a local model judges each by itself."""
    max_tokens: int = Field(300, ge=8, le=100_000)
    """Most tokens of an answer; models that think before they answer need thousands."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Temperature of the answers."""
    concurrency: int = Field(8, ge=1, le=1000)
    """Questions to a server at once."""
    requests_per_minute: int | None = Field(None, ge=1, le=10_000_000)
    """Most questions to a server in a minute."""
    tokens_per_minute: int | None = Field(None, ge=1, le=2**40)
    """Most tokens to and from a server in a minute, by estimate."""
    timeout_s: float = Field(60.0, gt=0, le=86_400)
    """Seconds after which a question to a server is asked again."""
    retries: int = Field(6, ge=0, le=100)
    """How often a question is asked again that a server refused or did not answer, with growing pauses or after the
    time that the server asks for."""
    price_in: float | None = Field(None, ge=0, le=1e6)
    """Dollars for a million tokens of questions; must be known for a server that is not this machine, and may be 0."""
    price_out: float | None = Field(None, ge=0, le=1e6)
    """Dollars for a million tokens of answers."""
    max_usd: float = Field(1.0, ge=0, le=1e6)
    """Most dollars that may be spent; what is estimated to cost more is not begun."""
    cache: FilePath | None = None
    """SQLite file that keeps answers, so that nothing is paid for twice; by default labels/answers.sqlite in the
    run."""
    labels: FilePaths = ()
    """Labels by hand to take over, which win over all others: files with an id, a tab and a label a line, or JSON lines
    of objects with id and label."""
    neuronpedia: bool = False
    """Fetch the labels that Neuronpedia has of these features, where the coder is of a release that it shows."""
    neuronpedia_source: str | None = None
    """Where Neuronpedia shows the coders, as MODEL/SOURCE, for example gpt2-small/{layer}-res-jb; by default what is
    known of the release."""
    neuronpedia_url: str = "https://www.neuronpedia.org"
    """Address of Neuronpedia."""
