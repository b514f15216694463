#!/bin/bash
# Runs every GPU kernel benchmark with its peers and prints one Markdown table: kernel, shape, time,
# share of the roofline, peer, ratio, spread.
#
# usage: bench/gpu/run.sh [-b PROGRAMS] [-o OUT] [NAME ...]
#   -b  folder with prebuilt programs; without it they are built for this GPU in build/gpu
#   -o  folder for the logs and the table (default: gpu-bench)
#   NAME  only these parts: ceilings prefill peers_prefill prefill_sm80 decode peers_decode matmul
#         sample peers_matmul rows peers_rows (default: all)
# A program that is missing, or a peer whose package is missing, costs its rows only.
set -u
here=$(cd "$(dirname "$0")" && pwd)
programs="" out=gpu-bench
while getopts b:o: option; do
  case $option in
    b) programs=$(cd "$OPTARG" && pwd) || exit 2 ;;
    o) out=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
parts="${*:-ceilings prefill peers_prefill prefill_sm80 decode peers_decode matmul sample
  peers_matmul rows peers_rows}"
parts=$(echo $parts)

if [ -z "$programs" ]; then
  root=$(cd "$here/../.." && pwd)
  cmake -S "$root" -B "$root/build/gpu" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DLACUNA_CUDA_ARCHS="${LACUNA_CUDA_ARCHS:-sm_90a}" -DLACUNA_TESTS=OFF \
    -DLACUNA_DIRS="kernels/core;kernels/device;kernels/ops;kernels/cuda;bench/gpu" || exit 1
  cmake --build "$root/build/gpu" --target gpu_benches || exit 1
  programs="$root/build/gpu"
fi
mkdir -p "$out" || exit 1

run() { # NAME COMMAND...
  local name=$1
  shift
  case " $parts " in *" $name "*) ;; *) return ;; esac
  "$@" >"$out/$name.log" 2>&1 && return
  echo "$name: exit code $?; the end of its log:" >&2
  tail -n 3 "$out/$name.log" >&2
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1 >"$out/machine.log"
run ceilings python3 "$here/peers.py" ceilings
run prefill "$programs/gpu_prefill_bench"
run peers_prefill python3 "$here/peers_prefill.py"
run prefill_sm80 "$programs/gpu_prefill_sm80_bench"
run decode "$programs/gpu_decode_bench"
run peers_decode python3 "$here/peers_decode.py"
run matmul "$programs/gpu_matmul_bench" table
run sample "$programs/gpu_sample_bench"
run peers_matmul python3 "$here/peers_matmul.py"
run rows "$programs/gpu_row_ops_bench"
run peers_rows python3 "$here/peers.py" rows
python3 "$here/table.py" "$out" | tee "$out/table.md"
