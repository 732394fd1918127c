"""Small random models, one for each family, built from configurations; nothing is downloaded."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import browser
import nursery
import pytest
import torch
from support import FAMILIES, adapter_of

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models of a few thousand weights take several times as long on two threads as on one, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Started in the background of a script, processes ignore Ctrl-C; tests send it to themselves and to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Those that take longest, so that no process is left with one of them when the others are done.
LONGEST = (
    "test_real_model",
    "test_other_device",
    "test_readme",
    "test_project",
    "test_kernels",
    "test_collect_processes",
    "test_train_processes",
    "test_allocator",
    "test_end_to_end",
    "test_best_weights",
    "test_auxk",
    "test_large_models",
    "test_staircase",
    "test_loading",
)


def pytest_configure(config: pytest.Config) -> None:
    """Begin one nursery for all processes of pytest, if there are several."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[nursery.SHARED] = nursery.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


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


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Chromium]:
    """A real browser for the tests of a file: no longer, as Playwright's event loop runs as long."""
    with browser.launched() as found:
        yield found


@pytest.fixture(scope="module")
def shared(chromium: browser.Chromium) -> Iterator[browser.Tab]:
    """A page of that browser for all tests of a file."""
    with chromium.tab() as tab:
        yield tab
