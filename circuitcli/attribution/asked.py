"""The prompts that the settings ask for: one, or those of a file. Needs no torch."""

from circuitcli.attribution.examples import Example, LeftOut, Written
from circuitcli.attribution.prompt_files import read_examples
from circuitcli.errors import InputError, SettingsError
from circuitcli.models.chat import Conversation
from circuitcli.settings.graph import GraphSettings

# What a single prompt has in settings of its own, and each prompt of a file in its own fields.
_OF_ONE = (
    ("--prompt", "prompt"),
    ("--prompt-ids", "prompt_ids"),
    ("--target", "target"),
    ("--foil", "foil"),
    ("--counterfactual", "counterfactual"),
    ("graph.counterfactual_ids", "counterfactual_ids"),
)


def asked_prompt(settings: GraphSettings) -> Written | None:
    """The prompt that the settings name, None for none. Raises SettingsError if they name two."""
    return _asked(settings, "prompt")


def asked_counterfactual(settings: GraphSettings) -> Written | None:
    """The other prompt, likewise."""
    return _asked(settings, "counterfactual")


def _asked(settings: GraphSettings, name: str) -> Written | None:
    text, ids = getattr(settings, name), getattr(settings, f"{name}_ids")
    if text is not None and ids is not None:
        raise SettingsError(f"graph.{name} and graph.{name}_ids are both set", hint="leave one of them out")
    if ids is not None and settings.chat:
        raise SettingsError(
            f"graph.chat needs a text, but graph.{name}_ids are token ids", hint="leave out --chat, or give a text"
        )
    if ids is not None:
        return tuple(ids)
    return Conversation.of_user(text) if settings.chat and text is not None else text


def check_prompts(settings: GraphSettings, path: str | None) -> None:
    """Raise SettingsError for a file of prompts beside what only a single prompt has, for what only a file has, and
    InputError for an empty prompt."""
    given = [option for option, name in _OF_ONE if getattr(settings, name) is not None]
    for option, name in _OF_ONE:
        if getattr(settings, name) in ("", ()):
            raise InputError(f"the {name.partition('_')[0]} is empty", hint=f"give some text with {option}")
    if path is not None and given:
        raise SettingsError(
            f"--prompts names a file of prompts, but {given[0]} is about a single one",
            hint="leave one of them out; each prompt of a file has its own target, foil and counterfactual",
        )
    if path is None and settings.n_prompts is not None:
        raise SettingsError("--n-prompts needs a file of prompts, but no file is named", hint="add --prompts FILE")


def asked_example(settings: GraphSettings) -> Example | None:
    """The single prompt in the settings, None for none. Raises SettingsError if they name two."""
    written = asked_prompt(settings)
    if written is None:
        return None
    ids = settings.prompt_ids
    shown = settings.prompt if settings.prompt is not None else " ".join(map(str, ids or ()))
    example = Example(shown, settings.target, settings.foil, ids=ids, counterfactual=asked_counterfactual(settings))
    return example.with_chat(settings.chat)


def asked_examples(
    settings: GraphSettings, *, path: str | None = None, left_out: LeftOut | None = None
) -> tuple[Example, ...] | None:
    """The prompts that the settings ask for, None for none: then a command is about the run's own text.

    path: a file of prompts that takes the place of that in the settings. left_out: takes what is wrong with single
    prompts of it; without it the first is raised. Raises SettingsError for what does not go together, InputError for a
    file without prompts.
    """
    file = path or settings.prompts
    check_prompts(settings, file)
    if file is not None:
        return read_examples(file, chat=settings.chat, left_out=left_out)
    example = asked_example(settings)
    return None if example is None else (example,)
