"""What `import circuitcli` offers, for type checkers and editors; see __init__.py, which loads it when asked for."""

from circuitcli.activations.cache import ActivationCache as ActivationCache
from circuitcli.api.behaviours import find_behaviour as find_behaviour
from circuitcli.api.circuits import find_circuit as find_circuit
from circuitcli.api.coders import load_coders as load_coders
from circuitcli.api.collecting import collect as collect
from circuitcli.api.describing import Card as Card
from circuitcli.api.describing import describe as describe
from circuitcli.api.drawing import Picture as Picture
from circuitcli.api.drawing import draw as draw
from circuitcli.api.encoding import Encoded as Encoded
from circuitcli.api.encoding import encode as encode
from circuitcli.api.evaluating import evaluate as evaluate
from circuitcli.api.matching import match as match
from circuitcli.api.models import load_model as load_model
from circuitcli.api.pretraining import pretrain as pretrain
from circuitcli.api.running import Run as Run
from circuitcli.api.running import run as run
from circuitcli.api.searching import search_circuit as search_circuit
from circuitcli.api.sharing import read_cards as read_cards
from circuitcli.api.sharing import read_graph as read_graph
from circuitcli.api.sharing import write_graph as write_graph
from circuitcli.api.steering import Steered as Steered
from circuitcli.api.steering import steer as steer
from circuitcli.api.texts import features_on as features_on
from circuitcli.api.toys import toy as toy
from circuitcli.api.training import train as train
from circuitcli.api.validating import Scores as Scores
from circuitcli.api.validating import validate as validate
from circuitcli.attribution.behaviours import Behaviour as Behaviour
from circuitcli.attribution.examples import Example as Example
from circuitcli.errors import CircuitError as CircuitError
from circuitcli.errors import InputError as InputError
from circuitcli.errors import SettingsError as SettingsError
from circuitcli.errors import ToolError as ToolError
from circuitcli.features.pairing import Pairs as Pairs
from circuitcli.graphs import CircuitGraph as CircuitGraph
from circuitcli.hookpoints import HookPoint as HookPoint
from circuitcli.models.loading import LanguageModel as LanguageModel
from circuitcli.saes.base import SparseCoder as SparseCoder
from circuitcli.stages.doors import explain as explain
from circuitcli.stages.doors import write_pages as write_pages

__version__: str
