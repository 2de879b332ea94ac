#!/bin/sh
# Start a SLURM of two nodes on this machine, as root, for the tests that need one:
#   apt-get install munge slurmctld slurmd slurm-client && tests/engine/start_slurm.sh DIR
#   SLURM_CONF=DIR/slurm.conf pytest tests/engine/test_slurm.py tests/training/test_nodes.py
# Stop it with: kill $(cat DIR/*.pid)
set -eu
dir=$(mkdir -p "$1/state" && cd "$1" && pwd)
host=$(hostname -s)
mkdir -p /run/munge && chown munge:munge /run/munge
pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged
cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
SlurmdSpoolDir=$dir/spool-%n
StateSaveLocation=$dir/state
NodeName=one NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=$(nproc) State=UNKNOWN
NodeName=two NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=one,two Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$dir/slurm.conf"
slurmctld
slurmd -N one
slurmd -N two
for _ in 1 2 3 4 5 6 7 8 9 10; do
  sinfo --noheader 2>/dev/null | grep -q idle && exit 0
  sleep 1
done
echo "SLURM did not start: see $dir/*.log" >&2
exit 1
