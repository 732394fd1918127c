"""Loading a language model."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from circuitcli.api.arguments import Path, checked, wrong_type
from circuitcli.models import loading
from circuitcli.models.loading import LanguageModel
from circuitcli.settings.model import ModelSettings


def load_model(
    name: Path = "builtin:tiny",
    *,
    revision: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32",
    device: str = "auto",
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None,
    max_memory: str | Sequence[str] = (),
    offload_folder: Path | None = None,
    trust_remote_code: bool = False,
    bos: Literal["auto", "always", "never"] = "auto",
) -> LanguageModel:
    """The model and its tokenizer, in evaluation mode: ``model.adapter`` and ``model.tokenizer``.

        model = circuit.load_model("builtin:tiny")                     # ships with the package
        model = circuit.load_model("gpt2", device="cpu")               # from the hub
        model = circuit.load_model("EleutherAI/pythia-70m", revision="step1000")
        model = circuit.load_model("models/llama", dtype="bfloat16")   # a directory, or a .gguf file

    device: cpu, cuda, cuda:1 or mps; auto takes the GPU that is there. device_map and max_memory spread a model that no
    device holds alone. bos: whether every text begins with the tokenizer's BOS token, whose position carries no
    features. The plain Hugging Face model is ``model.adapter.model``.

    Raises InputError for a model that is not there or cannot be read, ToolError without network or device,
    SettingsError for an argument that makes no sense.
    """
    settings = checked(
        ModelSettings,
        name=name,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        trust_remote_code=trust_remote_code,
        bos=bos,
    )
    return loading.load_model(settings)


def as_model(model: object) -> LanguageModel:
    """The model that is given. Raises SettingsError for anything else, such as its name."""
    if not isinstance(model, LanguageModel):
        raise wrong_type("model", model, "a loaded model", hint="load_model() gives one")
    return model


def as_prompt(prompt: object, *, name: str = "prompt") -> str | tuple[int, ...]:
    """A text, or token ids. Raises SettingsError for anything else."""
    if isinstance(prompt, str):
        return prompt
    ids = prompt.tolist() if isinstance(prompt, Tensor) and prompt.ndim == 1 else prompt
    if not isinstance(ids, Sequence) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise wrong_type(name, prompt, "a text or a list of token ids", hint=f"{name}='The capital of France is'")
    return tuple(ids)
