"""Choices in Python source: every one has prompts that graphs can be made of."""

import pytest
import torch
from planted.python_tasks import TASKS, lines

from circuitcli.attribution.prompt_files import read_examples
from circuitcli.attribution.prompts import Needs, encode_example
from circuitcli.models.loading import LanguageModel, load_model
from circuitcli.settings.model import ModelSettings

N = 16


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load_model(ModelSettings(name="builtin:tiny"))


def test_there_are_twenty_tasks_of_different_names():
    assert len({task.name for task in TASKS}) == len(TASKS) == 20


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_prompt_of_a_task_has_one_target_one_foil_and_a_counterfactual_as_long(task, tiny, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines(task, tiny.tokenizer, N)))
    examples = read_examples(str(path))
    needs = Needs(foil=True, counterfactual=True)
    prompts = [encode_example(example, tiny.tokenizer, tiny.adapter, needs=needs) for example in examples]
    assert len({prompt.ids for prompt in prompts}) == N
    # Half of them begin with the other text, so that who always says the same is right half the time.
    assert all(prompt.target != prompt.foil and prompt.counterfactual != prompt.ids for prompt in prompts)
    ids = torch.tensor([prompt.ids for prompt in prompts])
    others = torch.tensor([prompt.counterfactual for prompt in prompts])
    with torch.no_grad():
        clean, other = (tiny.adapter.logits(rows)[:, -1] for rows in (ids, others))
    rows = torch.arange(N)
    targets, foils = (torch.tensor([getattr(prompt, name) for prompt in prompts]) for name in ("target", "foil"))
    right = (clean[rows, targets] > clean[rows, foils]).float().mean()
    turned = (clean - other)[rows, targets] > (clean - other)[rows, foils]
    assert right >= 0.7, "the built-in model cannot do this"
    assert turned.float().mean() >= 0.8, "what differs does not decide"


def test_prompts_are_the_same_for_the_same_seed_and_others_for_another(tiny):
    one, same, other = (list(lines(TASKS[0], tiny.tokenizer, N, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other
