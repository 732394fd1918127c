"""The authors' own script of the toy experiment, run as it stands but for its imports.

HoagyC/sparse_coding, ``replicate_toy_models.py`` at revision 69127bb: one training after the other, each with batches
drawn for it alone. A training also measures the finished autoencoder, so steps are timed as the difference between a
longer training and a shorter one.
"""

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitcli.settings.toy import ToySettings
from circuitcli.toys.stack import Model

# Steps of the shorter and of the longer training.
SHORT, LONG = 2, 12


class _Options(dict[str, Any]):
    """A dictionary whose items are attributes too, as the script expects of a module that its revision lacks."""

    __getattr__ = dict.__getitem__


class _AnyShape:
    def __class_getitem__(cls, _: object) -> type[Tensor]:
        return Tensor


def script(path: Path) -> Any:
    """The script as a module. Its annotations' package is old; they are read as plain tensors."""
    for name, content in (("torchtyping", {"TensorType": _AnyShape}), ("utils", {"dotdict": _Options})):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("replicate_toy_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Peer:
    """The script's trainings of the same autoencoders, on its own batches of as many planted features."""

    def __init__(self, path: Path, settings: ToySettings) -> None:
        self.module, self.settings = script(path), settings
        self.batches = self.module.RandomDatasetGenerator(
            activation_dim=settings.d_model,
            n_ground_truth_components=settings.n_features,
            batch_size=settings.batch_size,
            feature_num_nonzero=settings.n_active,
            feature_prob_decay=settings.decay,
            correlated=settings.correlation != "none",
            device="cpu",
        )

    def training(self, model: Model, steps: int) -> Callable[[], None]:
        """One training of so many steps."""
        options = _Options(
            activation_dim=self.settings.d_model,
            n_components_dictionary=model.width,
            learning_rate=self.settings.learning_rate,
            l1_alpha=model.l1_weight,
            noise_level=0.0,
            epochs=steps,
        )

        def train() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                self.module.run_single_go(options, self.batches)

        return train
