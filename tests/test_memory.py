"""How many rows run at once, and what happens where they are too many."""

import logging

import pytest
import torch
from subjects import mixed_subject, panel_of, random_baseline, random_subject

from circuitcli.attribution import memory
from circuitcli.attribution.ablation import live_sources
from circuitcli.attribution.exact import effects_of_panel
from circuitcli.attribution.memory import bytes_of_row, in_batches, rows_at_once
from circuitcli.attribution.metrics import MinusCrossEntropy
from circuitcli.attribution.subject import Subject
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.rules import applied
from circuitcli.models.taps import leaf
from circuitcli.settings.graph import GraphSettings
from circuitcli.validation.circuits import circuit_metric, kept_nodes

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(memory._Halvings, "count", 0)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_later_ones_begin_there(error, caplog):
    sizes = []

    def run(rows):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise error
        return sum(row * row for row in rows)

    rows = range(23)
    found = list(in_batches(rows, run, size=14))
    assert sum(found) == sum(row * row for row in rows) and len(found) == len([size for size in sizes if size <= 3])
    assert sizes[:3] == [14, 7, 3] and max(sizes[3:]) == 3
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2 and "with 14 rows" in told[0] and "going on with 3" in told[1]
    subject = random_subject(n=4)
    assert rows_at_once(subject, 0, backward=True, at_most=64) == 16
    assert rows_at_once(subject, 0, backward=True, at_most=2) == 1


def test_one_row_that_does_not_fit_and_other_errors_are_raised():
    for error, size in ((MemoryError(), 1), (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 8)):

        def run(rows, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            list(in_batches([1, 2, 3, 4], run, size=size))
        assert caught.value is error


def kept_for_backward(subject, start: int, method: str = "atp") -> int:
    """Bytes of all tensors that a pass from a block on keeps for its backward pass, each memory once."""
    sizes: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in subject.adapter.model.parameters()}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = max(value.numel() * value.element_size(), sizes.get(storage.data_ptr(), 0))
        return value

    hook = HookPoint(start, "resid_pre")
    packing = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
    with torch.enable_grad(), applied(subject.adapter, method), packing:
        value = subject.metric_of({hook: leaf}, start=start)
        assert value.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox-parallel", "gemma2"])
def test_the_estimate_for_a_row_covers_what_its_backward_pass_keeps(name):
    for n, start in ((5, 0), (5, 2), (60, 0)):
        subject = random_subject(name, n=n)
        for metric in (subject.metric, MinusCrossEntropy("cross-entropy", "nats", subject.clean.input_ids)):
            object.__setattr__(subject, "metric", metric)
            kept, estimate = kept_for_backward(subject, start), bytes_of_row(subject, start, backward=True)
            assert kept <= estimate <= 6 * kept


@pytest.mark.parametrize("method", ["relp", "gim"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_estimate_for_a_row_covers_the_patterns_that_a_rule_keeps(name, method):
    for n in (5, 60):
        subject = random_subject(name, n=n)
        estimate = bytes_of_row(subject, 0, backward=True, method=method)
        assert kept_for_backward(subject, 0, method) <= estimate <= 6 * kept_for_backward(subject, 0, method)
        assert estimate > bytes_of_row(subject, 0, backward=True, method="atp")


def test_rows_fall_with_tokens_logits_blocks_to_run_and_codes_and_never_below_one(monkeypatch):
    monkeypatch.setattr(memory, "BUDGET_BYTES", 2**20)
    short, long = random_subject(n=4), random_subject(n=16)
    at_end = rows_at_once(short, 2, backward=True, at_most=10**6)
    assert (
        at_end
        > rows_at_once(short, 0, backward=True, at_most=10**6)
        > rows_at_once(long, 0, backward=True, at_most=10**6)
    )
    assert rows_at_once(short, 0, backward=False, at_most=10**6) > rows_at_once(short, 0, backward=True, at_most=10**6)
    assert at_end > rows_at_once(short, 2, backward=True, codes=10**4, at_most=10**6)
    all_logits = random_subject(n=4, metric=MinusCrossEntropy("cross-entropy", "nats", short.clean.input_ids))
    assert at_end > rows_at_once(all_logits, 2, backward=True, at_most=10**6)
    assert rows_at_once(short, 2, backward=True, stop=3, at_most=10**6) > at_end
    assert rows_at_once(long, 0, backward=True, codes=10**9, at_most=64) == 1


def too_large_above(monkeypatch, size: int) -> list[int]:
    """Runs of more rows than this fail as on a full machine; gives the sizes of all runs."""
    seen, whole = [], Subject.run

    def run(subject, callbacks, **options):
        rows = subject.n_texts if options.get("texts") is None else len(options["texts"])
        seen.append(rows)
        if rows > size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return whole(subject, callbacks, **options)

    monkeypatch.setattr(Subject, "run", run)
    return seen


def everything(subject, baseline) -> list[torch.Tensor]:
    """Numbers of effects of all kinds, of ablations and of validation."""
    panel = panel_of(subject, baseline, positions="sum")
    found = []
    for settings in ({"method": "atp"}, {"ig_steps": 6}, {"method": "exact"}):
        effects = effects_of_panel(panel, GraphSettings(**settings))
        for hook in panel.hooks:
            targets = live_sources(panel, hook)[::9]
            found.append(torch.tensor([average.value for average in effects.averages(hook, targets)]))
    nodes = [NodeId(hook, 3, None) for hook in subject.coders]
    kept = [kept_nodes(subject, nodes[:count]) for count in range(3)]
    found.append(circuit_metric(subject, baseline, kept, batch_size=64).flatten())
    return found


def test_effects_ablations_and_validation_go_on_in_smaller_batches_with_the_same_numbers(monkeypatch, caplog):
    subject = mixed_subject("gpt2", "gaps", n_texts=3)
    baseline = random_baseline(subject)
    expected = everything(subject, baseline)
    caplog.clear()
    seen = too_large_above(monkeypatch, 4)
    fresh = mixed_subject("gpt2", "gaps", n_texts=3)
    for value, one in zip(everything(fresh, baseline), expected, strict=True):
        torch.testing.assert_close(value, one, rtol=1e-6, atol=1e-9)
    failed = [rows for rows in seen if rows > 4]
    told = [record for record in caplog.records if "out of memory with" in record.message]
    assert 0 < len(failed) == len(told) < 8
