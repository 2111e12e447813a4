#!/usr/bin/env bash
# slurm_down.sh DIRECTORY: stops what slurm_up.sh started there and removes the directory. Works on
# a half-started one too.
D=$1
export SLURM_CONF=$D/slurm.conf
if [[ -e $D/slurmctld.pid ]]; then
  ids=$(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
  [[ -z $ids ]] || timeout 5 scancel $ids 2>/dev/null
  for _ in $(seq 50); do
    [[ -z $(timeout 2 squeue -h 2>/dev/null) ]] && break
    sleep 0.1
  done
fi
stop() {  # stop PIDFILE
  local pid
  pid=$(cat "$1" 2>/dev/null) || return
  kill -TERM "$pid" 2>/dev/null || return
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || return
    sleep 0.1
  done
  kill -KILL "$pid"
}
stop "$D/slurmd.pid"
stop "$D/slurmctld.pid"
stop "$D/munge/pid"
rm -rf -- "$D"
