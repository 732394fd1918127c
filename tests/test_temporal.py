"""SAEs that take off what earlier tokens predict: their definition, the files of others, and every stage with them."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from exchange_support import only, written
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from safetensors.torch import load_file, save_file
from support import D_MODEL, adapter_of, random_sae
from test_graph_stages import SMALL, settings, trained  # noqa: F401
from torch import Tensor

from circuitcli.activations.cache import ActivationCache
from circuitcli.attribution import baselines
from circuitcli.errors import InputError, SettingsError
from circuitcli.evaluation.fit import fit
from circuitcli.evaluation.held_out import HeldOut
from circuitcli.evaluation.quality import reconstruction
from circuitcli.evaluation.spliced import SplicedLoss, Texts
from circuitcli.features import scan as scanning
from circuitcli.hookpoints import HookPoint
from circuitcli.records import NodeRecord, Stream
from circuitcli.runs import Run
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.coders import Coders
from circuitcli.saes.exchange import catalogue, formats, temporal
from circuitcli.saes.temporal import TemporalSae
from circuitcli.stages import evaluate, graph_grad, graph_naive, inspect, interp, validate
from circuitcli.stages.request import Request

HOOK = HookPoint(2, "resid")
D_IN, D_SAE = 6, 24
SHAPE = {"n_heads": 3, "n_attn_layers": 2, "bottleneck_factor": 4}


def own(*, k: int | None = 5, seed: int = 0, **config) -> TemporalSae:
    """In double precision, with no parameter at zero."""
    sae = TemporalSae(SaeConfig(HOOK, D_IN, D_SAE, **config), k, 3, 2, 4).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae.requires_grad_(False)


def texts(n: int = 3, length: int = 7, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """(text, position, d_in)."""
    return 2 * torch.randn(n, length, D_IN, generator=torch.Generator().manual_seed(7), dtype=dtype) + 1


def slow_prediction(sae: TemporalSae, seen: list[Tensor]) -> list[Tensor]:
    """Of one text, position by position and head by head."""
    left, d_key, d_value = list(seen), D_SAE // 4 // 3, D_SAE // 3
    for attention in sae.attention:
        codes = [(x @ sae.W_enc).relu() for x in left]
        before = [torch.zeros_like(codes[0]), *codes[:-1]]
        after = []
        for position, x in enumerate(left):
            query = attention.query.weight @ codes[position] + attention.query.bias
            mixed = []
            for head in range(3):
                keys, values = slice(head * d_key, (head + 1) * d_key), slice(head * d_value, (head + 1) * d_value)
                scores, given = [], []
                for other in before[: position + 1]:
                    key = attention.key.weight @ other + attention.key.bias
                    scores.append(float(query[keys] @ key[keys]) / math.sqrt(d_key))
                    given.append((attention.value.weight @ other + attention.value.bias)[values])
                weights = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
                mixed.append(sum(weight * value for weight, value in zip(weights, given, strict=True)))
            predicted = (attention.out.weight @ torch.cat(mixed) + attention.out.bias).relu()
            direction = predicted @ sae.W_dec
            after.append(x - (direction @ x) / (direction.norm() + 1e-6) ** 2 * direction)
        left = after
    return [x - rest for x, rest in zip(seen, left, strict=True)]


@pytest.mark.parametrize("k", [5, None])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("normalisation", ["none", "layer-norm"])
def test_codes_and_reconstruction_are_those_of_the_formula(normalisation: str, subtract: bool, k: int | None):
    sae, x = own(k=k, normalisation=normalisation, subtract_decoder_bias=subtract), texts()
    codes, whole = sae.encode(x), sae.reconstruct(x)
    assert bool((codes > 0).any()) and bool((codes == 0).any())
    for text in range(len(x)):
        mean, scale = torch.zeros(x.shape[1], 1).double(), torch.ones(x.shape[1], 1).double()
        if normalisation == "layer-norm":
            mean, scale = x[text].mean(dim=1, keepdim=True), x[text].std(dim=1, keepdim=True)
        divisor = scale + 1e-5 if normalisation == "layer-norm" else scale
        seen = [*((x[text] - mean) / divisor - (sae.b_dec if subtract else 0))]
        for position, (given, predicted) in enumerate(zip(seen, slow_prediction(sae, seen), strict=True)):
            pre = (given - predicted) @ sae.W_enc + sae.b_enc
            order = pre.argsort(descending=True)[: k or D_SAE]
            expected = torch.zeros(D_SAE, dtype=torch.float64)
            expected[order] = pre[order].relu()
            assert torch.allclose(codes[text, position], expected, rtol=1e-9, atol=1e-9)
            recon = (expected @ sae.W_dec + sae.b_dec + predicted) * scale[position] + mean[position]
            assert torch.allclose(whole[text, position], recon, rtol=1e-9, atol=1e-9)
    coded = sae.code(x)
    assert torch.equal(coded.codes, codes)
    assert all(torch.equal(one, other) for one, other in zip(coded.frame, sae.frame(x), strict=True))
    assert torch.allclose(sae.decode(coded.codes, coded.frame) + coded.error, x, rtol=1e-12)


def test_a_code_depends_on_earlier_tokens_and_on_no_later_one():
    sae, x = own(), texts(1)
    changed = x.clone()
    changed[0, 3] += 1
    same = (sae.encode(x) == sae.encode(changed))[0].all(dim=-1)
    assert bool(same[:3].all()) and not bool(same[3:].all()) and not bool(same[4:].all())
    # Texts of a batch do not see each other, and a text alone gives the same.
    together, alone = sae.encode(texts()), [sae.encode(text) for text in texts()]
    assert torch.allclose(together, torch.stack(alone), rtol=1e-12)
    assert torch.allclose(sae.encode(texts()[:, :4]), together[:, :4], rtol=1e-12)


def test_what_the_context_predicts_is_a_constant_to_derivatives():
    sae, x = own(k=None), texts(1, 4).requires_grad_()
    codes = sae.encode(x)
    (gradient,) = torch.autograd.grad(codes[0, 3, 5] + codes[0, 1, 2] * 0, x)
    is_active = bool(codes[0, 3, 5] > 0)
    expected = torch.zeros_like(x)
    expected[0, 3] = sae.W_enc[:, 5] * is_active
    assert torch.allclose(gradient, expected)


def test_widths_that_heads_cannot_share_are_refused():
    with pytest.raises(SettingsError, match="24 features are not a multiple of 5 heads times bottleneck 4"):
        TemporalSae(SaeConfig(HOOK, D_IN, D_SAE), 3, 5, 1, 4)
    with pytest.raises(SettingsError, match="cannot be a transcoder"):
        TemporalSae(SaeConfig(HookPoint(2, "mlp_in"), D_IN, D_SAE, target=HookPoint(2, "mlp"), d_out=D_IN), 3, 3, 1, 4)


def test_native_files_keep_all_of_it(tmp_path: Path):
    sae = own(k=None).float()
    files.save(sae, tmp_path)
    found = files.load(tmp_path)
    x = texts(dtype=torch.float32)
    assert isinstance(found, TemporalSae) and found.options == sae.options
    assert torch.equal(found.encode(x), sae.encode(x)) and torch.equal(found.reconstruct(x), sae.reconstruct(x))


def theirs(**changes) -> TemporalSAE:
    """One of SAELens's, with random parameters."""
    config = TemporalSAEConfig(
        **{
            "d_in": D_IN,
            "d_sae": D_SAE,
            "dtype": "float32",
            "device": "cpu",
            "kval_topk": 5,
            **SHAPE,
            **changes,
        }
    )
    config.metadata.hook_name = "blocks.2.hook_resid_post"
    torch.manual_seed(0)
    sae = TemporalSAE(config)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            # Their encoder's product is divided by 24.
            parameter.copy_(torch.randn_like(parameter) * (3.0 if name.startswith("W") else 0.5))
    return sae.requires_grad_(False)


def assert_theirs(sae: TemporalSae, expected: TemporalSAE) -> None:
    x = texts(dtype=torch.float32)
    codes = expected.encode(x)
    assert bool((codes > 0).any()) and bool((codes == 0).any())
    torch.testing.assert_close(sae.encode(x), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x), expected(x), rtol=1e-4, atol=1e-3)


CASES = [
    {},
    {"tied_weights": False},
    {"sae_diff_type": "relu"},
    {"kval_topk": None},
    {"apply_b_dec_to_input": False},
    {"tied_weights": False, "apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": 0.2},
    {
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": 0.2,
        "apply_b_dec_to_input": False,
    },
    {"n_attn_layers": 1, "n_heads": 1},
]


@pytest.mark.parametrize("changes", CASES)
def test_files_of_sae_lens_give_the_same_here_and_ours_there(changes: dict, tmp_path: Path):
    sae = theirs(**changes)
    sae.save_model(tmp_path / "theirs")
    found = only(tmp_path / "theirs")
    assert_theirs(found.sae, sae)
    assert found.sae.hook == HOOK and any("0.2" in note for note in found.about.notes) == (
        "activation_normalization_factor" in changes
    )
    path = written(found.sae, "sae_lens", tmp_path / "ours", model="gpt2")
    loaded = TemporalSAE.load_from_disk(path)
    assert_theirs(found.sae, loaded)
    assert_theirs(only(path).sae, sae)


@pytest.mark.parametrize("tied", [True, False])
def test_the_published_files_are_read_as_sae_lens_reads_them(tied: bool, tmp_path: Path, monkeypatch):
    folder = tmp_path / "gemma-2-2B" / "layer_12" / "temporal"
    folder.mkdir(parents=True)
    sae = theirs(tied_weights=tied)
    state = {name: tensor for name, tensor in sae.state_dict().items() if name.startswith("attn_layers")}
    state |= {"D": sae.W_dec.data, "b": sae.b_dec.data} | ({} if tied else {"E": sae.W_enc.data})
    save_file(state, folder / "latest_ckpt.safetensors")
    conf = {
        "llm": {"dimin": D_IN},
        "data": {"dtype": "float32"},
        "sae": {
            "exp_factor": D_SAE / D_IN,
            "sae_diff_type": "topk",
            "kval_topk": 5,
            "tied_weights": tied,
            "scaling_factor": 0.3,
            **SHAPE,
        },
    }
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", lambda repo_id, filename, **_: tmp_path / filename)
    config, tensors, _ = pretrained_sae_loaders.temporal_sae_huggingface_loader("any", "gemma-2-2B/layer_12/temporal")
    expected = TemporalSAE(TemporalSAEConfig.from_dict(config))
    expected.load_state_dict(tensors)
    found = only(tmp_path)
    assert_theirs(found.sae, expected.requires_grad_(False))
    assert found.sae.hook == HookPoint(12, "resid") and any("0.3" in note for note in found.about.notes)
    entry = catalogue.releases()["temporal-sae-gemma-2-2b"].entry("resid.12")
    assert (tmp_path / entry.path).is_dir() and entry.changes.model == "google/gemma-2-2b"


def test_damaged_files_are_refused_by_name(tmp_path: Path):
    theirs().save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    tensors, config = load_file(path), json.loads((tmp_path / "cfg.json").read_text())
    save_file({name: tensor for name, tensor in tensors.items() if "v_ctx.bias" not in name}, path)
    with pytest.raises(InputError, match=r"has no tensor attn_layers.0.v_ctx.bias"):
        only(tmp_path)
    save_file(tensors, path)
    for changed, message in (
        ({"n_attn_layers": 1}, "has 16 tensors of attention layers, 1 layers have 8"),
        ({"sae_diff_type": "tanh"}, "sae_diff_type 'tanh' is not known"),
        ({"n_heads": 5}, "not a multiple of 5 heads"),
        ({"bottleneck_factor": 2}, r"attention.0.query.weight has shape .6, 24., the other tensors ask for .12, 24."),
        ({"n_heads": None}, "lacks 'n_heads'"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(config | changed))
        with pytest.raises(InputError, match=message):
            only(tmp_path)
    sae = own().float()
    with pytest.raises(InputError, match="no bias in the encoder"):
        written(sae, "sae_lens", tmp_path / "biased")
    for name in ("dictionary_learning", "sparsify", "circuit_tracer"):
        with pytest.raises(InputError):
            written(sae, name, tmp_path / name)
    assert temporal.NAME in formats.FORMATS


def at_tiny(directory: Path) -> TemporalSae:
    """A random SAE for resid.1 of the model that ships with the package, saved there."""
    sae = TemporalSae(SaeConfig(HookPoint(1, "resid"), 128, 160), 6, 4, 1, 8)
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.ndim > 1 else 0)
    sae.requires_grad_(False)
    files.save(sae, directory, explained_variance=0.9)
    return sae


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:  # noqa: F811
    return Run(Path(shutil.copytree(trained, tmp_path / "run")))


@pytest.fixture
def ask(run: Run, tmp_path: Path) -> Callable[..., Request]:
    at_tiny(tmp_path / "sae")
    path = str(tmp_path / "sae")

    def request(**changes) -> Request:
        return Request(settings(sae_path=path, graph__layers="1", **changes), run.stream(), run)

    return request


def codes_by_block(sae: TemporalSae, cache: ActivationCache, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Rows of whole blocks, and their codes, each block alone and found by its tokens."""
    rows, codes = [], []
    for block in cache.blocks(start, stop):
        rows.append(cache.rows(sae.hook, block.start_row, block.stop_row))
        codes.append(sae.encode(rows[-1]))
    return torch.cat(rows), torch.cat(codes)


def test_rows_of_the_cache_are_coded_block_by_block(run: Run, tmp_path: Path):
    sae = at_tiny(tmp_path)
    cache = ActivationCache(run.path / "activations", [sae.hook])
    _, codes = codes_by_block(sae, cache, 0, cache.n_tokens)
    assert len(codes) == cache.n_tokens
    found = scanning.scan(cache, sae, n_tokens=cache.n_tokens, batch_size=300, n_contexts=3, window=5)
    assert torch.allclose(found.statistics.density.double(), (codes > 0).double().mean(dim=0), atol=1e-9)
    whole = sae.encode(cache.rows(sae.hook, 0, cache.n_tokens))
    assert not torch.allclose(whole, codes), "blocks must not see each other"


def test_means_and_measures_are_those_of_whole_blocks(run: Run, ask, tmp_path: Path):
    sae = at_tiny(tmp_path)
    cache = ActivationCache(run.path / "activations", [sae.hook])
    start = next(n for n in range(cache.n_tokens - 600, cache.n_tokens) if cache.tokens(n, n + 1).position > 5)
    rows, codes = codes_by_block(sae, cache, start, cache.n_tokens)
    assert 100 < len(rows) < cache.n_tokens - start
    made = baselines.mean(Coders.of([sae]), cache, n_tokens=cache.n_tokens - start)
    assert torch.allclose(made.codes[sae.hook][0, 0], codes.mean(dim=0), atol=1e-6)
    held_out = HeldOut(cache, range(start, cache.n_tokens), torch.device("cpu"), None)
    facts = held_out.facts(sae)
    assert facts["n_eval_tokens"] == len(rows)
    assert facts["l0"] == pytest.approx(float((codes > 0).double().sum(dim=1).mean()))
    lengths = cache.block_lengths(0, 500)
    assert sum(lengths) == 500
    judged = fit(sae, cache.rows(sae.hook, 0, 500), lengths=lengths).quality
    pieces = cache.rows(sae.hook, 0, 500).split(lengths)
    assert judged.explained_variance == pytest.approx(reconstruction(sae, pieces).explained_variance)
    as_one_text = fit(sae, cache.rows(sae.hook, 0, 500)).quality
    assert as_one_text.explained_variance != pytest.approx(judged.explained_variance, abs=1e-4)


@pytest.mark.parametrize("first", [0, 1])
def test_the_loss_with_it_is_that_of_the_model_with_its_reconstruction(first: int):
    """Texts of unequal length in one batch; a BOS token in front is not part of the context."""
    adapter, sae = adapter_of("gpt2"), random_sae(HookPoint(1, "resid"), normalisation="context")
    generator = torch.Generator().manual_seed(3)

    class Block:
        def __init__(self, length: int) -> None:
            self.ids = torch.randint(0, 80, (length,), generator=generator).tolist()
            self.positions = list(range(first, length))

    blocks = [Block(9), Block(5)]
    made = Texts.of(blocks, pad_id=0, batch_size=4, device=torch.device("cpu"))
    mean = torch.zeros(D_MODEL, dtype=torch.float64)
    found = SplicedLoss(adapter, made, [sae.hook], first=first).measure(sae, mean=mean)
    total, n = 0.0, 0
    from circuitcli.models.taps import tapped

    for block in blocks:
        ids = torch.tensor([block.ids])

        def replace(x: Tensor) -> Tensor:
            return torch.cat([x[:, :first], sae.reconstruct(x[:, first:])], dim=1)

        with torch.no_grad(), tapped(adapter, {sae.hook: replace}):
            log_q = adapter.logits(ids)[0, :-1].double().log_softmax(dim=-1)
        total -= float(log_q.gather(1, ids[0, 1:, None]).sum())
        n += len(block.ids) - 1
    assert found.ce_spliced == pytest.approx(total / n, rel=1e-9)


def test_every_stage_works_with_it(ask, run: Run):
    evaluate.run(ask())
    (report,) = (run.path / "reports").glob("*.json")
    (told,) = json.loads(report.read_text())["saes"]
    assert told["l0"] == pytest.approx(6, abs=0.1) and told["ce_spliced"] > 0
    (described,) = interp.run(ask())
    assert described.n_live > 5
    for stage in (graph_grad, graph_naive):
        made = Stream(stage.run(ask(graph__name=stage.__name__.rpartition(".")[2])))
        assert made.of(NodeRecord)
        assert validate.run(ask())
    (found,) = inspect.run(ask(), is_chosen=True)
    assert found.architecture == "temporal" and found.n_heads == 4 and found.activations["n_tokens"] > 100
