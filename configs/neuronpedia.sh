#!/bin/sh
# Upload a graph to Neuronpedia, and print the address of its page there.
#
#   circuit render --graph NAME --as neuronpedia -o circuit.json
#   NEURONPEDIA_API_KEY=KEY configs/neuronpedia.sh circuit.json
#
# Neuronpedia has to know the model (`--set render.scan=gemma-2-2b`). NEURONPEDIA is the address of another site.
set -eu
if [ $# -ne 1 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
file=$1
site=${NEURONPEDIA:-https://www.neuronpedia.org}

# ask PATH JSON: what the site answers.
ask() {
    curl -sSf "$site/api/graph/$1" -H "x-api-key: $NEURONPEDIA_API_KEY" -H 'Content-Type: application/json' -d "$2"
}

wanted=$(jq -n --arg name "$(basename "$file")" --argjson bytes "$(wc -c <"$file")" \
    '{filename: $name, contentLength: $bytes}')
answer=$(ask signed-put "$wanted")
curl -sSf -X PUT -H 'Content-Type: application/json' -T "$file" "$(printf %s "$answer" | jq -r .url)" >/dev/null
saved=$(ask save-to-db "$(printf %s "$answer" | jq '{putRequestId}')")
printf %s "$saved" | jq -r --arg site "$site" '.url | if startswith("/") then $site + . else . end'
