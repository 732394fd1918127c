"""How a language model learned: what metrics.jsonl of `circuit pretrain` says, as a row of small plots over tokens."""

from collections.abc import Sequence

from circuitcli.render.curves import TOKENS
from circuitcli.render.plots import Axis, Panel, Plot, Series
from circuitcli.training.log import Numbers

# What is drawn beside the loss, left to right: the number's name, the title, and the axis.
_OTHERS = (
    ("learning_rate", "learning rate", Axis("step size", from_zero=True)),
    ("gradient_norm", "gradient", Axis("norm before clipping", "auto", from_zero=True)),
    ("tokens_per_s", "speed", Axis("tokens per second", from_zero=True, is_count=True)),
)


def plot_model(lines: Sequence[Numbers], *, title: str) -> Plot:
    """The loss of batches and of held-out text in nats, the rate, the gradient and the speed."""
    losses = [_series(lines, "loss", "batches"), _series(lines, "validation_loss", "held out")]
    nats = Axis("nats per token", "auto")
    panels = [Panel([one for one in losses if one.x], TOKENS, nats, "loss")]
    panels += [Panel([_series(lines, name, "")], TOKENS, axis, heading) for name, heading, axis in _OTHERS]
    return Plot([panels], title=title)


def _series(lines: Sequence[Numbers], name: str, label: str) -> Series:
    chosen = [line for line in lines if name in line]
    return Series([line["tokens"] for line in chosen], [line[name] for line in chosen], label)
