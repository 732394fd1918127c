"""Whether the hub can be asked; its own clients would retry for minutes before they gave up."""

import os
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


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
