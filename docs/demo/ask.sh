#!/bin/sh
# Asks the running server a question about docs/demo/long.txt (about 32,000 tokens of a novel with
# facts hidden in it):   docs/demo/ask.sh "Where is the quiet anchor kept?" [http://127.0.0.1:8000]
set -eu
document=$(sed 's/\\/\\\\/g; s/"/\\"/g' "$(dirname "$0")/long.txt" | awk '{printf "%s\\n", $0}')
question=$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')
printf '{"model":"recall-12m","temperature":0,"max_tokens":64,"messages":[{"role":"user","content":"%s\\n%s"}]}' \
  "$document" "$question" |
  curl -sS "${2:-http://127.0.0.1:8000}/v1/chat/completions" \
    -H 'content-type: application/json' -d @- |
  sed 's/.*"content":"\(.*\)","refusal".*/\1/'
echo
