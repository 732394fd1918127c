"""Which features a text is made of."""

from circuitcli.api.arguments import wrong_type
from circuitcli.api.coders import SomeCoders, by_hook, check_fits
from circuitcli.api.models import as_model
from circuitcli.features.texts import TokenFeatures, read_text
from circuitcli.models.loading import LanguageModel


def features_on(model: LanguageModel, coders: SomeCoders, text: str, *, n: int = 5) -> tuple[TokenFeatures, ...]:
    """The features that are active in a text, token by token: of each coder the ``n`` strongest, strongest first.

        for at in circuit.features_on(model, coders, "for i in range("):
            print(at.position, at.token, [(one.id, one.activation) for one in at.features])

    A text of any length: what is longer than the model's window, or than 1,024 tokens, is read in pieces. `encode`
    gives all codes of a short one. Raises InputError for a text without a token, and for coders of another width.
    """
    whole, found = as_model(model), by_hook(coders)
    if not isinstance(text, str):
        raise wrong_type("text", text, "a text", hint="for example text='for i in range('")
    if not isinstance(n, int) or n < 1:
        raise wrong_type("n", n, "a whole number above zero", hint="for example n=5")
    for coder in found.values():
        check_fits(coder, whole)
    return read_text(whole, found, text).strongest(n)
