#!/usr/bin/env bash
# Runs each fuzz target of a build folder for a while, from its corpus; a finding fails.
#   tests/fuzz/run.sh build/sanitize [seconds each]
set -euo pipefail
build=$1
seconds=${2:-10}
corpora=$(dirname "$0")/corpus
ran=0
for target in "$build"/*_fuzz; do
  name=$(basename "$target")
  found=$(mktemp -d)
  echo "fuzz $name for $seconds s"
  "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
    -artifact_prefix="$build/$name-finding-" "$found" "$corpora/$name"
  rm -rf "$found"
  ran=$((ran + 1))
done
[ "$ran" -ge 7 ] || { echo "expected 7 fuzz targets, found $ran"; exit 1; }
echo "$ran passed, 0 failed"
