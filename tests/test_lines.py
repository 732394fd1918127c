"""The lines that the first users typed, as they stand, with GPT-2 and its SAEs in the hub's cache and no network.

The model has GPT-2's shape and other sizes, the SAEs have as many features as the real ones and are as narrow as it.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from cli_support import TESTS, TIMEOUT_S, environment
from safetensors.torch import save_file

from circuitcli.models import builtin

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
WIDTH, D_SAE = 16, 24_576
LINES = (
    "circuit collect --model gpt2 --layers 3:5",
    "circuit train",
    "circuit graph-grad --down 10 --up 5",
    "circuit validate --pin 3:A,B",
    "circuit validate --pin 6:8339,14104 --sae gpt2-small-res-jb",
    "circuit graph-naive --layers 6:7 --pin 6:8339 --sae gpt2-small-res-jb --threshold-exp -30",
)
# For a test of seconds: what a file of settings in the working directory says.
SETTINGS = """
[data]
tokens = 3000
block_length = 64
[sae]
d_sae = 48
k = 8
[train]
batch_size = 256
loss_tokens = 0
[graph]
ig_steps = 2
"""


@dataclass(frozen=True)
class Ended:
    """What became of a line."""

    line: str
    status: int
    stdout: str
    stderr: str

    def records(self, kind: str) -> list[dict]:
        """The records of one kind, in order."""
        return [record for line in self.stdout.splitlines() if (record := json.loads(line))["kind"] == kind]


def in_hub(hub: Path, repository: str) -> Path:
    """The folder of a repository's files in the hub's cache, as its own client lays it out."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def put_model(hub: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_layer": 8, "n_embd": WIDTH, "n_head": 2, "vocab_size": 2048, "n_positions": 1024}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    folder = in_hub(hub, "gpt2")
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin.directory("tiny") / name, folder / name)


def put_saes(hub: Path) -> None:
    """The SAE of layer 6, in the files and with the words of the release's own, which are SAELens's oldest."""
    shapes = {"W_enc": (WIDTH, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, WIDTH), "b_dec": (WIDTH,)}
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(shape, generator=generator) / WIDTH for name, shape in shapes.items()}
    folder = in_hub(hub, "jbloom/GPT2-Small-SAEs-Reformatted") / "blocks.6.hook_resid_pre"
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    told = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.6.hook_resid_pre",
        "hook_point_layer": 6,
        "hook_point_head_index": None,
        "d_in": WIDTH,
        "d_sae": D_SAE,
        "expansion_factor": 32,
        "dtype": "torch.float32",
        "context_size": 128,
        "use_ghost_grads": False,
    }
    (folder / "cfg.json").write_text(json.dumps(told), encoding="utf-8")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that has nothing but a file of settings, beside the hub's cache."""
    folder = tmp_path_factory.mktemp("lines")
    put_model(folder / "home" / "hub")
    put_saes(folder / "home" / "hub")
    (folder / "work").mkdir()
    (folder / "work" / "circuit.toml").write_text(SETTINGS, encoding="utf-8")
    return folder / "work"


@pytest.fixture(scope="module")
def ended(work: Path) -> list[Ended]:
    """The lines, run one after the other."""
    home = work.parent / "home"
    done = subprocess.run(
        [sys.executable, str(TESTS / "lines_child.py"), *LINES],
        cwd=work,
        env=environment(HF_HOME=str(home), HF_HUB_CACHE=str(home / "hub"), HF_HUB_OFFLINE="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Ended(**content) for content in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_each_line_runs_as_it_stands(ended: list[Ended], number: int):
    assert ended[number].status == 0, ended[number].stderr[-2000:]
    assert "error:" not in ended[number].stderr and "Traceback" not in ended[number].stderr


def test_the_lines_work_on_one_run_of_gpt2_and_layers_three_and_four(ended: list[Ended], work: Path):
    (run,) = ended[0].records("run")
    assert (run["model"], run["path"], run["revision"], run["layers"]) == ("gpt2", "runs/gpt2", COMMIT, "3:5")
    hooks = [record["hook"] for record in ended[0].records("activations")]
    assert sorted(hooks) == sorted(f"{site}.{layer}" for layer in (3, 4) for site in ("resid", "attn", "mlp"))
    manifest = json.loads((work / "runs" / "gpt2" / "run.json").read_text(encoding="utf-8"))
    assert manifest["stages"]["collect"]["settings"]["data.text"] == "hf:NeelNanda/pile-10k"
    assert [record["hook"] for record in ended[1].records("sae")] == hooks


def test_the_graph_is_about_the_runs_own_text_and_says_so(ended: list[Ended]):
    (head,) = ended[2].records("graph")
    assert (
        head["n_prompts"] == 1
        and head["metric"] == "log-prob"
        and set(head["saes"]) == {f"{site}.{layer}" for layer in (3, 4) for site in ("resid", "attn", "mlp")}
    )
    assert (head["down"], head["up"]) == (10, 5) and len(ended[2].records("node")) > 10
    assert "note: no prompt is given" in ended[2].stderr and repr(head["target"]) in ended[2].stderr


def test_pins_of_the_runs_own_features_are_ablated_on_its_text(ended: list[Ended]):
    effect = [score for score in ended[3].records("score") if score["name"] == "effect"][-1]
    assert effect["value"] != 0 and (effect["unit"], effect["n_nodes"]) == ("nats", 2)
    assert effect["n_blocks"] >= 1 and "n_prompts" not in effect


def test_pins_of_a_releases_layer_are_those_of_what_enters_the_block(ended: list[Ended]):
    (effect,) = ended[4].records("score")[-1:]
    assert effect["value"] != 0 and effect["n_nodes"] == 2 and effect["graph"] == "pins-2"
    assert "the pins of layer 6 are features of resid_pre.6" in ended[4].stderr
    assert "next: " not in ended[4].stderr


def test_a_graph_takes_the_layers_of_a_release_that_it_asks_for(ended: list[Ended]):
    (head,) = ended[5].records("graph")[-1:]
    assert list(head["saes"]) == ["resid_pre.6"] and (head["name"], head["to"]) == ("naive", "next")
    assert {edge["source"] for edge in ended[5].records("edge")[-1:]} == {"resid_pre.6/8339"}
