"""Labels that Neuronpedia has of features, fetched when asked for and kept; needs no torch."""

from collections.abc import Callable, Mapping
from typing import Any

from circuitcli.errors import InputError, ToolError
from circuitcli.explaining.exchange import Again, Secret, retry_after
from circuitcli.explaining.server import Limits, is_local, library, pause
from circuitcli.features.label_files import NEURONPEDIA, Label
from circuitcli.progress import task
from circuitcli.reading import parse_object, whole_characters
from circuitcli.schema import LONGEST_TEXT

# Of each feature, what is kept of the one that was fetched.
Keep = Callable[[Label], None]
_KEPT = "what was fetched is kept; the same command goes on from there"


def fetch(
    wanted: Mapping[str, str], url: str, *, secret: Secret, limits: Limits, sae: Mapping[str, str | None], keep: Keep
) -> None:
    """Fetch the labels of features, given by id as ``MODEL/SOURCE/INDEX``, one after the other; each is told to
    ``keep`` as it comes, an empty one for a feature of which Neuronpedia has none.

    Raises ToolError where it cannot be reached, refuses, or shows no such source.
    """
    http = library()
    headers = {} if secret.key is None else {"x-api-key": secret.key}
    options = {"timeout": limits.timeout_s, "follow_redirects": False, "trust_env": not is_local(url)}
    with task("Neuronpedia", total=len(wanted), unit="features") as advance:
        with http.Client(headers=headers, **options) as client:
            for name, place in wanted.items():
                content = _fetched(http, client, f"{url.rstrip('/')}/api/feature/{place}", secret=secret, limits=limits)
                keep(_label(name, content, place, sae.get(name)))
                advance()


def _fetched(http: Any, client: Any, address: str, *, secret: Secret, limits: Limits) -> dict[str, Any]:
    import tenacity

    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(limits.retries + 1),
        wait=pause,
        retry=tenacity.retry_if_exception_type(Again),
        reraise=True,
    )
    try:
        for attempt in attempts:
            with attempt:
                return _once(http, client, address, secret=secret, limits=limits)
    except Again as failure:
        raise ToolError(f"{address} {failure}", hint=_KEPT) from None
    raise AssertionError("tenacity ends with an answer or an error")


def _once(http: Any, client: Any, address: str, *, secret: Secret, limits: Limits) -> dict[str, Any]:
    try:
        response = client.get(address)
    except http.TimeoutException:
        raise Again(f"gave no answer within {limits.timeout_s:g} s") from None
    except http.InvalidURL as error:
        raise ToolError(f"{address} is not an address: {error}", hint="see explain.neuronpedia_url") from None
    except http.HTTPError as error:
        raise Again(f"cannot be reached: {secret.hidden(str(error) or type(error).__name__)}") from None
    told = secret.hidden(response.text)
    if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
        raise Again(f"said {response.status_code}: {told}", retry_after(response.headers))
    if response.status_code == 404:
        raise ToolError(f"{address} is not there", hint="name the place: --set explain.neuronpedia_source=MODEL/SOURCE")
    if response.status_code != 200:
        raise ToolError(f"{address} said {response.status_code}: {told}", hint=_KEPT)
    try:
        return parse_object(response.text, name="answer")
    except InputError:
        raise Again("gives answers that are not those of Neuronpedia") from None


def _label(name: str, content: Mapping[str, Any], place: str, sae: str | None) -> Label:
    """The first explanation, with its best score of a balanced accuracy's kind, if there is one."""
    explanations = content.get("explanations")
    listed = [one for one in explanations if isinstance(one, dict)] if isinstance(explanations, list) else []
    texts = [one for one in listed if isinstance(one.get("description"), str) and one["description"].strip()]
    if not texts:
        return Label(id=name, label="", label_source=NEURONPEDIA, sae=sae, place=place)
    said = whole_characters(texts[0]["description"].strip())[:LONGEST_TEXT]
    by = texts[0].get("explanationModelName")
    more = {"model": by} if isinstance(by, str) else {}
    return Label(id=name, label=said, label_source=NEURONPEDIA, sae=sae, place=place, **more)
