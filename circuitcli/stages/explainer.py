"""The language model that explains: what the settings say of it, checked before anything is loaded or asked."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from circuitcli import runs
from circuitcli.errors import InputError, SettingsError
from circuitcli.explaining.asking import Client
from circuitcli.explaining.exchange import Secret
from circuitcli.explaining.price import Budget, Prices
from circuitcli.explaining.server import Limits, Server, is_local
from circuitcli.reading import as_path, read_text
from circuitcli.settings.explain import ExplainSettings
from circuitcli.settings.settings import Settings

KEY = "OPENAI_API_KEY"
# Keys are of some hundred characters.
_KEY_BYTES = 2**14


def check(settings: ExplainSettings, *, asks: bool) -> None:
    """Raise SettingsError where no model is named, or one whose price is not known although it is to be asked."""
    if settings.model is None:
        raise SettingsError(
            "no language model is named that could explain features",
            hint="name a Hugging Face model or directory with --explainer, or a server's model with --base-url too",
        )
    if settings.base_url is not None:
        address(settings)
        if asks:
            prices(settings)


def address(settings: ExplainSettings) -> str:
    """The base URL without its end. Raises SettingsError for what is no address, or holds a key, which is not shown."""
    written = (settings.base_url or "").strip()
    try:
        parts = urlsplit(written)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        parts, is_address = urlsplit(""), False
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError(
            "the base URL holds a user, a password or a query",
            hint=f"give only the address, and the key in the variable {KEY} or in a file: --set explain.key_file=FILE",
        )
    if not is_address:
        raise SettingsError(
            f"'{written[:100]}' is not an address of a server", hint="for example --base-url http://127.0.0.1:8080/v1"
        )
    return written.rstrip("/").removesuffix("/chat/completions")


def prices(settings: ExplainSettings) -> Prices:
    """What the model costs; on this machine nothing, unless it is set. Raises SettingsError where that is not known."""
    given = (settings.price_in, settings.price_out)
    if given == (None, None) and (settings.base_url is None or is_local(address(settings))):
        return Prices(0.0, 0.0)
    if settings.price_in is None or settings.price_out is None:
        raise SettingsError(
            f"the price of {settings.model} at {address(settings)} is not known",
            hint="give dollars for a million tokens, --set explain.price_in=0.15 --set explain.price_out=0.6 (0 if it "
            "is free), or only count with --dry-run",
        )
    return Prices(settings.price_in, settings.price_out)


def client(settings: Settings) -> Client:
    """What answers. Raises as the model's loading does, and InputError for a key that cannot be read."""
    explain = settings.explain
    if explain.base_url is None:
        return _local(settings)
    limits = Limits(
        concurrency=explain.concurrency,
        requests_per_minute=explain.requests_per_minute,
        tokens_per_minute=explain.tokens_per_minute,
        timeout_s=explain.timeout_s,
        retries=explain.retries,
    )
    budget = Budget(prices(explain), explain.max_usd)
    return Server(address(explain), str(explain.model), _secret(explain), limits, budget)


def name_of(settings: ExplainSettings) -> str:
    """What people and records call the model."""
    return str(settings.model)


def _secret(settings: ExplainSettings) -> Secret:
    if settings.key_file is None:
        key = os.environ.get(KEY, "").strip()
    else:
        path = as_path(settings.key_file)
        key = read_text(path, limit_bytes=_KEY_BYTES, hint="name a file that holds only the key").strip()
        if not key:
            raise InputError(f"{path} holds no key", hint="name a file that holds only the key")
    # A header can hold nothing else; the key itself is not shown.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            "the key is not one line of ASCII letters", hint=f"set {KEY} or explain.key_file to the key alone"
        )
    return Secret(key or None)


def _local(settings: Settings) -> Client:
    from circuitcli.explaining.local import LocalModel
    from circuitcli.models.loading import load_model
    from circuitcli.settings.model import ModelSettings
    from circuitcli.stages.collect import local_state

    name = str(settings.explain.model)
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
        raise InputError(
            f"no directory {name}", hint="--explainer takes a hub id, a directory or, with --base-url, a server's name"
        )
    model = load_model(ModelSettings(name=name, device=settings.model.device, dtype=settings.model.dtype))
    state = local_state(Path(name).expanduser())
    digest = model.revision or (runs.digest(state)[:19] if state else "")
    return LocalModel(model, digest)
