#!/usr/bin/env bash
# slurm_up.sh DIRECTORY: a one-node Slurm of this machine, as root, with everything that it needs in
# one new directory (short: sockets have about 108 bytes of path). Nothing of the system's own Slurm
# or munge is touched. Clients find it by SLURM_CONF=DIRECTORY/slurm.conf. Ends with status 77 where
# the packages slurm-wlm and munge are not there or the daemons do not start. slurm_down.sh stops it.
set -euo pipefail
D=$1
for program in slurmctld slurmd sbatch munged munge; do
  command -v "$program" >/dev/null || { echo "skipped: no $program (packages slurm-wlm, munge)"; exit 77; }
done
((EUID == 0)) || { echo "skipped: the daemons are started as root"; exit 77; }

mkdir -m 755 "$D" "$D/munge"
mkdir -m 700 "$D/state" "$D/spool"
mkdir "$D/log"
host=$(hostname -s)
head -c 1024 /dev/urandom >"$D/munge/key"
chmod 400 "$D/munge/key"
munged --key-file="$D/munge/key" --socket="$D/munge/s" --pid-file="$D/munge/pid" \
  --log-file="$D/munge/log" --seed-file="$D/munge/seed"
timeout 10 munge -S "$D/munge/s" -n | timeout 10 unmunge -S "$D/munge/s" >/dev/null

# Ports of this instance: two on one machine must not meet.
port=$((20000 + $$ % 3000 * 10))
echo CgroupAutomount=no >"$D/cgroup.conf"
# slurm.conf takes one key a line. cred_expire=5: a task that was requeued starts again after about
# six seconds instead of two minutes.
tr ' ' '\n' >"$D/slurm.conf" <<X
ClusterName=subquad SlurmctldHost=$host(127.0.0.1) SlurmUser=root SlurmdUser=root AuthType=auth/munge
CredType=cred/munge AuthInfo=socket=$D/munge/s,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny SlurmctldPort=$port SlurmdPort=$((port + 1))
StateSaveLocation=$D/state SlurmdSpoolDir=$D/spool SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid SlurmctldLogFile=$D/log/slurmctld.log SlurmdLogFile=$D/log/slurmd.log
MailProg=/bin/true MpiDefault=none SwitchType=switch/none ProctrackType=proctrack/pgid TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none AccountingStorageType=accounting_storage/none JobCompType=jobcomp/filetxt
JobCompLoc=$D/jobcomp.log SelectType=select/cons_tres SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=1
MaxArraySize=1001 JobRequeue=1 KillWait=5 ReturnToService=2 SlurmctldTimeout=30 SlurmdTimeout=30
DefMemPerCPU=256
X
megabytes=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
cat >>"$D/slurm.conf" <<X
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$((megabytes > 2048 ? 2048 : megabytes / 2)) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=60 DefaultTime=10
X
export SLURM_CONF=$D/slurm.conf
# What keeps the daemons from running (no cgroups in a container, a host without an address) is this
# system's, and is said.
unable() {
  echo "skipped: Slurm does not start here: $(grep -h 'error:' "$D"/log/slurm{ctld,d}.log | tail -n 1)"
  exit 77
}
slurmctld || unable
slurmd || unable
end=$((SECONDS + 30))
while ((SECONDS < end)); do
  [[ $(timeout 2 sinfo -h -o %T 2>/dev/null) == idle ]] && exit 0
  sleep 0.1
done
unable
