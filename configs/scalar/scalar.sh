#!/bin/sh
# SCALAR (arXiv:2511.07572) from a text to its tables and plots: a small GPT, the sets of SAEs that the paper compares,
# how much of the model each keeps, and by how few edges between their features it works.
#
#   configs/scalar/scalar.sh tiny-shakespeare.txt [DIRECTORY]
#
# Killed and started again, it goes on where it was. What can be chosen, with the paper's values:
#   TOKENS   each SAE is trained on (122880000)         STEPS    the GPT is trained for (10000)
#   PROMPTS  of 128 held-out tokens each (50)           SETS     names of the files beside this one (all)
#   GPT      a model that is there already              CURVE    settings of the curves (paper.toml: the published code's)
#   CIRCUIT  the command, with options for all (circuit)
# Smaller, on a model that is there; a setting of all commands is a variable too:
#   TOKENS=4000000 PROMPTS=8 GPT=shakespeare_64x4 CIRCUIT_TRAIN__BATCH_SIZE=2048 \
#     configs/scalar/scalar.sh tiny-shakespeare.txt
set -eu
if [ $# -lt 1 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(dirname "$0")
text=$1
out=${2:-scalar}
: "${TOKENS:=122880000}" "${STEPS:=10000}" "${PROMPTS:=50}" "${CIRCUIT:=circuit}" "${CURVE:=}" "${GPT:=}"
: "${SETS:=topk-x8 topk-x40 staircase-share staircase-noshare staircase-detach staircase-untied end-to-end joint \
topk-block staircase-block jsae-block topk-layer jsae-layer}"
mkdir -p "$out"

# make FILE COMMAND...: the records of a command in a file, which is whole or not there.
make() {
    file=$1
    shift
    echo "$CIRCUIT $*" >&2
    $CIRCUIT "$@" --json > "$file.partial"
    mv "$file.partial" "$file"
}

kind_of() {
    case $1 in
        *-layer) echo mlp-layers ;;
        *-block) echo mlp-blocks ;;
        *) echo blocks ;;
    esac
}

# What a set begins from: one that learns together with the model, from the beginning of the model's training.
model_of() {
    if [ "$1" = joint ] && [ -d "$GPT/checkpoints/step0" ]; then echo "$GPT/checkpoints/step0"; else echo "$GPT"; fi
}

# Where the curves of a set are made.
run_of() {
    if [ -d "$out/$1/model" ]; then echo "$out/$1-model"; else echo "$out/$1"; fi
}

if [ -z "$GPT" ]; then
    GPT=$out/gpt
    make "$out/gpt.jsonl" pretrain --config "$here/../shakespeare_64x4.toml" --text "$text" --steps "$STEPS" --output "$GPT"
fi

for set in $SETS; do
    config=$here/$set.toml
    kind=$(kind_of "$set")
    make "$out/$set.collect.jsonl" collect --config "$config" --model "$(model_of "$set")" --text "$text" --run "$out/$set"
    make "$out/$set.train.jsonl" train --config "$config" --tokens "$TOKENS" --run "$out/$set"
    run=$(run_of "$set")
    if [ "$run" != "$out/$set" ]; then
        # A model that learned together with its SAEs has a text, and activations, of its own.
        make "$out/$set.model.jsonl" collect --config "$config" --model "$out/$set/model" --text "$text" --run "$run"
    fi
    make "$out/$set.edges.jsonl" validate --run "$run" --sae "$out/$set" --interaction "$kind" --sequences "$PROMPTS" \
        --set interaction.length=128 --name "edges${CURVE:+-$(basename "$CURVE" .toml)}" ${CURVE:+--config "$CURVE"}
done

# Each set against TopK SAEs of the same hook points: a table in JSON lines, which is also told, and a plot.
for kind in blocks mlp-blocks mlp-layers; do
    reports=
    for set in $SETS; do
        if [ "$(kind_of "$set")" = "$kind" ]; then
            reports=$reports${reports:+,}$(run_of "$set")/reports/edges${CURVE:+-$(basename "$CURVE" .toml)}.json
        fi
    done
    case $reports in
        *,*) make "$out/$kind.jsonl" render --interaction "$reports" -o "$out/$kind.svg" -o "$out/$kind.png" ;;
    esac
done
