#!/usr/bin/env bash
# A Slurm of this machine alone, for test_slurm.py: `slurm.sh up DIR`, `slurm.sh down DIR`.
# As root, in a container or a machine of its own: it writes below /etc/slurm.
#   apt-get install --no-install-recommends slurm-wlm munge
# No systemd, no cgroups, no accounting. Memory is watched each second; the two GPUs are only counted.
set -euo pipefail
command=${1:?up or down} top=$(realpath -m "${2:?a directory}")

until_true() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; false; }
idle() { sinfo --noheader --format %T | grep -qE 'idle|mixed'; }

down() {
    for name in slurmd slurmctld munged; do
        [ -s "$top/$name.pid" ] || continue
        pid=$(cat "$top/$name.pid")
        kill "$pid" || true
        until_true [ ! -e "/proc/$pid" ] || kill -9 "$pid"
    done
    for name in slurm gres cgroup; do
        [ "$(readlink "/etc/slurm/$name.conf")" != "$top/$name.conf" ] || rm "/etc/slurm/$name.conf"
    done
}

up() {
    host=$(hostname -s) cpus=$(nproc)
    memory=$(awk '/MemTotal/ {print int($2 / 1024) - 1024}' /proc/meminfo)
    install -d -m 755 "$top" "$top/state" "$top/spool"
    if ! munge -n >/dev/null 2>&1; then
        [ -s /etc/munge/munge.key ] || mungekey --create
        chown munge: /etc/munge/munge.key
        install -d -o munge -g munge /run/munge /var/log/munge /var/lib/munge
        setpriv --reuid=munge --regid=munge --clear-groups munged
        until_true munge -n
        cp /run/munge/munged.pid "$top/munged.pid"
    fi
    for i in 0 1; do [ -e "$top/gpu$i" ] || mknod "$top/gpu$i" c 1 3; done
    cat >"$top/slurm.conf" <<END
ClusterName=alone
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
StateSaveLocation=$top/state
SlurmdSpoolDir=$top/spool
SlurmctldPidFile=$top/slurmctld.pid
SlurmdPidFile=$top/slurmd.pid
SlurmctldLogFile=$top/slurmctld.log
SlurmdLogFile=$top/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=3
SchedulerParameters=bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2
PartitionName=cpu Nodes=$host Default=YES
END
    echo "NodeName=$host Name=gpu File=$top/gpu[0-1]" >"$top/gres.conf"
    # slurmd loads a plugin for cgroups even where none is used
    version=v2 && [ -d /sys/fs/cgroup/freezer ] && version=v1
    printf 'CgroupPlugin=cgroup/%s\nCgroupAutomount=no\n' $version >"$top/cgroup.conf"
    # not SLURM_CONF: a job's own srun does not see it
    for name in slurm gres cgroup; do ln -sf "$top/$name.conf" "/etc/slurm/$name.conf"; done
    setsid slurmctld -c </dev/null
    until_true scontrol ping
    setsid slurmd -N "$host" </dev/null
    until_true idle
    sinfo
}

$command
