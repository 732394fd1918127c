"""The settings object itself."""

from pydantic import Field

from circuitcli.settings.data import DataSettings
from circuitcli.settings.develop import DevelopSettings
from circuitcli.settings.explain import ExplainSettings
from circuitcli.settings.graph import GraphSettings
from circuitcli.settings.inspect import InspectSettings
from circuitcli.settings.interaction import InteractionSettings
from circuitcli.settings.interp import InterpSettings
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.pages import PagesSettings
from circuitcli.settings.pretrain import PretrainSettings
from circuitcli.settings.render import RenderSettings
from circuitcli.settings.sae import SaeSettings
from circuitcli.settings.search import SearchSettings
from circuitcli.settings.section import FilePath, FolderPath, Section
from circuitcli.settings.synthetic import SyntheticSettings
from circuitcli.settings.toy import ToySettings
from circuitcli.settings.train import TrainSettings
from circuitcli.settings.validation import ValidationSettings


class Settings(Section):
    """All settings of all commands; each command reads the sections that concern it."""

    run: FolderPath | None = None
    """Run directory; by default the one used last in this directory, for collect runs/MODEL."""
    sae_path: FilePath | None = None
    """SAEs instead of the run's own: a path to a run, an SAE or a directory of SAEs in any known format, FORMAT:PATH,
    FORMAT:hf://REPOSITORY/PATH, or a release such as gpt2-small-res-jb/resid_pre.8; several with commas between.
    Add @HOOK to say where one belongs if its files do not."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of all random numbers."""
    wait_s: float = Field(300.0, gt=0, le=1e6)
    """Seconds that each of several processes of one command waits for the others to start."""
    model: ModelSettings = ModelSettings()
    """Which language model, and where it runs."""
    data: DataSettings = DataSettings()
    """Which text, which hook points, and how activations are cached."""
    pretrain: PretrainSettings = PretrainSettings()
    """How a small language model is trained from nothing."""
    sae: SaeSettings = SaeSettings()
    """Shape of the sparse autoencoders."""
    train: TrainSettings = TrainSettings()
    """How sparse autoencoders are trained."""
    develop: DevelopSettings = DevelopSettings()
    """Which checkpoints of a training are looked at, and how their features are matched."""
    inspect: InspectSettings = InspectSettings()
    """How an SAE is looked at."""
    interp: InterpSettings = InterpSettings()
    """How features are described."""
    explain: ExplainSettings = ExplainSettings()
    """How a language model is asked what features mean, and how its answers are scored."""
    pages: PagesSettings = PagesSettings()
    """What pages of features show, and what is told of a text."""
    graph: GraphSettings = GraphSettings()
    """Which behaviour is explained, and how its circuit is found."""
    search: SearchSettings = SearchSettings()
    """How the circuit of one prompt is searched for by resampling."""
    # BaseModel has a method of that name, so the section has another one in Python.
    validation: ValidationSettings = Field(ValidationSettings(), alias="validate")
    """How a circuit is put to the test."""
    interaction: InteractionSettings = InteractionSettings()
    """How edges between the features of two hook points are ranked, and where their curve is taken."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """How coders are tried on a benchmark whose features are known."""
    toy: ToySettings = ToySettings()
    """How autoencoders are tried on planted features."""
    render: RenderSettings = RenderSettings()
    """How a circuit is drawn."""
