#!/usr/bin/env bash
# The speed table of docs/performance.md: the bench-150m shape (random bf16 weights) on two cores.
#   bench/cpu/offline_table.sh [path to lacuna]      THREADS=2 REPEATS=3
# Prefill from empty, then 512 tokens and 32 decoded ones behind each depth; best of REPEATS.
set -euo pipefail
cd "$(dirname "$0")/../.."
lacuna=${1:-build/release/lacuna}
run() {
  for ((i = 0; i < ${REPEATS:-3}; ++i)); do
    $lacuna bench offline --shape configs/shapes/bench-150m.json --threads "${THREADS:-2}" "$@" |
      grep -iE 'tok' || true
  done
}
for prompt in 512 4096 16384; do
  echo "== prompt $prompt from empty"
  run --depth 0 --prompt $prompt --generate 0
done
for depth in 0 4096 16384 32768; do
  echo "== depth $depth"
  run --depth $depth --prompt 512 --generate 32
done
