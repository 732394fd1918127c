"""What `circuit validate` can be asked for, of which each excludes the others."""

from circuitcli.errors import SettingsError
from circuitcli.settings.validation import ValidationSettings

# The option of each, and the setting that asks for it; what they take further goes with the test of a graph only.
_MODES = {"--pin": "pin", "--scale": "scale", "--against": "against", "--interaction": "interaction"}
_FURTHER = {"--stability": "stability", "--sae-seeds": "sae_seeds"}


def check_modes(settings: ValidationSettings) -> None:
    """Raise SettingsError for options of which one makes no sense with, or without, another."""
    asked = [option for option, name in _MODES.items() if getattr(settings, name)]
    if settings.choices is not None:
        # Features are scaled in questions as they are behind a prompt.
        asked = ["--choices", *(option for option in asked if option != "--scale")]
    elif settings.shots:
        raise SettingsError("--shots is a part of --choices, which is not asked for", hint="add --choices FILE")
    if asked and settings.graph is not None and settings.against is None:
        raise SettingsError(f"{asked[0]} is about no graph, so --graph changes nothing", hint="leave one of them out")
    further = [option for option, name in _FURTHER.items() if getattr(settings, name)]
    if len(asked) > 1 or (asked and further):
        one, other = (*asked, *further)[:2]
        raise SettingsError(
            f"{one} and {other} ask for two different tests", hint="leave one of them out, and run it by itself"
        )
    # Pins say so themselves, in their own words.
    if settings.at_least is not None and asked and asked != ["--pin"]:
        raise SettingsError(f"{asked[0]} gives no faithfulness for --at-least to judge", hint="leave one of them out")
    if settings.rival is not None and not settings.stability:
        raise SettingsError("--rival is a part of --stability, which is not asked for", hint="add --stability 20")
