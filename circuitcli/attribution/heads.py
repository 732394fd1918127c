"""The head of a graph: what is explained, how, and the metric with everything and with nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from circuitcli.attribution.panel import Panel
from circuitcli.attribution.subject import Subject, check_finite
from circuitcli.hookpoints import HookPoint
from circuitcli.models.loading import LanguageModel
from circuitcli.records import GraphRecord

# Alternatives that are named for a position at which prompts have several tokens.
_ALTERNATIVES = 3
# Most likely next tokens that are named.
_NEXT_TOKENS = 10


def head_of(
    panel: Panel,
    language_model: LanguageModel,
    *,
    name: str,
    method: str,
    baseline: str,
    model: str,
    dtype: str,
    digests: Mapping[HookPoint, str],
    **facts: Any,
) -> GraphRecord:
    """The head of a graph of these prompts. Raises InputError for metrics that are not finite.

    digests: of the coders by what they read. facts: whatever else the head is to tell.
    """
    clean, empty = panel.metric_clean(), panel.metric_empty()
    what = "this prompt" if panel.n_prompts == 1 else "these prompts"
    check_finite(clean, f"the metric of {what}")
    check_finite(empty, "the metric with every node at its baseline")
    subject, _ = panel.subject(0)
    writes = {str(hook): tuple(map(str, coder.writes)) for hook, coder in panel.coders.items() if coder.is_transcoder}
    return GraphRecord(
        name=name,
        method=method,
        metric=subject.metric.name,
        unit=subject.metric.unit,
        metric_clean=sum(clean) / len(clean),
        metric_baseline=sum(empty) / len(empty),
        dtype=dtype,
        baseline=baseline,
        positions=panel.positions.kind,
        model=model,
        saes={str(hook): digests[hook] for hook in panel.coders},
        writes=writes or None,
        **{
            "n_prompts": panel.n_prompts,
            "bos": subject.prompts[0].bos,
            "revision": language_model.revision,
            **_of_prompts(panel, language_model, subject),
            **facts,
        },
    )


def _of_prompts(panel: Panel, language_model: LanguageModel, subject: Subject) -> dict[str, Any]:
    """What the head tells of the prompts: of one all, of several what they have in common."""
    prompts, first, targets = panel.prompts, panel.prompts[0], subject.targets
    if panel.n_prompts == 1:
        names = language_model.tokenizer.token_strings([targets[0], *([] if first.foil is None else [first.foil])])
        return {
            "prompt": first.text,
            "tokens": first.tokens,
            "ids": first.ids,
            "n_positions": len(first.ids),
            "target": names[0],
            "target_id": targets[0],
            "foil": names[1] if first.foil is not None else None,
            "next_tokens": _next_tokens(subject, language_model),
            "span_names": tuple(name for name, _ in first.spans) or None,
        }
    is_alike = panel.positions.kind in ("all", "last") and len({len(prompt.ids) for prompt in prompts}) == 1
    columns = [_alternatives(tokens) for tokens in zip(*(p.tokens for p in prompts), strict=True)] if is_alike else None
    return {
        "prompt": first.text,
        "tokens": first.tokens if is_alike else (),
        "n_positions": len(first.ids) if is_alike else None,
        "columns": None if columns is None else tuple(columns),
        "span_names": tuple(name for name, _ in first.spans) or None,
    }


def _next_tokens(subject: Subject, language_model: LanguageModel) -> tuple[tuple[str, float], ...]:
    """What the unchanged model finds most likely to follow the prompt, with probabilities."""
    shares = subject.clean_logits(slice(-1, None))[0, 0].float().softmax(dim=-1)
    found = shares.topk(min(_NEXT_TOKENS, len(shares)))
    names = language_model.tokenizer.token_strings(found.indices.tolist())
    # Rounding can take the share of a certain token past 1.
    return tuple(zip(names, (min(share, 1.0) for share in found.values.tolist()), strict=True))


def _alternatives(tokens: Sequence[str]) -> tuple[str, ...]:
    """The tokens that are most frequent at a position."""
    return tuple(token for token, _ in Counter(tokens).most_common(_ALTERNATIVES))
