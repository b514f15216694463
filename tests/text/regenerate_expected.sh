#!/bin/sh
# Makes chat_templates/*.expected.json again with @huggingface/jinja (npm). With --check: into a
# temporary folder, and fails when a committed file differs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/chat_template_oracle.mjs" "$work"
(cd "$work" && npm install --silent --no-audit --no-fund)
output="$here/chat_templates"
if [ "${1:-}" = --check ]; then output="$work/expected" && mkdir "$output"; fi
TZ=UTC node "$work/chat_template_oracle.mjs" "$here/chat_templates" "$output"
[ "${1:-}" != --check ] && exit 0
for file in "$output"/*.expected.json; do
  diff "$file" "$here/chat_templates/$(basename "$file")"
done
