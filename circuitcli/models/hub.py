"""Whether the hub can be asked, as its own clients would retry for minutes, and what its refusals mean."""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from circuitcli.errors import CircuitError, InputError, ToolError

TIMEOUT_S = 3.0

Kind = Literal["model", "data set", "repository"]
_LATER = "try again later; what is in the local cache can be used with HF_HUB_OFFLINE=1"
# Names that are often mistyped, or written without their owner.
_KNOWN = (
    *("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"),
    *(f"EleutherAI/pythia-{size}" for size in ("14m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")),
    *(f"EleutherAI/pythia-{size}-deduped" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")),
    *(f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b")),
    *("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"),
    *("google/gemma-2b", "google/gemma-2-2b", "google/gemma-2-9b", "google/gemma-3-270m", "google/gemma-3-1b-pt"),
    *("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-1.7B"),
    *("Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "mistralai/Mistral-7B-v0.1"),
)


def hub_answers(*, switches: Iterable[str] = ("HF_HUB_OFFLINE",)) -> bool:
    """Whether a connection to the hub can be opened within seconds.

    switches: environment variables by which users forbid it. Behind a proxy only a request could tell, so it counts
    as reachable.
    """
    if any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in switches):
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=TIMEOUT_S):
            return True
    except OSError:
        return False


def refusal(error: BaseException, *, repository: str, kind: Kind, revision: str | None = None) -> CircuitError | None:
    """What the hub said, if that is why a library failed to get something, and what to do about it; no token in it."""
    causes = list(_causes(error))
    response = next((found for cause in causes if (found := getattr(cause, "response", None)) is not None), None)
    asked = _Asked(repository, kind, revision)
    if response is not None and response.status_code >= 400:
        return _of_answer(asked, response.status_code, response.headers)
    # The package datasets keeps the answer to itself.
    if unfound := next((cause for cause in causes if type(cause).__name__ == "DatasetNotFoundError"), None):
        return _no_access(asked, is_gated=True) if "gated" in str(unfound) else _absent(asked)
    if any(_is_broken(cause) for cause in causes):
        return ToolError(f"the hub did not answer for {asked}", hint=_LATER)
    return None


@dataclass(frozen=True)
class _Asked:
    """Something on the hub; prints as people call it."""

    repository: str
    kind: Kind
    revision: str | None

    def __str__(self) -> str:
        return f"{self.kind} {'hf:' if self.kind == 'data set' else ''}{self.repository}"

    @property
    def page(self) -> str:
        """Where people read about it."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'data set' else ''}{self.repository}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _is_broken(cause: BaseException) -> bool:
    """Whether this is a library's word for a connection that failed or gave nothing of use."""
    names = {"LocalEntryNotFoundError", "FileMetadataError", "TransportError"}
    return isinstance(cause, ConnectionError | TimeoutError) or any(
        base.__name__ in names for base in type(cause).__mro__
    )


def _of_answer(asked: _Asked, status: int, headers: Mapping[str, str]) -> CircuitError | None:
    code, message = headers.get("X-Error-Code"), headers.get("X-Error-Message") or ""
    if status == 401 and "Invalid credentials" in message:
        return ToolError(
            f"the hub does not accept the token that was sent for {asked}",
            hint="set HF_TOKEN to one of https://huggingface.co/settings/tokens, or unset it",
        )
    if code == "EntryNotFound":
        # It is there, and the library says which of its files is not.
        return None
    if code == "RevisionNotFound":
        return InputError(f"{asked} has no revision '{asked.revision}'", hint=f"see {asked.page}/tree/main for all")
    if status == 404 or code == "RepoNotFound":
        return _absent(asked)
    if status in (401, 403):
        return _no_access(asked, is_gated=code == "GatedRepo")
    if status == 429:
        told = f"the hub accepts no more requests for now (status 429), so not for {asked}"
        return ToolError(told, hint="wait a moment, or set HF_TOKEN, which raises the limit")
    return ToolError(f"the hub answers with status {status} for {asked}", hint=_LATER)


def _absent(asked: _Asked) -> InputError:
    return InputError(f"the hub does not have {asked}", hint=_nearest(asked))


def _no_access(asked: _Asked, *, is_gated: bool) -> ToolError:
    from huggingface_hub import get_token

    what = f"{asked} is gated" if is_gated else f"the hub refuses access to {asked}, which may be gated or private"
    if get_token() is None:
        token = "then set HF_TOKEN to a token of https://huggingface.co/settings/tokens"
    else:
        token = "with the account of your token, and let the token read gated repositories"
    return ToolError(what, hint=f"accept its conditions at {asked.page}, {token}")


def _nearest(asked: _Asked) -> str:
    """Which name may have been meant, of those that are known or in the local cache."""
    if asked.kind != "model":
        return f"a private {asked.kind} needs HF_TOKEN; names are OWNER/NAME as in the address of its page"
    near = get_close_matches(asked.repository, [*_KNOWN, *_cached_models()], n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}? A private model needs HF_TOKEN"
    return "names are OWNER/NAME as on https://huggingface.co/models; a private model needs HF_TOKEN"


def _cached_models() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--*")
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]
