#!/usr/bin/env bash
# run.sh BUILD SECONDS [TARGET...]: every fuzzing target for so long, from its committed corpus. What it
# finds goes to BUILD/fuzz/TARGET/found; status 1 when there is something. The corpus itself stays.
set -uo pipefail
build=$1 seconds=$2
shift 2
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
status=0
for target in "${@:-config npy safetensors results}"; do
  for name in $target; do
    work=$build/fuzz/$name
    mkdir -p "$work/corpus" "$work/found"
    # A config may expand to a million cells: that takes memory and time, and is no fault.
    "$build/tests/fuzz/fuzz_$name" -max_total_time="$seconds" -max_len=4096 -timeout=60 \
      -rss_limit_mb=6000 -malloc_limit_mb=6000 -print_final_stats=1 \
      -artifact_prefix="$work/found/" "$work/corpus" "$here/corpus/$name" >"$work/log" 2>&1 || status=1
    printf '%s: %s, %s found\n' "$name" \
      "$(grep -E 'stat::number_of_executed_units' "$work/log" | grep -oE '[0-9]+$') runs" \
      "$(find "$work/found" -type f | wc -l)"
  done
done
exit "$status"
