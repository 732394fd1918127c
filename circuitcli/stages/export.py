"""``circuit export``: SAEs in the files of another library, or in our own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint, check_site, parse_slice
from circuitcli.reading import as_path
from circuitcli.records import ActivationsRecord, ExportRecord, Record
from circuitcli.runs import write_error
from circuitcli.saes.exchange import sparsify, target
from circuitcli.saes.exchange.formats import WRITABLE
from circuitcli.stages.request import Request
from circuitcli.stages.saes import SaeSource, load_sae, sae_sources

if TYPE_CHECKING:
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.saes.exchange.tensors import Foreign

NAME = "export"
# Of more blocks than any model has: of SAEs from elsewhere nothing tells how many theirs has.
_LAYERS = 4096


@dataclass(frozen=True)
class Choice:
    """Which SAEs are exported: those at blocks, a slice, and sites; all where neither is said."""

    layers: str | None = None
    sites: tuple[str, ...] = ()

    @classmethod
    def of(cls, layers: str | None, sites: Iterable[str] | None) -> "Choice":
        """What options say. Raises SettingsError for what is no slice of layers, or no site."""
        if layers is not None:
            parse_slice(layers)
        named = tuple(part for text in sites or () for part in text.replace(",", " ").split())
        for site in named:
            check_site(site)
        return cls(layers, named)

    def numbers(self, n_layers: int = _LAYERS) -> list[int]:
        """The layers that are named; none where all are meant."""
        return [] if self.layers is None else list(range(n_layers)[parse_slice(self.layers)])

    def among(self, sources: Mapping[HookPoint, SaeSource]) -> dict[HookPoint, SaeSource]:
        """The chosen ones; negative layers count from the last that there is. Raises InputError if none is chosen."""
        n_layers = max(hook.layer for hook in sources) + 1
        layers = None if self.layers is None else set(self.numbers(n_layers))
        found = {
            hook: source
            for hook, source in sources.items()
            if (layers is None or hook.layer in layers) and (not self.sites or hook.site in self.sites)
        }
        if not found:
            raise InputError(
                f"no SAE at layers {self.layers or ':'}, sites {' '.join(self.sites) or 'any'}",
                hint=f"there are SAEs at {' '.join(map(str, sources))}",
            )
        return found


def run(request: Request, *, format_: str | None, output: str | None, choice: Choice | None = None) -> list[Record]:
    """One record for each SAE that was written: those of ``sae_path``, else the run's own, as far as they are chosen.

    Raises SettingsError without a format or a directory, InputError for SAEs that the format cannot hold, and for a
    directory that holds something, unless ``force`` is set.
    """
    format_, directory = wanted(format_, output)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file", hint="name a directory with -o")
    try:
        target.sweep(directory)
    except OSError as error:
        raise write_error(directory, error) from None
    if directory.is_dir() and not request.force and not target.is_empty(directory):
        raise InputError(f"{directory} exists already and is not empty", hint="use --force to write into it")
    choice = choice or Choice()
    sources = choice.among(sae_sources(request, stage=NAME, layers=choice.numbers()))
    items = [_completed(request, load_sae(source), source) for source in sources.values()]
    if format_ == sparsify.NAME:
        items = _with_modules(request, items)
    try:
        paths = target.filled(directory, partial(WRITABLE[format_].write, items))
    except OSError as error:
        raise write_error(directory, error) from None
    return [
        ExportRecord(hook=str(hook), format=format_, path=str(path.absolute()))
        for hook, path in zip(sources, paths, strict=True)
    ]


def wanted(format_: str | None, output: str | None) -> tuple[str, Path]:
    """The format and the directory that are named. Raises SettingsError if one is not, or is none."""
    if format_ is None or format_ not in WRITABLE:
        what = f"'{format_}' is not a format that can be written" if format_ else "no format is given"
        raise SettingsError(f"export: {what}", hint=f"add --to {'|'.join(WRITABLE)}")
    if not output:
        raise SettingsError("export: no directory is named", hint="add -o DIR")
    return format_, as_path(output, error=SettingsError)


def _completed(request: Request, found: "Foreign", source: SaeSource) -> "Foreign":
    """With what the run tells of its own SAEs: model, text, length of a context, BOS."""
    if not source.is_own:
        return found
    entry = request.run.stage("collect")
    # Where no length was set, the one that was taken.
    settings = {"data.block_length": entry.get("block_length")} | {
        name: value for name, value in entry.get("settings", {}).items() if value is not None
    }
    cache = _cache(request, found.sae.hook)
    about = replace(
        found.about,
        model=found.about.model or request.settings.model.name,
        context_length=found.about.context_length or _context_length(settings, cache),
        dataset=found.about.dataset or settings.get("data.text"),
        bos=cache.bos_id is not None if found.about.bos is None and cache is not None else found.about.bos,
    )
    return found._replace(about=about)


def _cache(request: Request, hook: HookPoint) -> "ActivationCache | None":
    """The run's cache at a hook point; None where there is none."""
    from circuitcli.activations.cache import ActivationCache
    from circuitcli.stages.fitting import FOLDER

    is_there = str(hook) in {record.hook for record in request.records.of(ActivationsRecord)}
    return ActivationCache(request.run.path / FOLDER, [hook]) if is_there else None


def _context_length(settings: Mapping[str, Any], cache: "ActivationCache | None") -> int | None:
    """What was collected in blocks of a length; contexts that another tool cached have a length of their own."""
    if settings.get("data.activations") is None or cache is None:
        return settings.get("data.block_length")
    return len(next(cache.blocks(0, cache.n_tokens)).ids)


def _with_modules(request: Request, items: "list[Foreign]") -> "list[Foreign]":
    """With the paths of the modules, which sparsify names folders for; they depend on the model."""
    from circuitcli.models.loading import load_outline
    from circuitcli.saes.exchange.hooks import to_module

    layout = load_outline(request.settings.model).layout
    return [item._replace(about=replace(item.about, module=to_module(item.sae.target, layout))) for item in items]
