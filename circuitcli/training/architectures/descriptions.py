"""What is to be known of each architecture before anything is trained. Needs no torch.

Whoever adds an architecture names it, and what it alone can be set to, in `settings.sae`, describes it here, and writes
the module that trains it. Nothing else knows architectures by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint


@dataclass(frozen=True)
class CoderShape:
    """What one coder reads and writes; it has ``width`` times the features that ``sae.d_sae`` asks for."""

    reads: tuple[HookPoint, ...]
    writes: tuple[HookPoint, ...]
    width: int = 1


class Layout(ABC):
    """On which hook points an architecture is trained, and what is trained together."""

    @abstractmethod
    def groups(self, name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
        """The hook points of all that learns together, for each such group of the collected ones.

        Raises SettingsError if there is nothing that the architecture of this name could be trained on.
        """

    @abstractmethod
    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """The coders that are trained on one of these groups."""


class Each(Layout):
    """An SAE at each hook point."""

    def groups(self, name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
        """See `Layout`."""
        return [(hook,) for hook in hooks]

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        return (CoderShape(group, group),)


@dataclass(frozen=True)
class Pairs(Layout):
    """Two sites of each layer that has both: what is read and what is written."""

    first: str
    second: str

    def groups(self, name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
        """See `Layout`."""
        pairs = [(HookPoint(layer, self.first), HookPoint(layer, self.second)) for layer in layers_of(hooks)]
        complete: list[tuple[HookPoint, ...]] = [pair for pair in pairs if set(pair) <= set(hooks)]
        if not complete:
            raise SettingsError(
                f"sae.architecture={name} is trained on {self.first} and {self.second}; the run has no layer with both",
                hint=f"collect them: `circuit collect --sites {self.first},{self.second}`",
            )
        return complete

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        return (CoderShape(group[:1], group[1:]),)


@dataclass(frozen=True)
class Ends(Pairs):
    """Two sites of each layer that has both, with an SAE at either."""

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        return tuple(CoderShape((hook,), (hook,)) for hook in group)


@dataclass(frozen=True)
class Staircase(Layout):
    """The collected layers of each site, from below: each SAE has the features of those before it, and more.

    A site of one layer has a staircase of one step. Inputs of blocks that are outputs of none that was collected stand
    below the outputs, as one stream: resid_pre.0, resid.0, resid.1. grows: whether a layer has more features than the
    one below.
    """

    grows: bool = True

    def groups(self, name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
        """See `Layout`."""
        inputs = [hook for hook in hooks if hook.site == "resid_pre"]
        outputs = [hook for hook in hooks if hook.site == "resid"]
        if not inputs or not outputs or any(HookPoint(hook.layer + 1, "resid_pre") in inputs for hook in outputs):
            return layers_of_sites(name, hooks)
        others = [hook for hook in hooks if hook not in inputs]
        stream = tuple(sorted((*inputs, *outputs)))
        rest = [] if len(others) == len(outputs) else layers_of_sites(name, others)
        return [stream, *(group for group in rest if group[0].site != "resid")]

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        return tuple(CoderShape((hook,), (hook,), width) for width, hook in zip(self.widths(group), group, strict=True))

    def widths(self, group: tuple[HookPoint, ...]) -> tuple[int, ...]:
        """How many times ``sae.d_sae`` the features of each are."""
        return tuple(range(1, len(group) + 1)) if self.grows else (1,) * len(group)


@dataclass(frozen=True)
class Stairs(Pairs):
    """Two sites of each layer that has both, the second with more features than the first."""

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        return tuple(CoderShape((hook,), (hook,), width) for width, hook in enumerate(group, 1))


@dataclass(frozen=True)
class CrossLayer(Layout):
    """Two sites of all collected layers: what is read in a layer, and what is written in it and in all above it."""

    first: str = "mlp_in"
    second: str = "mlp"

    def groups(self, name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
        """See `Layout`. There must be at least two layers, without a gap, and both sites of each."""
        layers = layers_of([hook for hook in hooks if hook.site in (self.first, self.second)])
        if len(layers) < 2:
            raise SettingsError(
                f"sae.architecture={name} is trained on {self.first} and {self.second} of several layers; "
                f"the run has {'one layer' if layers else 'none'} of them",
                hint=f"collect more: `circuit collect --sites {self.first},{self.second} --layers :`",
            )
        span = range(layers[0], layers[-1] + 1)
        group = [HookPoint(layer, site) for site in (self.first, self.second) for layer in span]
        if missing := [hook for hook in group if hook not in hooks]:
            raise SettingsError(
                f"sae.architecture={name} needs {self.first} and {self.second} of all layers from {span[0]} to "
                f"{span[-1]}; the run lacks {' '.join(map(str, missing))}",
                hint=f"`circuit collect --sites {self.first},{self.second} --layers {span.start}:{span.stop} --force`",
            )
        return [tuple(group)]

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        reads, writes = group[: len(group) // 2], group[len(group) // 2 :]
        return tuple(CoderShape((hook,), writes[number:]) for number, hook in enumerate(reads))


class SameSite(Layout):
    """The collected layers of each site that has several, read and written by one coder."""

    def groups(self, name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
        """See `Layout`."""
        return [layers for layers in layers_of_sites(name, hooks) if len(layers) > 1]

    def coders(self, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
        """See `Layout`."""
        return (CoderShape(group, group),)


def layers_of(hooks: Sequence[HookPoint]) -> list[int]:
    """The layers of some hook points, from below."""
    return sorted({hook.layer for hook in hooks})


def layers_of_sites(name: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
    """The layers of each site, from below. Raises SettingsError if no site has more than one."""
    sites = {hook.site: tuple(sorted(other for other in hooks if other.site == hook.site)) for hook in hooks}
    if all(len(layers) == 1 for layers in sites.values()):
        raise SettingsError(
            f"sae.architecture={name} shares features between layers; the run has one layer",
            hint="collect more: `circuit collect --layers :`",
        )
    return list(sites.values())


@dataclass(frozen=True)
class Description:
    """An architecture.

    module: of `training.architectures`, whose ``build`` makes the untrained coders. settings: those of ``sae.`` that it
    reads beside its width. is_dense: whether codes are as many as the features while it learns. can_end_to_end: whether
    one reconstruction can stand in the model while it learns. needs_mlp: whether it learns from the weights of what
    lies between its hook points. has_skip: whether its coders have one. finished_as: the architecture of its coders
    once they have learned.
    """

    module: str
    settings: frozenset[str] = frozenset({"k"})
    layout: Layout = field(default_factory=Each)
    is_dense: bool = False
    can_end_to_end: bool = True
    needs_mlp: bool = False
    has_skip: bool = False
    finished_as: str = "topk"

    @property
    def needs_k(self) -> bool:
        """Whether ``sae.k`` says how many features are active."""
        return "k" in self.settings


_MLP = ("mlp_in", "mlp")
_L1 = frozenset({"l1_weight"})
_JACOBIAN = frozenset({"k", "jacobian_weight"})

DESCRIPTIONS: dict[str, Description] = {
    "relu": Description("relu", _L1, is_dense=True, finished_as="relu"),
    "gated": Description("gated", _L1, is_dense=True, finished_as="gated"),
    "topk": Description("topk"),
    "batchtopk": Description("batchtopk", finished_as="jumprelu"),
    # Its loss is of several reconstructions, of which only one could stand in the model; so are those of SAEs that
    # learn together.
    "matryoshka": Description("matryoshka", frozenset({"k", "prefixes"}), can_end_to_end=False, finished_as="jumprelu"),
    "jumprelu": Description(
        "jumprelu", frozenset({"k", "l0_weight", "bandwidth"}), is_dense=True, finished_as="jumprelu"
    ),
    "transcoder": Description("topk", layout=Pairs(*_MLP)),
    "skip-transcoder": Description("topk", layout=Pairs(*_MLP), has_skip=True),
    "clt": Description("clt", layout=CrossLayer(), can_end_to_end=False, finished_as="jumprelu"),
    "crosscoder": Description("crosscoder", layout=SameSite(), can_end_to_end=False, finished_as="crosscoder"),
    "staircase": Description("staircase", layout=Staircase(), can_end_to_end=False),
    "staircase-detach": Description("staircase", layout=Staircase(), can_end_to_end=False),
    "staircase-untied": Description("apart", layout=Staircase(), can_end_to_end=False),
    "staircase-block": Description("staircase", layout=Stairs("resid_mid", "resid"), can_end_to_end=False),
    "topk-tied": Description("staircase", layout=Staircase(grows=False), can_end_to_end=False),
    "jacobian": Description("jacobian", _JACOBIAN, Ends(*_MLP), can_end_to_end=False, needs_mlp=True),
    "jacobian-block": Description(
        "jacobian", _JACOBIAN, Ends("resid_mid", "resid"), can_end_to_end=False, needs_mlp=True
    ),
}
