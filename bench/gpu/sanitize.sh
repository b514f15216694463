#!/bin/bash
# Runs the op tests on this GPU under compute-sanitizer and prints one line for each process: tool,
# program, cases, errors, hazards, seconds. Exits with 1 if anything was found, failed or ran out of
# time.
#
# usage: bench/gpu/sanitize.sh -b PROGRAMS [-p PATTERN] [-o OUT] [-j JOBS] [-t SECONDS] [TOOL ...]
#        bench/gpu/sanitize.sh -b PROGRAMS [-p PATTERN] [-o OUT] [-j JOBS] kernels
#   TOOL  memcheck, racecheck, initcheck or synccheck (default: memcheck racecheck)
#   -b  folder with the op tests and liblacuna_cuda.so, for this GPU
#   -p  only the cases that match this regular expression
#   -o  folder for the logs (default: gpu-sanitize)
#   -j  processes at a time (default: one for each core)
#   -t  the most seconds that a process may take (default: 240)
#   kernels  instead of checking, lists the kernels that these cases do not launch (libgpu_launches.so
#            is needed beside the programs), in OUT/kernels.txt; exits with 1 if a kernel has no
#            instance that is launched
#
# A launch takes tens of milliseconds under racecheck, so the cases are those with few launches that
# still reach every kernel, and LACUNA_TEST_BRIEF=1 has the longest tests leave out more of the same.
set -u
programs="" pattern="" out=gpu-sanitize jobs=$(nproc) seconds_max=240
while getopts b:p:o:j:t: option; do
  case $option in
    b) programs=$(cd "$OPTARG" && pwd) || exit 2 ;;
    p) pattern=$OPTARG ;;
    o) out=$OPTARG ;;
    j) jobs=$OPTARG ;;
    t) seconds_max=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
tools=${*:-memcheck racecheck}
[ -n "$programs" ] || { echo "sanitize.sh: need -b PROGRAMS" >&2; exit 2; }
mkdir -p "$out" || exit 1
rm -f "$out"/*.log "$out"/*.line
export LACUNA_REQUIRE_CUDA=1 LACUNA_TEST_BRIEF=1

# PROGRAM ARGUMENT, one process each; those that take longest first.
cases() {
  local precision
  for precision in bf16 f16 f32; do
    echo "select_keys_test --gtest_filter=*SecondChoice*/cuda_$precision*"
    echo "select_keys_test --gtest_filter=$(any $precision KeysLogits ReduceAndSelect)"
    echo "select_keys_test --gtest_filter=*EveryPrecision*/cuda_$precision*"
    echo "select_keys_test --gtest_filter=$(any $precision RowsBeyond ManyHeads)"
    echo "append_test --gtest_filter=*/cuda_$precision*"
    echo "select_ranges_test --gtest_filter=*EqualsReference/cuda_${precision}_aligned"
    echo "select_keys_test --gtest_filter=$(any $precision RoundRobin Nothing Ties AllScores Kept \
      Turned HeadsWith Contra)"
    echo "attention_test --gtest_filter=*Sparse.*/cuda_$precision*"
    echo "sample_test --gtest_filter=*BrokenRowsWithout*/cuda_${precision}_aligned"
    echo "sample_test --gtest_filter=*BrokenRowsSay*/cuda_${precision}_aligned"
    echo "sample_test --gtest_filter=$(any ${precision}_aligned Draws Edits Ties TopK TopP Forced)"
    echo "attention_test --gtest_filter=*Decode.*/cuda_$precision*"
    echo "select_keys_test --gtest_filter=$(any $precision Bounds ShapesOfProfiles)"
    echo "row_ops_test --gtest_filter=*/cuda_$precision*"
    echo "attention_test --gtest_filter=*Prefill.*/cuda_$precision*"
    echo "select_keys_test --gtest_filter=*TopOfMany*/cuda_$precision*"
    echo "append_metadata_test --gtest_filter=*/cuda_$precision*"
    echo "matmul_test --gtest_filter=*Odd*/cuda_${precision}_aligned:*Nan*/cuda_$precision*"
    echo "correct_test --gtest_filter=*/cuda_$precision*"
  done
  echo "matmul_test --gtest_filter=*Large*/cuda_*f16_aligned"
  echo "cuda_backend_test --gtest_filter=*/cuda"
}
any() { # PRECISION TEST...: a filter
  local precision=$1 filter=""
  shift
  for test in "$@"; do filter+=":*$test*/cuda_$precision*"; done
  echo "${filter#:}"
}

check() { # TOOL NUMBER PROGRAM ARGUMENT
  local tool=$1 log="$out/$1.$2.log" start=$SECONDS
  local options="" # what tests provoke is not an error: a device without memory
  [ "$tool" = memcheck ] && options="--report-api-errors no"
  timeout "$seconds_max" compute-sanitizer --tool "$tool" $options --print-limit 20 \
    "$programs/$3" "$4" >"$log" 2>&1
  local code=$?
  local errors hazards="-" state=ok
  errors=$(sed -nE 's/^=+ ERROR SUMMARY: ([0-9]+) errors?$/\1/p' "$log")
  if [ "$tool" = racecheck ]; then
    errors=$(sed -nE 's/^=+ RACECHECK SUMMARY: .*\(([0-9]+) errors.*/\1/p' "$log")
    hazards=$(sed -nE 's/^=+ RACECHECK SUMMARY: ([0-9]+) hazards?.*/\1/p' "$log")
  fi
  [ "${errors:-1}" = 0 ] && [ "${hazards/-/0}" = 0 ] || state=FOUND
  grep -q '^\[  PASSED  \] [1-9]' "$log" && ! grep -q '^\[  FAILED  \]' "$log" || state=FAILED
  [ $code = 124 ] && state=TIMEOUT
  printf '%-9s %-20s %5d %6s %7s %7d  %-7s %s\n' "$tool" "$3" \
    "$(grep -c '^\[       OK \]' "$log")" "${errors:-?}" "${hazards:-?}" $((SECONDS - start)) \
    $state "${4#*=}" | tee "$out/$1.$2.line"
  [ $state = ok ] || grep -hE -m 3 '^=+ (Error|Warning|Invalid|Program|    +(at|and) )|: Failure' "$log"
}
launch() { # NUMBER PROGRAM ARGUMENT
  LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64:/usr/local/cuda/extras/CUPTI/lib64" \
    CUDA_INJECTION64_PATH="$programs/libgpu_launches.so" LACUNA_LAUNCHES="$out/launched" \
    "$programs/$2" "$3" >"$out/kernels.$1.log" 2>&1 || echo "kernels: $2 $3 failed" >&2
}
in_parallel() { # COMMAND...: once for each case, with its number and its two words
  local number=0 program argument
  while read -r program argument; do
    number=$((number + 1))
    while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n; done
    "$@" $number "$program" "$argument" &
  done < <(cases | grep -E -- "$pattern")
  wait
}

# The kernels of the library, mangled: each has a stub on the host that is named after it.
kernels_of() {
  grep -aoE '[0-9]+__device_stub__ZN[A-Za-z0-9_]+' "$1" |
    awk '{ match($0, /^[0-9]+/); print "_" substr($0, RLENGTH + 16, substr($0, 1, RLENGTH) - 15) }' |
    sort -u
}
if [ "$tools" = kernels ]; then
  : >"$out/launched"
  out=$(cd "$out" && pwd)
  in_parallel launch
  sort -u "$out/launched" >"$out/launched.txt"
  kernels_of "$programs/liblacuna_cuda.so" >"$out/all.txt"
  comm -23 "$out/all.txt" "$out/launched.txt" | c++filt >"$out/kernels.txt"
  names() {
    c++filt | sed -E 's/\(anonymous namespace\):://g; s/^void //; s/lacuna::kernels::cuda:://; s/[<(].*//' |
      sort | uniq -c
  }
  echo "$(wc -l <"$out/all.txt") kernels, $(wc -l <"$out/kernels.txt") not launched: $out/kernels.txt"
  join -1 2 -2 2 -a 1 -o 0,1.1,2.1 -e 0 <(names <"$out/all.txt" | sort -k 2) \
    <(comm -12 "$out/all.txt" "$out/launched.txt" | names | sort -k 2) |
    awk '{ printf "%-24s %3d of %3d launched\n", $1, $3, $2; none += $3 == 0 } END { exit none > 0 }'
  exit
fi

printf '%-9s %-20s %5s %6s %7s %7s  %-7s %s\n' tool program cases errors hazards seconds state filter
for tool in $tools; do in_parallel check "$tool"; done
ls "$out"/*.line >/dev/null 2>&1 || { echo "sanitize.sh: no case matches $pattern" >&2; exit 2; }
total=$(cat "$out"/*.line | awk '{ cases += $3; if ($7 != "ok") bad++ }
  END { printf "%d cases, %d processes not ok", cases, bad }')
echo "$total, $SECONDS s"
[[ $total == *" 0 processes not ok"* ]]
