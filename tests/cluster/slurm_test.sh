#!/usr/bin/env bash
# slurm_test.sh SUBQUAD [small|full]: a sweep in 4 shards on a real one-node Slurm. One task is
# requeued in the middle, one cancelled in the middle and submitted again; what is merged must equal an
# unsharded run in every column that is not measured. Status 77: skipped, no Slurm here.
set -euo pipefail
subquad=$(readlink -f -- "$1")
size=${2:-full}
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

work=$(mktemp -d /tmp/sq.XXXXXX)
chmod 755 "$work"  # munge wants to get through
slurm=$work/slurm
finish() {
  local status=$?
  trap - EXIT INT TERM
  ((status == 0 || status == 77)) || tail -n 20 "$work"/out/log/*.log "$slurm"/log/*.log 2>/dev/null || true
  [[ ! -d $slurm ]] || "$here/slurm_down.sh" "$slurm" 2>/dev/null || true
  rm -rf -- "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

begin=$SECONDS
say() { printf '%3d s  %s\n' $((SECONDS - begin)) "$*"; }
fail() { say "FAILED: $*"; exit 1; }
wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < end)) || fail "$what did not come"
    sleep 0.1
  done
}

"$here/slurm_up.sh" "$slurm" || exit $?
export SLURM_CONF=$slurm/slurm.conf
say "a Slurm of one node is up ($(sinfo --version))"

# 40 cells: four methods at ten lengths; the small version has four lengths. Errors over every row.
cat >"$work/sweep.yaml" <<X
name: cluster
rounds: $([[ $size == small ]] && echo 1 || echo 2)
threads: 1
problem:
  n: $([[ $size == small ]] && echo '[64, 96, 128, 160]' || echo '[64, 80, 96, 112, 128, 160, 192, 224, 256, 320]')
  head_dim: 16
  causal: true
methods: [dense, linear, {name: sliding_window, window: 16}, {name: performer, label: performer}]
tasks: [gaussian]
measure: {min_time_s: $([[ $size == small ]] && echo 0.04 || echo 0.05), repetitions: 5, warmup_s: 0.01}
plots: false
X
cd "$work"
"$subquad" run sweep.yaml --out whole 2>whole.log || fail "the unsharded run: $(tail -n 3 whole.log)"
say "unsharded: $(grep 'runs asked for' whole.log)"

rows() { # rows SHARD: finished rows of it
  local lines
  lines=$(cat "out/shard-$1-of-4/results.csv" 2>/dev/null | wc -l) || true
  echo $((lines > 0 ? lines - 1 : 0))
}
begun() { (($(rows "$1") >= 1)); }
gone() { [[ -z $(timeout 10 squeue -h -j "$1" 2>/dev/null) ]]; }

numbers=$("$subquad" submit sweep.yaml --engine slurm --shards 4 --out out --shared --time 10 \
  --warning 30 --at-once 2 2>submit.log) || fail "submit: $(cat submit.log)"
array=${numbers% *}
merge=${numbers#* }
say "$(cat submit.log)"

wait_for 60 "the first row of shard 0" begun 0
timeout 10 scontrol requeue "${array}_0"
say "requeued the task of shard 0 after $(rows 0) rows"
wait_for 60 "the first row of shard 1" begun 1
timeout 10 scancel "${array}_1"
say "cancelled the task of shard 1 after $(rows 1) rows"

wait_for 120 "the end of the array" gone "$array"
wait_for 60 "the end of the merge" gone "$merge"
say "the array and its merge have ended"
grep -q 'start number 2' out/log/"${array}_0.log" || fail "shard 0 was not started twice"
grep -q ',interrupted,' out/shard-0-of-4/results.csv || fail "no interrupted row in shard 0"
grep -q ',interrupted,' out/shard-1-of-4/results.csv || fail "no interrupted row in shard 1"
! grep -q ',interrupted,' out/shard-2-of-4/results.csv || fail "shard 2 was interrupted"
grep 'missing: ' out/log/merge_*.log || fail "the merge job did not miss the cancelled shard"
! "$subquad" merge out --out out/merged 2>merge.log || fail "a merge without a whole shard ended well"

again=$(sbatch --parsable --array=1 out/submit/array.sbatch)
say "shard 1 again, job $again"
wait_for 120 "the end of shard 1" gone "$again"
"$subquad" merge out --out out/merged 2>merge.log || fail "merge: $(cat merge.log)"
say "$(head -n 1 merge.log)"

columns() { # rows by cell and round, the columns that say where they come from
  cut -d, -f1-3 out/shard-*-of-4/results.csv | grep -v '^cell_id' | sort
}
twice=$(columns | awk -F, '$3 > 1' | wc -l)
((twice >= 2)) || fail "expected second attempts in two shards, found $twice rows"
"$subquad" compare whole out/merged --values || fail "the merged rows are others than the unsharded ones"
say "passed"
