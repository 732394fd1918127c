"""Training a small language model from nothing."""

from collections.abc import Mapping
from pathlib import Path as FilePath

from circuitcli import runs
from circuitcli.api.arguments import Path, others_of
from circuitcli.errors import InputError
from circuitcli.models.loading import LanguageModel, choose_device, load_model
from circuitcli.pretraining import export
from circuitcli.pretraining.batches import Windows
from circuitcli.pretraining.corpus import text_source
from circuitcli.pretraining.job import TOKENIZER, Job, read_text
from circuitcli.reading import as_path
from circuitcli.settings.model import ModelSettings
from circuitcli.settings.pretrain import NO_MATTER
from circuitcli.settings.settings import Settings
from circuitcli.settings.sources import changed, flatten
from circuitcli.text.documents import source_digest
from circuitcli.training.checkpoint import Checkpoints

# As `circuit pretrain` has them below the directory of the model.
_FOLDER, _STATES, _MADE_FROM = "training", "state", "made-from"


def pretrain(
    text: Path,
    path: Path,
    *,
    tokenizer: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
) -> LanguageModel:
    """A small GPT-2 that was trained on a text, kept at ``path`` as a Hugging Face directory.

        model = circuit.pretrain("book.txt", "gpt", tokenizer="characters", steps=2000)
        model = circuit.pretrain("builtin:python", "gpt", settings={"pretrain.checkpoints": "log,every:1000"})
        early = circuit.load_model("gpt/checkpoints/step1000")

    text: a source as `circuit pretrain --text` takes it. tokenizer: bpe, characters, ascii, or a local one. settings:
    anything else by its dotted name. A call that was broken off goes on from its last state, and a finished one gives
    what is there. The same seed gives the same model on the same device, and the same as the command.

    Raises InputError for a text that is too short or a directory that holds another model, SettingsError for settings
    that make no sense, CircuitError if the loss stops being finite.
    """
    free = others_of(settings, example="{'pretrain.n_layers': 2}")
    named = {"data.text": str(text), "pretrain.tokenizer": tokenizer, "pretrain.steps": steps, "seed": seed}
    values = {name: value for name, value in named.items() if value is not None} | free
    chosen = changed(Settings(), values, origin="pretrain()")
    chosen.pretrain.check()
    output = as_path(path)
    if not _is_there(output, made_from := _digest(chosen)):
        folder = output / _FOLDER
        states = Checkpoints(folder / _STATES, made_from)
        read = read_text(chosen, kept=folder / TOKENIZER if states.step() else None)
        windows = Windows(read.corpus, chosen.pretrain, seed=chosen.seed)
        Job(chosen, read, windows, choose_device(device), output, folder, states).finished()
        with runs.atomic(folder / _MADE_FROM) as stream:
            stream.write(made_from)
    return load_model(ModelSettings(name=str(output), device=device))


def _digest(settings: Settings) -> str:
    """Of all that the weights depend on."""
    values = {name: value for name, value in flatten(settings).items() if name.startswith(("pretrain.", "seed"))}
    content = source_digest(text_source(settings), field=settings.data.field)
    return runs.digest([{name: value for name, value in values.items() if name not in NO_MATTER}, content])


def _is_there(place: FilePath, made_from: str) -> bool:
    """Whether an earlier call finished this model. Raises InputError if another one is there."""
    told = place / _FOLDER / _MADE_FROM
    if told.is_file() and told.read_text("utf-8") == made_from:
        return True
    if any((place / name).exists() for name in export.OF_A_MODEL):
        raise InputError(f"{place} holds another model", hint="give another path, or remove what is there")
    return False
