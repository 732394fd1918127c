"""The check of hook points on a few tokens: it finds what is wrong, in every number type, and nothing that is right."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import FAMILIES, hf_model
from zoo import zoo_model

import circuitcli
from circuitcli.errors import InputError, SettingsError
from circuitcli.hookpoints import SITES, HookPoint
from circuitcli.models import checking
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.partial import clean_pass, expanded, growing_axes
from circuitcli.models.taps import keep, tapped
from circuitcli.models.verdicts import Tolerance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def refused(adapter: ModelAdapter) -> set[str]:
    """Sites that some block does not offer although its layout has them."""
    assert all(layer < adapter.n_layers for layer in (hook.layer for hook in adapter.findings.refused))
    return {hook.site for hook in adapter.findings.refused}


def misplaced(family: str, *, dtype: torch.dtype = torch.float32, **changes) -> ModelAdapter:
    """The checked adapter of a known family whose layout names other modules."""
    adapter = ModelAdapter.of(hf_model(family, dtype=dtype))
    return checking.checked(ModelAdapter(adapter.model, [replace(adapter.layout, **changes)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_known_families_are_right_in_every_number_type(family, dtype):
    adapter = checking.adapter_of(hf_model(family, dtype=DTYPES[dtype]))
    assert not adapter.findings.refused and not adapter.findings.edited and adapter.findings.logit_scale == 1.0
    assert adapter.layout.is_parallel == ModelAdapter.of(adapter.model).layout.is_parallel


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["bloom", "falcon-7b", "granite", "olmo2", "opt", "qwen3_moe", "cohere", "gpt_oss"])
def test_guesses_from_rounded_numbers_are_those_from_exact_ones(name, dtype):
    exact, rounded = (checking.adapter_of(zoo_model(name, dtype=kind)) for kind in (torch.float64, DTYPES[dtype]))
    assert rounded.layouts == exact.layouts
    assert replace(rounded.findings, refused={}) == replace(exact.findings, refused={})
    assert not rounded.findings.refused


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "changes", "wrong"),
    [
        ("gemma2", {"attn_out": "self_attn"}, {"attn", "resid_mid", "mlp"}),
        ("gemma2", {"mlp_out": "mlp"}, {"mlp"}),
        ("llama", {"attn_scale": 0.5}, {"attn", "resid_mid", "mlp"}),
        ("llama", {"mlp_scale": 2.0}, {"mlp"}),
        ("llama", {"feed_forward": "mlp.down_proj"}, {"mlp_in"}),
        ("gpt2", {"attention": "ln_1"}, {"attn_in"}),
        ("gpt2", {"feed_forward": "ln_2"}, {"mlp_in"}),
        ("neox-parallel", {"attn_out": "mlp"}, {"attn", "mlp"}),
        # The norm of a block without another for its MLP: both would be changed.
        ("neox-parallel", {"feed_forward": "input_layernorm"}, {"mlp_in"}),
    ],
    # Sets print in another order in each process.
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_wrong_places_are_found_and_those_that_stay_right_are_offered(family, changes, wrong, dtype):
    adapter = misplaced(family, dtype=DTYPES[dtype], **changes)
    assert wrong <= refused(adapter) <= wrong | {"attn_in", "mlp_in"}
    assert all(adapter.offers(HookPoint(layer, site)) for layer in range(3) for site in ("resid_pre", "resid"))
    hook = HookPoint(2, min(wrong))
    with pytest.raises(SettingsError, match=rf"^{hook} is not offered for model type") as caught:
        adapter.check(hook)
    assert "--sites resid" in caught.value.hint
    with pytest.raises(SettingsError), tapped(adapter, {hook: lambda x: None}):
        pass


@pytest.mark.parametrize("family", ["neox-parallel", "neox-sequential"])
def test_whether_the_mlp_reads_past_attention_is_measured(family):
    adapter = misplaced(family, is_parallel=family != "neox-parallel")
    assert adapter.layout.is_parallel == (family == "neox-parallel") and not adapter.findings.refused


def test_what_the_model_changes_in_place_is_kept_as_it_passed():
    adapter = checking.adapter_of(zoo_model("falcon-7b"))
    assert adapter.findings.edited == {"mlp"}
    hook, ids, own, kept = HookPoint(1, "mlp"), torch.tensor([[5, 6, 7]]), [], {}
    handle = adapter.blocks[1].mlp.register_forward_hook(lambda module, args, output: own.append(output.clone()))
    with torch.no_grad(), tapped(adapter, {hook: keep(kept, hook)}):
        adapter.logits(ids)
    handle.remove()
    assert torch.equal(kept[hook], own[0])
    assert torch.equal(clean_pass(adapter, ids, (hook,)).activations[hook], own[0])


def test_a_block_that_reads_another_state_than_the_stream_is_refused():
    """Its input changes with the embedding, by a way that no argument shows."""
    model = hf_model("llama")
    block, first = model.model.layers[2], []
    original = block.forward
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: first.append(args[0]), with_kwargs=True
    )
    block.forward = lambda x, *args, **kwargs: original(x, *args, **kwargs) + first[-1][: len(x)] * 0.1
    with pytest.raises(InputError, match="block 2, run alone on several rows") as caught:
        checking.adapter_of(model)
    assert "%" in caught.value.message


def test_a_stream_that_is_changed_between_blocks_is_refused():
    model = hf_model("llama")
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] * 1.1, *args[1:]))
    with pytest.raises(InputError, match="the output of block 0 is changed before block 1 reads it: it is 10 % off"):
        checking.adapter_of(model)


def test_a_model_that_fails_on_a_few_tokens_is_an_input_error():
    model = hf_model("llama")

    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel\nand more")

    model.model.layers[1].mlp.forward = fail
    with pytest.raises(InputError, match=r"type 'llama' cannot be used: it fails on a few tokens: no such kernel$"):
        checking.adapter_of(model)


def test_what_is_no_number_counts_as_far_apart_in_as_many_tokens_as_must_agree():
    apart, ones = torch.zeros(8), torch.ones(8)
    for n_bad, is_right in ((0, (True, True)), (1, (False, True)), (3, (False, False))):
        for number in (torch.nan, torch.inf):
            apart[:n_bad] = number
            found = [Tolerance.of(DTYPES[name]) for name in ("float32", "float16")]
            assert tuple(one.missed(apart, ones, stream=ones) <= one.relative for one in found) == is_right


@pytest.mark.parametrize("family", ["gpt2", "generic"])
@pytest.mark.parametrize(("dtype", "hint"), [("float16", "--dtype float32"), ("float32", "weights damaged")])
def test_a_model_that_overflows_its_number_type_is_told_from_one_of_unknown_structure(family, dtype, hint):
    model = hf_model(family, dtype=DTYPES[dtype])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.inf)
    with pytest.raises(InputError, match=f"gives numbers that are not finite in {dtype}") as caught:
        checking.adapter_of(model)
    assert hint in caught.value.hint


def test_arguments_grow_along_the_axis_that_grows_with_the_texts():
    heads, tokens = 3, 5
    one = ((torch.arange(15.0).view(heads, 1, tokens),), {"rope": (torch.ones(2, 1, tokens, 4), None), "flag": True})
    several = (
        (torch.zeros(4 * heads, 1, tokens),),
        {"rope": (torch.ones(2, 4, tokens, 4), None), "flag": True},
    )
    axes = growing_axes(one, several, rows=4)
    (alibi,), rest = expanded(one, rows=2, axes=axes)
    assert torch.equal(alibi, torch.cat([one[0][0]] * 2)) and rest["rope"][0].shape == (2, 2, tokens, 4)
    # What the axes do not name grows as masks do; positions of one axis do not.
    assert expanded(torch.ones(1, 1, 5, 5), rows=3, axes={}).shape == (3, 1, 5, 5)
    assert expanded(torch.ones(5), rows=3, axes={}).shape == (5,)


def test_the_tokens_that_are_tried_are_none_with_a_meaning_of_its_own():
    model = zoo_model("gemma3")
    ids = checking.few_tokens(ModelAdapter.of(model))
    assert ids.shape == (1, 8) and len(set(ids[0].tolist())) == 8
    assert not {80, 81, 82, 0, 1, 2} & set(ids[0].tolist())


def test_no_module_of_models_imports_one_that_imports_it():
    """Also not inside functions, where the import would only be put off."""
    folder = Path(circuitcli.__file__).parent / "models"
    imports = {}
    for path in folder.rglob("*.py"):
        name = "circuitcli." + ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        modules = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        imports[name] = {node.module for node in found} | modules
    imports = {name: {other for other in found if other in imports} for name, found in imports.items()}
    assert len(imports) > 15 and imports["circuitcli.models.checking"] > {"circuitcli.models.adapter"}
    while leaves := {name for name, others in imports.items() if not others & set(imports)}:
        imports = {name: others for name, others in imports.items() if name not in leaves}
    assert not imports, sorted(imports)
    assert set(SITES) >= {"resid", "attn"}
