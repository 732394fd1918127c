"""Loading a model and its tokenizer from a hub id, a directory, a .gguf file or the package itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuitcli import processes
from circuitcli.errors import CircuitError, InputError, SettingsError, ToolError, first_line
from circuitcli.models import builtin, checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.configuration import auto_class, read_configuration
from circuitcli.models.hub import hub_answers, refusal
from circuitcli.models.ids_only import IdsOnly, has_tokenizer
from circuitcli.models.offloading import is_spread, placed, placement
from circuitcli.models.tokenizer import Tokenizer
from circuitcli.settings.model import ModelSettings

logger = logging.getLogger(__name__)

BUILTIN = "builtin:"


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """A loaded model with its tokenizer; ``revision`` is the commit of a hub model."""

    adapter: ModelAdapter
    tokenizer: Tokenizer
    name: str
    revision: str | None

    def __repr__(self) -> str:
        adapter = self.adapter
        dtype = str(adapter.dtype).removeprefix("torch.")
        shape = f"{adapter.n_layers} layers of width {adapter.d_model}"
        return f"LanguageModel({self.name!r}: {adapter.model_type}, {shape}, {dtype} on {adapter.device})"


@dataclass(frozen=True)
class _Source:
    """What transformers' ``from_pretrained`` is given."""

    location: str
    options: dict[str, Any]
    is_hub: bool


def load_model(settings: ModelSettings) -> LanguageModel:
    """The model and its tokenizer, on its device, in evaluation mode.

    Raises InputError for a model that is not there or cannot be read, ToolError without network or device.
    """
    source = _source(settings)
    options = source.options | _numbers(settings)
    device = None if is_spread(settings) else choose_device(settings.device)
    with quiet(), _explained(settings, source), placement(settings) as placing:
        config = read_configuration(source.location, source.options)
        model = auto_class(config).from_pretrained(source.location, config=config, **options, **placing)
    if device is not None:
        model = model.to(device)
    placed(model, placing)
    revision = _commit(settings) if source.is_hub else None
    return LanguageModel(checking.adapter_of(model), load_tokenizer(settings), settings.name, revision)


def _commit(settings: ModelSettings) -> str | None:
    """The commit of a hub model that was just loaded: the name of the folder in which the local cache keeps it."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(settings.name, "config.json", revision=settings.revision)
    return Path(path).parent.name if isinstance(path, str) else settings.revision


def load_outline(settings: ModelSettings) -> ModelAdapter:
    """The model's structure without its weights, on the meta device, for estimates. Raises as `load_model` does."""
    source = _source(settings)
    with quiet(), _explained(settings, source):
        config = read_configuration(source.location, source.options)
        with torch.device("meta"):
            model = auto_class(config).from_config(
                config, trust_remote_code=settings.trust_remote_code, **_numbers(settings)
            )
    return checking.adapter_of(model)


def _numbers(settings: ModelSettings) -> dict[str, Any]:
    """What transformers is told of number types."""
    # Its fused products of experts have no float64.
    experts = {"experts_implementation": "eager"} if settings.dtype == "float64" else {}
    return {"dtype": getattr(torch, settings.dtype), **experts}


def load_tokenizer(settings: ModelSettings) -> Tokenizer:
    """The tokenizer alone; for a model that has none, what stands for it. Raises as `load_model` does."""
    from transformers import AutoConfig, AutoTokenizer

    source = _source(settings)
    with quiet(), _explained(settings, source):
        if has_tokenizer(source.location, source.options):
            return Tokenizer(AutoTokenizer.from_pretrained(source.location, **source.options), bos=settings.bos)
        config = AutoConfig.from_pretrained(source.location, **source.options)
        return IdsOnly(config, model=settings.name, bos=settings.bos)


def choose_device(name: str) -> torch.device:
    """The torch device of a name, ToolError if it is missing; ``auto`` takes the GPU that PyTorch finds, else the CPU.

    Of several processes on one machine each takes its own CUDA device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if accelerator is None else accelerator.type
    if name == "cuda" and processes.count() > 1:
        name = f"cuda:{processes.local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"'{name}' is not a device", hint="use cpu, cuda, cuda:1 or mps") from None
    if (device.index or 0) >= _n_devices(device.type):
        raise ToolError(f"device {name} is not available here", hint="use --device cpu, or a PyTorch built for it")
    return device


def _n_devices(kind: str) -> int:
    """How many devices of a kind are here."""
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:
        return 0
    return module.device_count() if module.is_available() else 0


def _source(settings: ModelSettings) -> _Source:
    name = settings.name
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if name.startswith(BUILTIN):
        return _Source(str(builtin.directory(name.removeprefix(BUILTIN))), options, is_hub=False)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(
                f"no file {path}", hint="--model takes a hub id, a directory, a .gguf file or builtin:tiny"
            )
        return _Source(str(path.parent), options | {"gguf_file": path.name}, is_hub=False)
    if path.is_dir():
        return _Source(str(path), options, is_hub=False)
    if name.startswith(("/", "./", "../", "~")):
        raise InputError(
            f"no directory {path}", hint="--model takes a hub id, a directory, a .gguf file or builtin:tiny"
        )
    return _hub_source(name, options | {"revision": settings.revision})


def _hub_source(name: str, options: dict[str, Any]) -> _Source:
    """A hub id; where the hub does not answer within seconds, only the local cache is used."""
    if not hub_answers(switches=("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        options = options | {"local_files_only": True}
    return _Source(name, options, is_hub=True)


@contextmanager
def _explained(settings: ModelSettings, source: _Source) -> Iterator[None]:
    """Turn what transformers raises into one error that says what to do."""
    try:
        yield
    except (CircuitError, KeyboardInterrupt):
        raise
    except ImportError as error:
        raise ToolError(
            f"loading {settings.name} needs a package: {first_line(error)}",
            hint=f"pip install {error.name or 'the package that it names'}",
        ) from error
    except Exception as error:
        raise _failure(settings, source, error) from error


def _failure(settings: ModelSettings, source: _Source, error: Exception) -> CircuitError:
    name = settings.name
    if source.is_hub and source.options.get("local_files_only"):
        return ToolError(
            f"model {name} is neither a directory nor in the local cache, and the hub cannot be reached",
            hint="connect once to fill the cache, or give a directory; --model builtin:tiny needs neither",
        )
    told = refusal(error, repository=name, kind="model", revision=settings.revision) if source.is_hub else None
    return told or InputError(
        f"cannot load model {name}: {first_line(error)}",
        hint="--model takes a hub id, a directory, a .gguf file or builtin:tiny",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and notes off stderr."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    # accelerate tells of weights that lie elsewhere; what people need of it is said when the model is there.
    accelerates = logging.getLogger("accelerate")
    accelerates_level = accelerates.level
    accelerates.setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        accelerates.setLevel(accelerates_level)
        if bars:
            hf_logging.enable_progress_bar()
