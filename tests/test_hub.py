"""What is said of models, data sets and SAEs that the hub refuses, held against a server that answers as it does."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from cli_support import here

from circuitcli.errors import CircuitError, InputError, ToolError
from circuitcli.models.hub import refusal
from circuitcli.models.loading import load_model, load_tokenizer
from circuitcli.saes.exchange import catalogue
from circuitcli.settings.model import ModelSettings
from circuitcli.text.data_sets import DataSet, row_documents

TOKEN = "hf_nobodymayseethis"
# By what a repository is called: status, X-Error-Code and X-Error-Message.
ANSWERS: dict[str, tuple[int, str | None, str | None]] = {
    "gated": (401, "GatedRepo", "Access to this model is restricted. You must be authenticated to access it."),
    "waiting": (403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list."),
    "private": (401, "RepoNotFound", "Repository not found"),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "untold": (401, None, None),
    "forbidden": (403, None, None),
    "stranger": (401, None, "Invalid credentials in Authorization header"),
    "other-revision": (404, "RevisionNotFound", "Invalid rev id: step7"),
    "no-config": (404, "EntryNotFound", "Entry not found"),
    "busy": (429, None, None),
    "broken": (500, None, None),
    "down": (503, None, None),
}
# The error, and words of its message and its hint.
TOLD = {
    "gated": (
        ToolError,
        "is gated",
        "accept its conditions at https://huggingface.co/{page}, then set HF_TOKEN",
    ),
    "waiting": (
        ToolError,
        "is gated",
        "accept its conditions at https://huggingface.co/{page}, then set HF_TOKEN",
    ),
    "private": (InputError, "the hub does not have ", "needs HF_TOKEN"),
    "missing": (InputError, "the hub does not have ", "needs HF_TOKEN"),
    "untold": (ToolError, "may be gated or private", "https://huggingface.co/{page}"),
    "forbidden": (ToolError, "may be gated or private", "https://huggingface.co/{page}"),
    "stranger": (ToolError, "does not accept the token", "https://huggingface.co/settings/tokens"),
    "other-revision": (InputError, "has no revision", "https://huggingface.co/{page}/tree/main"),
    "busy": (ToolError, "status 429", "wait a moment"),
    "broken": (ToolError, "status 500", "HF_HUB_OFFLINE=1"),
    "down": (ToolError, "status 503", "HF_HUB_OFFLINE=1"),
}


Asked = list[tuple[str, str | None]]


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = next((name for name in ANSWERS if f"/org/{name}/" in f"{self.path.split('?')[0]}/"), "missing")
        status, code, message = ANSWERS[name]
        self.server.asked.append((name, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", message), ("Content-Length", str(len(body)))):
            if value is not None:
                self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Asked]:
    """A hub on this machine: what it was asked for, and with which token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", address)
    # The libraries read the variables when they are imported.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    # They wait between tries.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    yield server.asked  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def of_model(name: str) -> None:
    load_model(ModelSettings(name=f"org/{name}", device="cpu", revision="step7"))


def of_tokenizer(name: str) -> None:
    load_tokenizer(ModelSettings(name=f"org/{name}"))


def of_data_set(name: str) -> None:
    next(row_documents(DataSet.parse(f"hf:org/{name}"), field=None, vocabulary=None))


def of_sae(name: str) -> None:
    release = catalogue.Release("some-saes", f"org/{name}", "sae_lens", catalogue.Changes(), ())
    catalogue.fetch(release, release.entry("layer/1"))


CASES = [(of_model, name) for name in TOLD]
# Their libraries ask the hub in the same way, and hide some of what it says.
CASES += [(load, name) for load in (of_data_set, of_sae) for name in ("gated", "missing", "down")]


@pytest.mark.parametrize(("load", "name"), CASES, ids=lambda part: getattr(part, "__name__", part))
def test_a_refusal_says_why_and_what_to_do(hub: Asked, load: Callable[[str], None], name: str):
    kind, message, hint = TOLD[name]
    with pytest.raises(CircuitError) as caught:
        load(name)
    page = f"datasets/org/{name}" if load is of_data_set else f"org/{name}"
    assert type(caught.value) is kind and message in caught.value.message
    assert f"org/{name}" in caught.value.message
    assert hint.format(page=page) in caught.value.hint
    assert any(asked == name for asked, _ in hub)


def test_a_name_that_is_nearly_one_brings_that_to_mind(hub: Asked, tmp_path: Path):
    (tmp_path / "hub" / "models--org--pythia-70m-mine").mkdir(parents=True)
    for written, meant in (
        ("EleutherAI/pythia-70n", "EleutherAI/pythia-70m"),
        ("org/pythia-70m-min", "org/pythia-70m-mine"),
    ):
        with pytest.raises(InputError, match=f"the hub does not have model {written}") as caught:
            load_tokenizer(ModelSettings(name=written))
        assert f"did you mean {meant}?" in caught.value.hint


def test_a_repository_without_a_model_is_no_missing_one(hub: Asked):
    with pytest.raises(InputError, match="cannot load model org/no-config"):
        of_tokenizer("no-config")


def test_the_token_is_used_and_never_shown(hub: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("waiting", "stranger"):
        done = here("collect", "--model", f"org/{name}", "--run", "run", cwd=tmp_path)
        assert done.status == 4 and (name, f"Bearer {TOKEN}") in hub
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
        assert TOKEN not in done.stderr + done.stdout
        assert "of your token" in done.stderr or "does not accept the token" in done.stderr


def test_a_hub_that_hangs_up_is_no_fault_of_the_name():
    broken = OSError("we could not connect")
    broken.__cause__ = TimeoutError("timed out")
    found = refusal(broken, repository="org/model", kind="model")
    assert isinstance(found, ToolError) and "did not answer for model org/model" in found.message
    assert refusal(ValueError("a broken file"), repository="org/model", kind="model") is None
