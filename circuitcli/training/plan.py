"""How much is trained on what: settings and the size of the cache turned into numbers. Needs no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.training.schedule import LearningRateSchedule, default_rate

# A cache that is small beside train.eval_tokens gives at most this share of its rows away.
LARGEST_HELD_OUT_SHARE = 0.1
DEAD_TOKENS = 10_000_000
# Lines in metrics.jsonl of a long run, and looks at held-out tokens if the best weights are to be kept.
N_LINES, N_LOOKS = 250, 20
# What is shuffled together mixes well enough, and takes no more memory whatever the number of hook points.
POOL_TOKENS, POOL_BYTES = 262_144, 2 * 2**30


@dataclass(frozen=True)
class Plan:
    """Rows 0 to ``stop_row`` of the cache are trained on, the rest is held out."""

    stop_row: int
    n_rows: int
    batch_size: int
    n_steps: int
    dead_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens that training sees, counted as often as it sees them."""
        return self.n_steps * self.batch_size

    @property
    def held_out(self) -> int:
        """Rows that training does not see."""
        return self.n_rows - self.stop_row

    @property
    def held_out_rows(self) -> range:
        """The rows that training does not see: the last ones."""
        return range(self.stop_row, self.n_rows)


def training_plan(settings: Settings, *, n_rows: int) -> Plan:
    """The plan for a cache of so many rows. Raises InputError if they make no batch."""
    train = settings.train
    held_out = n_held_out(settings, n_rows=n_rows)
    stop_row = n_rows - held_out
    if stop_row < train.batch_size:
        raise InputError(
            f"{n_rows:,} cached tokens, {held_out:,} of them held out, make no batch of {train.batch_size:,}",
            hint="collect more, for example `circuit collect --force --tokens 100000`"
            + (f", or --set train.batch_size={stop_row}" if stop_row else ""),
        )
    n_steps = max(1, (train.tokens or stop_row) // train.batch_size)
    dead_tokens = train.dead_tokens or default_dead_tokens(n_steps * train.batch_size)
    return Plan(stop_row, n_rows, train.batch_size, n_steps, dead_tokens)


def n_held_out(settings: Settings, *, n_rows: int) -> int:
    """Rows of a cache that finished SAEs are measured on."""
    return max(1, min(settings.train.eval_tokens, int(n_rows * LARGEST_HELD_OUT_SHARE)))


def default_dead_tokens(tokens: int) -> int:
    """A tenth of the run, at most the 10 million of Gao et al. 2024: a window longer than the run finds nothing."""
    return max(1, min(DEAD_TOKENS, tokens // 10))


def line_steps(n_steps: int) -> int:
    """Steps between two lines of metrics."""
    return max(1, n_steps // N_LINES)


def look_steps(n_steps: int) -> int:
    """Steps between two looks at held-out tokens; after each there is a line of metrics."""
    each = line_steps(n_steps)
    return each * -(-n_steps // (each * N_LOOKS))


def pool_tokens(settings: Settings, *, row_bytes: int) -> int:
    """Rows that are held in memory; one takes ``row_bytes`` over all hook points."""
    train = settings.train
    return train.pool_tokens or max(2 * train.batch_size, min(POOL_TOKENS, POOL_BYTES // row_bytes))


def width(settings: Settings, *, d_in: int) -> int:
    """Features of an SAE for activations of this width. Raises SettingsError if ``sae.k`` is more."""
    d_sae = settings.sae.d_sae or max(1, round(settings.sae.expansion * d_in))
    if settings.sae.k > d_sae and settings.sae.architecture not in WITHOUT_K:
        raise SettingsError(
            f"sae.k={settings.sae.k} is more than the {d_sae} features that sae.d_sae or sae.expansion asks for",
            hint=f"lower sae.k to at most {d_sae}, or raise sae.d_sae or sae.expansion",
        )
    return d_sae


def schedule(settings: Settings, plan: Plan, *, d_sae: int) -> LearningRateSchedule:
    """The learning rate over the run."""
    train = settings.train
    peak = train.learning_rate or default_rate(d_sae, n_steps=plan.n_steps)
    return LearningRateSchedule(peak, plan.n_steps, train.warmup, train.decay)


# Architectures whose penalty is on all positive pre-activations: they choose no k of them.
WITHOUT_K = ("relu", "gated")
# Architectures on two hook points of a block.
PAIRS = {
    "transcoder": ("mlp_in", "mlp"),
    "skip-transcoder": ("mlp_in", "mlp"),
    "jacobian": ("mlp_in", "mlp"),
    "jacobian-block": ("resid_mid", "resid"),
}
JACOBIANS = ("jacobian", "jacobian-block")
STAIRCASES = ("staircase", "staircase-detach")
END_TO_END = "end-to-end"
# Their losses are of several reconstructions, of which only one can stand in the model.
NOT_END_TO_END = ("matryoshka", *STAIRCASES, *JACOBIANS)


def hook_groups(architecture: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
    """What is trained on these hook points: for each SAE what it reads, and what it predicts if that is another; for
    each staircase the layers of its site; both ends of each pair.

    Raises SettingsError if there is nothing that the architecture could be trained on.
    """
    if architecture in STAIRCASES:
        return _staircases(architecture, hooks)
    if architecture not in PAIRS:
        return [(hook,) for hook in hooks]
    first, second = PAIRS[architecture]
    pairs: list[tuple[HookPoint, ...]] = [
        (HookPoint(layer, first), HookPoint(layer, second)) for layer in sorted({hook.layer for hook in hooks})
    ]
    complete = [pair for pair in pairs if set(pair) <= set(hooks)]
    if not complete:
        raise SettingsError(
            f"sae.architecture={architecture} is trained on {first} and {second}; the run has no layer with both",
            hint=f"collect them: `circuit collect --sites {first},{second}`",
        )
    return complete


def read_hooks(architectures: Iterable[str], hooks: Sequence[HookPoint]) -> frozenset[HookPoint]:
    """All of these hook points that SAEs of these architectures are trained on. Raises as `hook_groups`."""
    return frozenset(hook for name in architectures for group in hook_groups(name, hooks) for hook in group)


def sae_widths(settings: Settings, n_hooks: int, *, d_in: int) -> tuple[int, ...]:
    """Features of each SAE that is trained on a group of so many hook points."""
    one, architecture = width(settings, d_in=d_in), settings.sae.architecture
    if architecture in STAIRCASES:
        return tuple(one * (step + 1) for step in range(n_hooks))
    return (one, one) if architecture in JACOBIANS else (one,)


def check_objective(settings: Settings) -> None:
    """Raise SettingsError if SAEs of this architecture cannot learn end to end, or a setting has no effect."""
    if settings.train.objective == END_TO_END:
        if settings.sae.architecture in NOT_END_TO_END:
            raise SettingsError(
                f"sae.architecture={settings.sae.architecture} has no end-to-end objective",
                hint="use --set train.objective=local, or another architecture",
            )
        if settings.train.keep == "best":
            raise SettingsError(
                "train.keep=best compares losses at the hook point, which are not what end-to-end training lowers",
                hint="use --set train.keep=last, or --set train.objective=local",
            )
    elif settings.train.downstream_weight:
        raise SettingsError(
            "train.downstream_weight has no effect on local training", hint="use --set train.objective=end-to-end"
        )


def _staircases(architecture: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
    """The collected layers of each site, from below; a site of one layer has a staircase of one step."""
    sites = {hook.site: sorted(other for other in hooks if other.site == hook.site) for hook in hooks}
    if all(len(layers) == 1 for layers in sites.values()):
        raise SettingsError(
            f"sae.architecture={architecture} shares features between layers; the run has one layer",
            hint="collect more: `circuit collect --layers :`",
        )
    return [tuple(layers) for layers in sites.values()]
