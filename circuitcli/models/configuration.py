"""A model's configuration, read and looked over before anything is built from it."""

from collections.abc import Iterator, Mapping
from typing import Any

from circuitcli.errors import InputError

# No published model comes near; building more takes minutes and gigabytes before a single weight is read.
MOST_LAYERS, MOST_EXPERTS = 1000, 4096


def read_configuration(source: str, options: Mapping[str, Any]) -> Any:
    """The PretrainedConfig at a place, as ``from_pretrained`` understands it.

    Raises InputError for one that asks for a model that cannot be, so that it is not tried.
    """
    from transformers import AutoConfig, PreTrainedConfig

    # Some classes of configurations list a kind for each layer when they are made. Reading a .gguf twice takes seconds.
    if "gguf_file" not in options:
        _check_numbers(PreTrainedConfig.get_config_dict(source, **options)[0])
    config = AutoConfig.from_pretrained(source, **options)
    _check_numbers(config.to_dict())
    _check_layers(config)
    return config


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model for its text, also one that sees or hears."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    classes = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
    return next((kind for kind in classes if type(config) in kind._model_mapping), AutoModelForCausalLM)


def _check_numbers(values: Mapping[Any, Any]) -> None:
    for name, value in _numbers(values):
        for word, most in (("layer", MOST_LAYERS), ("expert", MOST_EXPERTS)):
            if word in name and value > most:
                raise InputError(
                    f"the model's configuration asks for {name}={value:,}, more than any model has ({most:,} at most)",
                    hint="correct config.json in the model's folder",
                )


def _check_layers(config: Any) -> None:
    n_layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if isinstance(n_layers, int) and n_layers < 1:
        raise InputError(
            f"according to its configuration the model has {n_layers} layers, so it has no hook points",
            hint="choose another --model, or correct config.json in its folder",
        )


def _numbers(values: Mapping[Any, Any]) -> Iterator[tuple[str, int]]:
    """All whole numbers with their names, those of configurations inside too."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield str(name), value
