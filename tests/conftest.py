"""Small random models, one for each family, built from configurations; nothing is downloaded."""

import os
import signal
from pathlib import Path

import pytest
import torch
from support import FAMILIES, adapter_of

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models of a few thousand weights take several times as long on two threads as on one, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Started in the background of a script, processes ignore Ctrl-C; tests send it to themselves and to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CIRCUIT_") and name != "CIRCUIT_TEST_MODEL":
            monkeypatch.delenv(name)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family of models in turn."""
    return str(request.param)


@pytest.fixture
def adapter(family: str):
    """A random three-layer model of the family in float64."""
    return adapter_of(family, dtype=torch.float64)
