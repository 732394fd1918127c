#!/usr/bin/env bash
# Checks and measures circuit on a GPU, in less than 8 minutes; installs nothing and downloads nothing:
#   bash tests/on_gpu.sh [--list] [STEP ...]
# It needs circuit's own dependencies and those of its tests. Every step has its own time limit and goes on after the
# failure of another; a table tells all in the end, and the exit status is 1 if any failed.
#   CIRCUIT_GPU_DEVICE=cpu bash tests/on_gpu.sh     rehearses it without a GPU, with small sizes
#   PYTHON=/path/to/python                          which Python has the dependencies; OUT=DIR keeps what steps print
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

device=${CIRCUIT_GPU_DEVICE:-cuda}
# circuit refuses variables of this kind that are no setting.
unset "${!CIRCUIT_@}"
python=${PYTHON:-python}
total_s=470
work=$(mktemp -d)
out=${OUT:-$work/out}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1

if [ "$device" = cpu ]; then
    size=(--d-in 64 --d-sae 512 --batch 256 --rounds 1)
    race=(--shrink 4 --width 512 --batch 256 --tokens 2048)
    large=(--layers 2 --width 64 --heads 4)
    tokens=2000 d_sae=256 layers=1:2
else
    # Dense steps hold several tensors of a batch times the features.
    batch=8192
    memory=$("$python" -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)' 2>/dev/null)
    [ "${memory:-80}" -ge 20 ] || batch=2048
    size=(--d-in 768 --d-sae 24576 --batch "$batch")
    race=(--width 24576 --batch "$batch" --tokens "$((batch * 24))")
    large=(--layers 12 --width 768 --heads 12)
    tokens=100000 d_sae=24576 layers=5:7
fi

circuit() {
    "$python" -m circuitcli "$@" --device "$device" --run "$work/run" >>"$work/records"
}

pytest() {
    "$python" -m pytest -q -n0 -p no:cacheprovider "$@"
}

# NAME, seconds, what it does; each is a function below.
steps=(
    "versions 60 what is here: the device, its memory, and versions"
    "kernels 120 Triton's kernels against their definition"
    "collect 90 random weights of GPT-2's size: collect and train"
    "graph 120 circuits of it: graph-grad, graph-naive, validate, graph-grad --frozen"
    "bench 90 a training step: ${size[*]}"
    "devices 220 all commands on builtin:tiny, and training of every architecture, against the CPU's numbers"
    "ours 60 circuit train in a race of libraries: ${race[*]}"
    "sae_lens 90 the same by sae-lens"
    "sparsify 90 the same by eai-sparsify"
)

step_versions() {
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || true
    fi
    "$python" - "$device" <<'PYTHON'
import importlib.metadata, platform, sys
import torch
device = torch.device(sys.argv[1])
if device.type == "cuda":
    about = torch.cuda.get_device_properties(device)
    print(f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}, CUDA {torch.version.cuda}")
else:
    print(f"no GPU: {device}, {platform.processor() or platform.machine()}")
print("Python", platform.python_version())
for name in ("torch", "triton", "transformers", "accelerate", "datasets", "h5py", "numpy", "pytest", "sae-lens", "eai-sparsify"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "is not installed")
# It adds numbers up there, or says why not.
assert float(torch.ones(1000, device=device).sum()) == 1000
PYTHON
}

step_kernels() {
    if [ "$device" = cpu ]; then
        # Its interpreter takes a minute for all of them.
        TRITON_INTERPRET=1 pytest tests/kernels_child.py -k "same_numbers or scalar_products"
    else
        TRITON_INTERPRET=0 pytest tests/kernels_child.py
    fi
}

step_devices() {
    TESTS_DEVICE=$device pytest tests/test_other_device.py
}

step_bench() {
    "$python" -m tests.bench.bench_train --device "$device" "${size[@]}"
}

race() {
    "$python" -m tests.bench.bench_train_peers --device "$device" "${race[@]}" --only "$1"
}

step_ours() { race "circuit train"; }
step_sae_lens() { needs sae_lens && race sae-lens; }
step_sparsify() { needs sparsify && race eai-sparsify; }

needs() {
    "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" && return
    echo "the package $1 is not installed"
    return 77
}

step_collect() {
    "$python" - "$work/model" "${large[@]}" <<'PYTHON' || return
import argparse
import torch, transformers
from circuitcli.models import builtin
parser = argparse.ArgumentParser()
parser.add_argument("folder")
for name in ("layers", "width", "heads"):
    parser.add_argument(f"--{name}", type=int)
asked = parser.parse_args()
tokenizer = transformers.AutoTokenizer.from_pretrained(builtin.directory("tiny"))
torch.manual_seed(0)
vocabulary = 50257 if asked.width >= 768 else len(tokenizer)
special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
sizes = {"n_layer": asked.layers, "n_embd": asked.width, "n_head": asked.heads, "vocab_size": vocabulary}
config = transformers.GPT2Config(**sizes, **special)
transformers.GPT2LMHeadModel(config).save_pretrained(asked.folder)
tokenizer.save_pretrained(asked.folder)
PYTHON
    circuit collect --model "$work/model" --text builtin:python --layers "$layers" --sites resid,mlp --tokens "$tokens" || return
    circuit train --set "sae.d_sae=$d_sae" --set train.batch_size=1024
}

step_graph() {
    [ -d "$work/run/saes" ] || { echo "there are no SAEs: the step before it failed"; return 1; }
    local prompt="def __init__(self, name): self.name ="
    circuit graph-grad --prompt "$prompt" --down 10 --up 5 || return
    circuit graph-naive --prompt "$prompt" --thin 0.05 --name naive || return
    circuit validate --graph circuit --set validate.samples=5 || return
    circuit graph-grad --method relp --refine 2 --prompt "$prompt" --down 3 --up 2 --name relp || return
    circuit graph-grad --frozen --prompt "$prompt" --set graph.max_nodes=300 --check-edges 10 --name direct
}

told() {
    # The line of a step's output that says most; speeds of benchmarks, else the last.
    grep -E "^(circuit train|sae-lens|eai-sparsify) +[0-9]|^[0-9]+ passed| passed| failed" "$1" | tail -n 1 |
        grep . || grep . "$1" | tail -n 1
}

run_step() {
    local name=$1 limit=$2 begin=$SECONDS status left=$((total_s - SECONDS))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -le 0 ]; then
        results+=("$name|FAILED|0|no time was left of $total_s s")
        return
    fi
    printf '== %s (at %d s, at most %d s)\n' "$name" "$SECONDS" "$limit" >&2
    # A shell of its own, so that the limit holds for all that it starts.
    timeout --kill-after=5 "$limit" bash -c "$(declare -p device python work out size race large tokens d_sae layers); $(declare -f); step_$name" \
        >"$out/$name.txt" 2>&1 </dev/null
    status=$?
    case $status in
    0) status=ok ;;
    77) status=skipped ;;
    124 | 137) status="FAILED" && echo "stopped after $limit s" >>"$out/$name.txt" ;;
    *) status=FAILED ;;
    esac
    [ "$status" = FAILED ] && tail -n 25 "$out/$name.txt" >&2
    results+=("$name|$status|$((SECONDS - begin))|$(told "$out/$name.txt")")
}

asked=()
for word in "$@"; do
    if [ "$word" = --list ]; then
        printf '%s\n' "${steps[@]}"
        exit 0
    fi
    asked+=("$word")
done
for word in "${asked[@]}"; do
    declare -F "step_$word" >/dev/null || { echo "no step $word; --list names all" >&2; exit 2; }
done

results=()
for step in "${steps[@]}"; do
    read -r name limit _ <<<"$step"
    [ ${#asked[@]} -eq 0 ] || [[ " ${asked[*]} " == *" $name "* ]] || continue
    run_step "$name" "$limit"
done

echo
[ -s "$out/versions.txt" ] && sed 's/^/  /' "$out/versions.txt"
echo
failures=0
printf '%-10s %-8s %5s  %s\n' step result s said
for result in "${results[@]}"; do
    IFS='|' read -r name status seconds said <<<"$result"
    printf '%-10s %-8s %5s  %.110s\n' "$name" "$status" "$seconds" "$said"
    [ "$status" != FAILED ] || failures=$((failures + 1))
done
[ -s "$out/bench.txt" ] && { echo; cat "$out/bench.txt"; }
printf '\n%d of %d steps failed, %d s, on %s\n' "$failures" "${#results[@]}" "$SECONDS" "$device"
[ "$failures" -eq 0 ]
