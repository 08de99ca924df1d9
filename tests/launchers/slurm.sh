#!/usr/bin/env bash
# Starts SLURM on this machine, trains with `srun -n 2`, and stops SLURM again.
#   slurm.sh PYTHON CONFIG FOLDER
# Needs root and the packages slurm-wlm and munge.
set -euo pipefail
python=$1 config=$2 folder=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
state=$(mktemp -d)
host=$(hostname -s)
export SLURM_CONF=$state/slurm.conf
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES State=UP OverSubscribe=FORCE:4
END
stop() {
  for name in slurmd slurmctld; do
    [ ! -e "$state/$name.pid" ] || kill "$(cat "$state/$name.pid")" 2>/dev/null || true
  done
  [ -z "${munged:-}" ] || kill "$munged" 2>/dev/null || true
}
trap stop EXIT
mkdir -p "$state/ctld" "$state/d" /run/munge /var/log/munge
if ! munge -n </dev/null >/dev/null 2>&1; then
  [ -e /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
  chown munge: /run/munge /var/log/munge /etc/munge/munge.key
  chmod 400 /etc/munge/munge.key
  munged_log=$state/munged.log
  runuser -u munge -- munged --foreground >"$munged_log" 2>&1 &
  munged=$!
  for _ in $(seq 50); do munge -n </dev/null >/dev/null 2>&1 && break || sleep 0.1; done
fi
slurmctld
slurmd
for _ in $(seq 100); do sinfo -h -o %T 2>/dev/null | grep -q idle && break || sleep 0.2; done
sinfo

train() { # tasks, arguments...
  local n=$1
  shift
  srun -n "$n" --cpus-per-task=1 "$python" "$root/run_train.py" --config "$config" --workdir "$folder/run" "$@"
}
cd "$folder"
train 2 --distributed
if train 2; then
  echo "two processes that do not know of each other were not rejected" >&2
  exit 1
fi
