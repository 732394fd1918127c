"""How much is trained on what: settings and the size of the cache turned into numbers. Needs no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.settings.settings import Settings
from circuitcli.training.architectures.descriptions import DESCRIPTIONS, CoderShape, Each
from circuitcli.training.schedule import LearningRateSchedule, default_rate

# A cache that is small beside train.eval_tokens gives at most this share of its rows away.
LARGEST_HELD_OUT_SHARE = 0.1
DEAD_TOKENS = 10_000_000
# Lines in metrics.jsonl of a long run, and looks at held-out tokens if the best weights are to be kept.
N_LINES, N_LOOKS = 250, 20
# More than a long run gains from, and fewer than processors are fast with.
MOST_IN_BATCH, LEAST_IN_BATCH = 4096, 512
FEWEST_STEPS = 512
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
    batch_size = train.batch_size or default_batch_size(train.tokens or stop_row)
    if stop_row < batch_size:
        raise InputError(
            f"{n_rows:,} cached tokens, {held_out:,} of them held out, make no batch of {batch_size:,}",
            hint="collect more, for example `circuit collect --force --tokens 100000`"
            + (f", or --set train.batch_size={stop_row}" if stop_row else ""),
        )
    n_steps = max(1, (train.tokens or stop_row) // batch_size)
    dead_tokens = train.dead_tokens or default_dead_tokens(n_steps * batch_size)
    return Plan(stop_row, n_rows, batch_size, n_steps, dead_tokens)


def default_batch_size(tokens: int) -> int:
    """4,096 tokens, and fewer in short runs: the power of two that gives them about 512 steps, 512 at least.

    A short run lacks steps, not tokens in them. Explained variance in batches of 4,096 and of 512, each at its default
    rate: of 65,536 tokens at the attention output and at the residual stream of a 135M model 0.652 and 0.752, 0.600 and
    0.722; of 65,536, 131,072 and 262,144 sums of 8 out of 768 planted features 0.44 and 0.80, 0.63 and 0.89, 0.86 and
    0.90.
    """
    wanted = max(1, tokens // FEWEST_STEPS)
    return max(LEAST_IN_BATCH, min(MOST_IN_BATCH, 1 << (wanted.bit_length() - 1)))


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


def pool_tokens(settings: Settings, *, row_bytes: int, batch_size: int) -> int:
    """Rows that are held in memory; one takes ``row_bytes`` over all hook points."""
    train = settings.train
    return train.pool_tokens or max(2 * batch_size, min(POOL_TOKENS, POOL_BYTES // row_bytes))


def width(settings: Settings, *, d_in: int) -> int:
    """Features of an SAE for activations of this width. Raises SettingsError if ``sae.k`` is more."""
    d_sae = settings.sae.d_sae or max(1, round(settings.sae.expansion * d_in))
    if settings.sae.k > d_sae and DESCRIPTIONS[settings.sae.architecture].needs_k:
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


END_TO_END, JOINT = "end-to-end", "joint"


def hook_groups(architecture: str, hooks: Sequence[HookPoint]) -> list[tuple[HookPoint, ...]]:
    """What is trained on these hook points: the hook points of all coders that learn together, for each such group.

    Raises SettingsError if there is nothing that the architecture could be trained on.
    """
    return DESCRIPTIONS[architecture].layout.groups(architecture, hooks)


def coder_shapes(architecture: str, group: tuple[HookPoint, ...]) -> tuple[CoderShape, ...]:
    """The coders that are trained on a group of hook points."""
    return DESCRIPTIONS[architecture].layout.coders(group)


def read_hooks(architectures: Iterable[str], hooks: Sequence[HookPoint]) -> frozenset[HookPoint]:
    """All of these hook points that coders of these architectures are trained on. Raises as `hook_groups`."""
    return frozenset(hook for name in architectures for group in hook_groups(name, hooks) for hook in group)


def check_objective(settings: Settings) -> None:
    """Raise SettingsError if SAEs of this architecture cannot learn end to end, or a setting has no effect."""
    if settings.train.objective == END_TO_END:
        if not DESCRIPTIONS[settings.sae.architecture].can_end_to_end:
            raise SettingsError(
                f"sae.architecture={settings.sae.architecture} has no end-to-end objective",
                hint="use --set train.objective=local, or another architecture",
            )
        if settings.train.keep == "best":
            raise SettingsError(
                "train.keep=best compares losses at the hook point, which are not what end-to-end training lowers",
                hint="use --set train.keep=last, or --set train.objective=local",
            )
        return
    if settings.train.objective == JOINT:
        _check_joint(settings)
    if settings.train.downstream_weight:
        raise SettingsError(
            f"train.downstream_weight has no effect on {settings.train.objective} training",
            hint="use --set train.objective=end-to-end",
        )


def _check_joint(settings: Settings) -> None:
    about = DESCRIPTIONS[settings.sae.architecture]
    if about.finished_as != settings.sae.architecture or type(about.layout) is not Each:
        raise SettingsError(
            f"sae.architecture={settings.sae.architecture} does not learn together with the model",
            hint="use relu, gated, topk or jumprelu, or --set train.objective=local",
        )
    for name, usual in (("keep", "last"), ("sweep", ())):
        if (value := getattr(settings.train, name)) != usual:
            raise SettingsError(
                f"train.{name}={value} does not go with train.objective=joint: there is one model, which changes",
                hint=f"leave train.{name} out",
            )
