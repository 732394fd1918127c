"""How a circuit is drawn."""

from typing import Literal

from pydantic import Field

from circuitcli.settings.section import FilePath, FilePaths, Section, Texts, Words

PaperName = Literal["a4", "a3", "letter"]
FigureName = Literal[
    "faithfulness", "pareto", "densities", "responses", "attribution", "effects", "activations", "contexts"
]

Form = Literal["dot", "svg", "png", "pdf", "json", "html", "graphml", "gexf", "csv", "mermaid", "neuronpedia", "eap"]


class RenderSettings(Section):
    """How a circuit is drawn."""

    output: Texts = ()
    """Files to write: .dot .svg .png .pdf .json .html .graphml .gexf .csv .mmd by suffix, - for stdout; by default an
    SVG and an HTML page in the run."""
    form: Form | None = None
    """Write this format, whatever the file is called: one of those by suffix, neuronpedia for the graph format of
    Neuronpedia and circuit-tracer with the files beside it, eap for the JSON of EAP-IG and MIB."""
    scan: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,80}$")
    """Neuronpedia's name of the model, for example gemma-2-2b; by default the last part of the model's own."""
    source_set: str | None = Field(None, max_length=200)
    """Neuronpedia's name of the coders, if it has pages of their features, for example gemmascope-transcoder-16k."""
    graph: str | None = None
    """Name of the graph to draw; by default the one made last."""
    contexts: int = Field(3, ge=0, le=100)
    """Contexts shown in a box."""
    logits: int = Field(5, ge=0, le=100)
    """Promoted and suppressed tokens shown in a box."""
    max_edges: int | None = Field(None, ge=1, le=1_000_000)
    """Draw only the strongest edges, by default 300; how many are left out is shown. The HTML page has all of them."""
    labels: FilePaths = ()
    """Labels by hand, which go before all others: files with an id, a tab and a label a line, or JSON lines."""
    max_nodes: int | None = Field(None, ge=1, le=1_000_000)
    """Draw only so many boxes beside the output: the strongest by effect, and those on their ways to the output; how
    many are left out is shown. The HTML page has all of them."""
    state: FilePath | None = None
    """What a reader has done to the page of a circuit, a file that the page's button downloads: the page opens so, and
    pictures have its labels, groups and thresholds."""
    groups: float = Field(0.8, ge=0, le=1)
    """Propose groups of features with similar edges, in which any two have at least this cosine; 0 proposes none."""
    group_span: int = Field(0, ge=0, le=10_000)
    """Blocks that the features of a proposed group may lie apart."""
    figure: FigureName | None = None
    """Draw what the run measured instead of a circuit: faithfulness (curves of validate, with CMD), pareto (L0 against
    quality), densities, responses (to coefficients), attribution (positions by hook points), effects (of each hook
    point), activations (features by tokens of the prompt) or contexts (of the strongest features)."""
    tile: PaperName | None = None
    """Print a PDF on as many pages of this paper as it takes at its own size, with overlaps and crop marks: a4, a3 or
    letter."""
    interaction: Words = ()
    """Compare sets of SAEs by how few edges they need instead: reports of validate --interaction, the one that the
    others are compared with first, for example a/reports/blocks.json,b/reports/blocks.json."""
    dpi: int = Field(96, ge=20, le=1200)
    """Resolution of PNG files."""
