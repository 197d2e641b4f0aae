#!/usr/bin/env bash
# A real Slurm on this one computer, for tests: a controller, nodes, accounting, fake GPUs and preemption, without
# systemd or containers. Everything lives in one private folder. README.md beside this file says how to use it.
set -euo pipefail

readonly PROGRAM=${0##*/}

usage() {
    cat <<TEXT
Usage: $PROGRAM COMMAND [--folder DIR] [--no-accounting] [--nodes N]

  up                  start the cluster, or what of it is not running; wait until every node is idle
  down                cancel every job, stop everything that belongs to the cluster, remove its folder
  status              what runs; exit status 0 only if all of it does
  env                 print the line that makes sbatch and the like use this cluster, for eval "\$($PROGRAM env)"
  node-kill NODE      lose a node: kill -9 of its slurmd, its slurmstepds and the jobs' processes
  node-start NODE     start that node again
  controller-stop     stop slurmctld, so that sbatch and squeue fail; jobs go on
  controller-start    start it again from its saved state
  controller-restart  both

  --folder DIR        the cluster's folder (\$BENCH_SLURM_FOLDER, else \${XDG_STATE_HOME:-~/.local/state}/bench-slurm)
  --no-accounting     up: without slurmdbd and its database, so that sacct fails as on many small clusters
  --nodes N           up: number of nodes, n1 to nN (2)
  --leave-tasks       node-kill: the jobs' own processes survive, as when only a node's daemons or network die

Environment variables that up reads when it makes a new cluster (defaults in brackets):
  BENCH_SLURM_CPUS [2], BENCH_SLURM_MEM_MB [10000], BENCH_SLURM_GPUS [2]     of each node; none of them need exist
  BENCH_SLURM_MAX_ARRAY [1001]       MaxArraySize: one more than the highest index of an array
  BENCH_SLURM_MAX_JOBS [50000]       MaxJobCount
  BENCH_SLURM_MIN_JOB_AGE [300]      seconds for which a finished job stays in the controller's memory
  BENCH_SLURM_KILL_WAIT [5]          seconds between SIGTERM and SIGKILL (scancel, time limit)
  BENCH_SLURM_GRACE [20]             seconds between the preemption signal and the preemption (partition low)
  BENCH_SLURM_REQUEUE_DELAY [10]     seconds for which a requeued job waits in BeginTime; real clusters: 120
  BENCH_SLURM_NODE_TIMEOUT [10]      seconds after which a silent node counts as lost; real clusters: 300
  BENCH_SLURM_USER_SIGNAL [yes]      no: preemption sends SIGTERM even where a job asked for a signal of its own
  BENCH_SLURM_PORT [by the folder]   first of the ports to try
  BENCH_SLURM_EXTRA [none]           further lines for slurm.conf
  BENCH_SLURM_WAIT [60]              seconds for which up waits
TEXT
}

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

# ---------------------------------------------------------------- arguments and settings

parse_arguments() {
    command=${1:-}
    [[ -n $command ]] && shift
    folder=${BENCH_SLURM_FOLDER:-${XDG_STATE_HOME:-${HOME:-/root}/.local/state}/bench-slurm}
    accounting=yes nodes=2 node='' leave_tasks=no
    given=''
    while (($#)); do
        case $1 in
        --folder | --nodes)
            (($# > 1)) || die "$1 needs a value"
            if [[ $1 == --folder ]]; then folder=$2; else nodes=$2 given+=" $1"; fi
            shift
            ;;
        --folder=*) folder=${1#*=} ;;
        --nodes=*) nodes=${1#*=} given+=" --nodes" ;;
        --no-accounting) accounting=no given+=" $1" ;;
        --leave-tasks) leave_tasks=yes ;;
        -*) die "unknown option $1; $PROGRAM help lists them" ;;
        *)
            [[ $command == node-* && -z $node ]] || die "unexpected argument '$1'; $PROGRAM help shows the usage"
            node=$1
            ;;
        esac
        shift
    done
    [[ -z $given || $command == up ]] || die "only up takes$given"
    [[ $command != node-* || -n $node ]] || die "$command needs the name of a node"
    [[ $leave_tasks == no || $command == node-kill ]] || die "only node-kill takes --leave-tasks"
    whole_number --nodes "$nodes" 1 64
}

whole_number() {  # name, value, least, most
    if [[ $2 =~ ^(0|[1-9][0-9]{0,6})$ ]] && (($2 >= $3 && $2 <= $4)); then return; fi
    die "$1 must be a whole number from $3 to $4, not '$2'"
}

# Slurm's files know neither quotes nor escapes, and the path of a Unix socket has at most 107 characters.
use_folder() {
    [[ -n $folder ]] || die "--folder needs a path"
    folder=$(realpath -m -- "$folder")
    [[ $folder =~ ^/[A-Za-z0-9/._+@-]+$ ]] ||
        die "Slurm's configuration cannot hold the folder's path '$folder': use letters, digits and . _ + @ - / only"
    ((${#folder} <= 80)) || die "the folder's path is too long for the sockets in it (80 characters at most): $folder"
    etc=$folder/etc log=$folder/log run=$folder/run
    marker=$folder/.bench-slurm
    # Slurm tells every job its cluster's name: a name of its own tells our jobs' processes from all others.
    cluster=bench_$(cksum <<<"$folder" | cut -d' ' -f1)
    export SLURM_CONF=$etc/slurm.conf
}

# A folder of somebody else's is neither filled nor removed.
is_ours() { [[ -f $marker && -O $marker ]]; }

need_cluster() {
    is_ours || die "no cluster in $folder; '$PROGRAM up' makes one"
    # shellcheck source=/dev/null
    source "$marker"
}

# Variables of a surrounding job or of another cluster would redirect our commands or change their output.
scrub_environment() {
    local name
    while read -r name; do
        case $name in
        SLURM* | SBATCH_* | SALLOC_* | SRUN_* | SACCT* | SQUEUE_* | SINFO_* | SCANCEL_* | SCONTROL_* | \
            MYSQL_* | MARIADB_* | MUNGE_*)
            unset "$name"
            ;;
        esac
    done < <(compgen -e)
    export LC_ALL=C
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
}

read_settings() {
    cpus=${BENCH_SLURM_CPUS:-2} mem=${BENCH_SLURM_MEM_MB:-10000} gpus=${BENCH_SLURM_GPUS:-2}
    max_array=${BENCH_SLURM_MAX_ARRAY:-1001} max_jobs=${BENCH_SLURM_MAX_JOBS:-50000}
    min_job_age=${BENCH_SLURM_MIN_JOB_AGE:-300} kill_wait=${BENCH_SLURM_KILL_WAIT:-5} grace=${BENCH_SLURM_GRACE:-20}
    requeue_delay=${BENCH_SLURM_REQUEUE_DELAY:-10} node_timeout=${BENCH_SLURM_NODE_TIMEOUT:-10}
    user_signal=${BENCH_SLURM_USER_SIGNAL:-yes}
    whole_number BENCH_SLURM_CPUS "$cpus" 1 1024
    whole_number BENCH_SLURM_MEM_MB "$mem" 100 9999999
    whole_number BENCH_SLURM_GPUS "$gpus" 0 64
    whole_number BENCH_SLURM_MAX_ARRAY "$max_array" 2 4000001
    whole_number BENCH_SLURM_MAX_JOBS "$max_jobs" 1 1000000
    whole_number BENCH_SLURM_MIN_JOB_AGE "$min_job_age" 2 86400
    whole_number BENCH_SLURM_KILL_WAIT "$kill_wait" 1 3600
    whole_number BENCH_SLURM_GRACE "$grace" 0 3600
    whole_number BENCH_SLURM_REQUEUE_DELAY "$requeue_delay" 5 3600
    whole_number BENCH_SLURM_NODE_TIMEOUT "$node_timeout" 2 3600
    [[ $user_signal == yes || $user_signal == no ]] ||
        die "BENCH_SLURM_USER_SIGNAL must be yes or no, not '$user_signal'"
    # slurmctld refuses to start otherwise, and says so only in its log.
    ((max_array <= max_jobs)) || die "BENCH_SLURM_MAX_ARRAY must not be above BENCH_SLURM_MAX_JOBS ($max_jobs)"
}

# ---------------------------------------------------------------- packages

missing_packages() {
    local pair
    local -a needed=(slurmctld:slurm-wlm slurmd:slurm-wlm sbatch:slurm-wlm munged:munge)
    if [[ $accounting == yes ]]; then
        needed+=(slurmdbd:slurmdbd mariadbd:mariadb-server-core mariadb-install-db:mariadb-server-core
            mariadb:mariadb-client-core)
    fi
    for pair in "${needed[@]}"; do
        command -v "${pair%:*}" >/dev/null || say "${pair#*:}"
    done | sort -u
}

need_packages() {
    local missing
    missing=$(missing_packages | xargs)
    if [[ -z $missing ]] || { ((EUID == 0)) && command -v apt-get >/dev/null; }; then return; fi
    die "Slurm is not complete on this computer, and only root on Debian or Ubuntu can install it. As root:
  apt-get install --no-install-recommends $missing"
}

# The -core packages hold the database's programs without a system-wide server to set up.
install_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    say "Installing Debian packages: ${missing[*]} (log: $log/apt.log)"
    {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    } >"$log/apt.log" 2>&1 </dev/null 9>&- || failed "the packages could not be installed" "$log/apt.log"
    hash -r
    [[ -z $(missing_packages) ]] || die "still missing after the installation: $(missing_packages | xargs)"
}

# ---------------------------------------------------------------- processes

# Every daemon carries the folder in its environment, so that a recycled process id is never taken for one of ours.
is_running() {  # pid file
    local pid=''
    [[ -f $1 ]] && read -r pid <"$1" || [[ -n $pid ]] || return 1
    [[ $pid =~ ^[0-9]+$ ]] && in_environment "$pid" "BENCH_SLURM_DAEMON_OF=$folder"
}

in_environment() { grep -zqxF -e "$2" "/proc/$1/environ" 2>/dev/null; }  # pid, NAME=value

# Descriptor 9 is the folder's lock: a daemon that inherited it would hold it for ever.
become_daemon() { exec env BENCH_SLURM_DAEMON_OF="$folder" "$@" 9>&- </dev/null; }

daemon() { (become_daemon "$@"); }  # for those that put themselves into the background

pid_of() { cat "$run/$1.pid" 2>/dev/null || true; }

daemons() {
    local i
    say munged
    if [[ $accounting == yes ]]; then printf '%s\n' mariadbd slurmdbd; fi
    say slurmctld
    for ((i = 1; i <= nodes; i++)); do say "slurmd.n$i"; done
}

wait_until() {  # seconds, command…
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

stopped() { ! is_running "$1"; }

stop_daemons() {  # names…; all at once, because each takes its time
    local name
    for name in "$@"; do
        if is_running "$run/$name.pid"; then kill -TERM "$(pid_of "$name")" 2>/dev/null || true; fi
    done
    for name in "$@"; do
        if ! wait_until 10 stopped "$run/$name.pid"; then kill -KILL "$(pid_of "$name")" 2>/dev/null || true; fi
    done
}

failed() {  # message, log…
    local file
    say "$PROGRAM: $1" >&2
    for file in "${@:2}"; do
        [[ -s $file ]] || continue
        say "--- the end of $file" >&2
        tail -n 15 "$file" >&2
    done
    say "'$PROGRAM down' clears what is left of it" >&2
    exit 1
}

started() {  # name, seconds, command that shows that it answers…
    local name=$1 seconds=$2
    shift 2
    if wait_until "$seconds" "$@"; then return; fi
    "$@" 2>&1 | tail -n 5 >&2 || true
    failed "$name did not start within $seconds s" "$log/$name.log" "$log/$name.out"
}

# ---------------------------------------------------------------- configuration

# State 06 is TIME_WAIT, which does not keep a server from listening.
taken_ports() {
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 != "06" && split($2, part, ":") == 2 { print part[2] }'
}

# A block of neighbouring ports below the range that outgoing connections use. Two clusters that start at the same
# moment have different folders, hence start their search at different places.
choose_ports() {
    local count=$((nodes + 2)) first taken port try
    if [[ -n ${BENCH_SLURM_PORT:-} ]]; then
        whole_number BENCH_SLURM_PORT "$BENCH_SLURM_PORT" 1024 $((65535 - count))
        first=$BENCH_SLURM_PORT
    else
        first=$((15000 + $(cksum <<<"$folder" | cut -d' ' -f1) % 1700 * 10))
    fi
    taken=" $(taken_ports | sort -u | tr '\n' ' ') "
    for ((try = 0; try < 200 && first + count <= 65536; try++, first += count)); do
        for ((port = first; port < first + count; port++)); do
            [[ $taken == *" $(printf %04X "$port") "* ]] && continue 2
        done
        base_port=$first
        return
    done
    die "found no $count free neighbouring ports below $first; name another beginning in BENCH_SLURM_PORT"
}

node_range() { if ((nodes == 1)); then say "${1}1"; else say "${1}[1-$nodes]"; fi; }

write_configuration() {
    local host user ports
    host=$(hostname -s) user=$(id -un)
    ports=$((base_port + 2))
    ((nodes == 1)) || ports="[$ports-$((base_port + nodes + 1))]"
    write_slurm_conf >"$SLURM_CONF"
    write_gres_conf >"$etc/gres.conf"
    if [[ $accounting == yes ]]; then
        (umask 077 && write_slurmdbd_conf >"$etc/slurmdbd.conf")
    fi
}

# Where Slurm's default suits tests, nothing is said. cred_expire also is the time that a requeued job waits in
# BeginTime. config_overrides lets nodes claim more than this computer has. The short intervals make a scheduling
# decision a matter of a second; on a real cluster they would overload the controller.
write_slurm_conf() {
    local signal='' gres=''
    [[ $user_signal == no ]] || signal=preempt_send_user_signal
    ((gpus == 0)) || gres=" Gres=gpu:$gpus"
    cat <<TEXT
ClusterName=$cluster
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$run/munge.socket,cred_expire=$requeue_delay
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny

StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd.%n.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((mem / cpus / 4))
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5

MaxArraySize=$max_array
MaxJobCount=$max_jobs
MinJobAge=$min_job_age
KillWait=$kill_wait
SlurmdTimeout=$node_timeout
ReturnToService=2
SlurmdParameters=config_overrides
${signal:+SlurmctldParameters=$signal}

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

TEXT
    if [[ $accounting == yes ]]; then
        cat <<TEXT
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((base_port + 1))
AccountingStoragePass=$run/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=limits,qos
TEXT
    fi
    cat <<TEXT
GresTypes=gpu
NodeName=$(node_range n) NodeHostname=$host NodeAddr=127.0.0.1 Port=$ports CPUs=$cpus RealMemory=$mem$gres
PartitionName=DEFAULT Nodes=$(node_range n) MaxTime=INFINITE State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace
PartitionName=high PriorityTier=10 PreemptMode=OFF
${BENCH_SLURM_EXTRA:-}
TEXT
}

# Slurm wants a device file for each GPU and takes the GPU's number from its name, but never opens it: links to a
# device that exists everywhere serve, and need no root as mknod does.
write_gres_conf() {
    local i files=gpu0
    ((gpus)) || return 0
    ((gpus == 1)) || files="gpu[0-$((gpus - 1))]"
    for ((i = 0; i < gpus; i++)); do ln -s /dev/null "$folder/dev/gpu$i"; done
    say "NodeName=$(node_range n) Name=gpu File=$folder/dev/$files"
}

# No port and no password: the database listens on a socket in the folder and knows its user by the system's word.
write_slurmdbd_conf() {
    cat <<TEXT
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((base_port + 1))
SlurmUser=$user
AuthType=auth/munge
AuthInfo=socket=$run/munge.socket
CommunicationParameters=NoInAddrAny
LogFile=$log/slurmdbd.log
PidFile=$run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$user
StorageLoc=slurm_acct_db
TEXT
}

make_folder() {
    if [[ -e $folder ]]; then
        [[ -d $folder && -O $folder && -z $(ls -A -- "$folder") ]] ||
            die "$folder exists and is no cluster of yours: name a new or empty folder"
    fi
    # Private: whoever reads the munge key may submit jobs in any user's name.
    (umask 077 && mkdir -p -- "$folder")
    chmod 700 "$folder"
    : >"$marker"
    mkdir -p "$log"
}

# The settings that later commands need are kept in the marker; while it is empty, the cluster is not complete.
new_cluster() {
    local i
    choose_ports
    # An interrupted attempt may have left a part of this.
    rm -rf -- "$etc" "${folder:?}/dev"
    mkdir -p "$etc" "$log" "$run" "$folder/dev" "$folder/state"
    for ((i = 1; i <= nodes; i++)); do mkdir -p "$folder/spool/n$i"; done
    head -c 1024 /dev/urandom >"$etc/munge.key"
    chmod 400 "$etc/munge.key"
    write_configuration
    say "accounting=$accounting nodes=$nodes" >"$marker.new"
    mv "$marker.new" "$marker"
}

# ---------------------------------------------------------------- starting

start_all() {
    local i
    start_munged
    if [[ $accounting == yes ]]; then
        start_mariadbd
        start_slurmdbd
    fi
    start_slurmctld
    for ((i = 1; i <= nodes; i++)); do start_slurmd "n$i"; done
}

# --force: munged wants every user to reach its socket, and this folder is private on purpose.
start_munged() {
    is_running "$run/munged.pid" && return
    daemon munged --force --key-file="$etc/munge.key" --socket="$run/munge.socket" --pid-file="$run/munged.pid" \
        --log-file="$log/munged.log" --seed-file="$folder/state/munge.seed" --num-threads=2 >>"$log/munged.out" 2>&1 ||
        failed "munged could not start" "$log/munged.log" "$log/munged.out"
    started munged 10 munge --socket="$run/munge.socket" --no-input
}

# What a power cut would do to this database is nobody's loss, so it need not wait for the disk.
start_mariadbd() {
    is_running "$run/mariadbd.pid" && return
    [[ -e $folder/db.complete ]] || make_database
    become_daemon setsid mariadbd --no-defaults --user="$(id -un)" --datadir="$folder/db" --socket="$run/db.socket" \
        --pid-file="$run/mariadbd.pid" --skip-networking --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync --innodb-doublewrite=0 \
        --performance-schema=0 --tmpdir="$run" --log-error="$log/mariadbd.log" >>"$log/mariadbd.out" 2>&1 &
    started mariadbd 30 ask_database 'select 1'
}

make_database() {
    rm -rf "$folder/db"
    # Temporary tables in a folder of its own: servers name them by their process ids, which containers repeat.
    TMPDIR="$run" mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$folder/db" --skip-test-db --skip-name-resolve \
        --auth-root-authentication-method=socket --auth-root-socket-user="$(id -un)" \
        --innodb-flush-method=nosync --innodb-doublewrite=0 --innodb-log-file-size=8M \
        >"$log/mariadbd.out" 2>&1 </dev/null 9>&- || failed "the database could not be made" "$log/mariadbd.out"
    : >"$folder/db.complete"
}

ask_database() { mariadb --no-defaults --socket="$run/db.socket" --batch --execute "$1"; }

# MYSQL_UNIX_PORT is the only way to tell slurmdbd of a socket elsewhere than the system's.
start_slurmdbd() {
    is_running "$run/slurmdbd.pid" && return
    daemon env MYSQL_UNIX_PORT="$run/db.socket" slurmdbd >>"$log/slurmdbd.out" 2>&1 ||
        failed "slurmdbd could not start" "$log/slurmdbd.log" "$log/slurmdbd.out"
    started slurmdbd 30 sacctmgr --noheader list cluster
    # Before the controller starts, which otherwise runs unknown to the accounting.
    [[ -n $(sacctmgr --noheader list cluster "$cluster") ]] ||
        sacctmgr --immediate add cluster "$cluster" >>"$log/slurmdbd.out" 2>&1 ||
        failed "the cluster could not be added to the accounting" "$log/slurmdbd.log" "$log/slurmdbd.out"
    # Limits are enforced, which begins with that of who may run jobs at all; root may from the beginning.
    [[ -n $(sacctmgr --noheader list associations cluster="$cluster" user="$(id -un)") ]] ||
        sacctmgr --immediate add user "$(id -un)" account=root cluster="$cluster" >>"$log/slurmdbd.out" 2>&1 ||
        failed "the user could not be added to the accounting" "$log/slurmdbd.log" "$log/slurmdbd.out"
}

start_slurmctld() {
    is_running "$run/slurmctld.pid" && return
    daemon slurmctld -f "$SLURM_CONF" >>"$log/slurmctld.out" 2>&1 ||
        failed "slurmctld could not start" "$log/slurmctld.log" "$log/slurmctld.out"
    started slurmctld 30 scontrol ping
}

start_slurmd() {  # node
    is_running "$run/slurmd.$1.pid" && return
    daemon slurmd -f "$SLURM_CONF" -N "$1" >>"$log/slurmd.$1.out" 2>&1 ||
        failed "slurmd of $1 could not start" "$log/slurmd.$1.log" "$log/slurmd.$1.out"
}

# A node of a cluster that was up before may be busy: answering is enough there.
nodes_ready() {
    local ready
    ready=$(sinfo --noheader --Node --partition=main --format=%T | grep -cE '^(idle|mixed|allocated|completing)$')
    ((ready == nodes))
}

# ---------------------------------------------------------------- commands

up() {
    if is_ours && [[ -s $marker ]]; then need_cluster; else read_settings; fi
    need_packages
    is_ours || make_folder
    lock
    install_packages
    # Only now is it certain that no other up has just made it.
    if [[ -s $marker ]]; then keep_settings; else new_cluster; fi
    start_all
    wait_until "${BENCH_SLURM_WAIT:-60}" nodes_ready || {
        sinfo --Node --long >&2 || true
        failed "not every node is ready after ${BENCH_SLURM_WAIT:-60} s" "$log/slurmctld.log" "$log"/slurmd.*.log
    }
    say "Slurm runs in $folder with $nodes node(s), accounting: $accounting. To use it:"
    print_environment
}

keep_settings() {
    need_cluster
    [[ -z $given ]] ||
        say "Note: this cluster has $nodes node(s), accounting: $accounting; to change that, 'down' it first." >&2
}

lock() {
    exec 9>>"$folder/lock"
    flock --wait 120 9 || die "another $PROGRAM is at work in $folder"
}

print_environment() { say "export SLURM_CONF=$SLURM_CONF"; }

show_status() {
    local name all=0
    is_ours || {
        say "no cluster in $folder"
        return 1
    }
    need_cluster
    say "folder $folder"
    for name in $(daemons); do
        if is_running "$run/$name.pid"; then
            say "$name runs, process $(pid_of "$name")"
        else
            say "$name does not run"
            all=1
        fi
    done
    if is_running "$run/slurmctld.pid"; then
        sinfo --Node --sort=+N,+P --format='%8N %10P %10T %5c %8m %G' || all=1
        say "jobs: $(squeue --noheader --array --format=%T | sort | uniq -c | awk '{ print $2, $1 }' | xargs)"
    fi
    return $all
}

down() {
    if ! is_ours; then
        [[ ! -e $folder ]] || die "$folder is no cluster of yours; nothing was touched"
        say "no cluster in $folder"
        return
    fi
    lock
    if [[ -s $marker ]]; then need_cluster; else nodes=0; fi
    mapfile -t names < <(daemons)
    # The controller first, so that no further job starts.
    stop_daemons slurmctld
    kill_jobs
    stop_daemons "${names[@]}"
    kill_left_over
    # A process that just ended may have written its last line after the folder was listed.
    rm -rf -- "$folder" || { sleep 1 && rm -rf -- "$folder"; }
    say "stopped, and removed $folder"
}

# Everything at once and without a last word: scancel would wait for KillWait and miss what left its job's process tree.
kill_jobs() {
    local -a victims
    mapfile -t victims < <(job_processes '')
    ((${#victims[@]} == 0)) || kill -KILL "${victims[@]}" 2>/dev/null || true
}

kill_left_over() {
    local -a left
    local try
    for ((try = 0; try < 20; try++)); do
        mapfile -t left < <(steps ''; with_environment "BENCH_SLURM_DAEMON_OF=$folder" "SLURM_CLUSTER_NAME=$cluster")
        ((${#left[@]})) || return 0
        kill -KILL "${left[@]}" 2>/dev/null || true
        sleep 0.1
    done
    die "these processes cannot be ended: ${left[*]}"
}

with_environment() {  # NAME=value…; processes that have one of them
    local setting
    local -a patterns=()
    for setting in "$@"; do patterns+=(-e "$setting"); done
    { grep -lzxsF "${patterns[@]}" /proc/[0-9]*/environ || true; } | cut -d/ -f3
}

# A slurmstepd overwrites its environment with its title; what tells it from others is the log that it holds open.
steps() {  # node, or nothing for all
    local pid
    { find /proc/[0-9]*/fd -lname "$log/slurmd.${1:-*}.log" 2>/dev/null || true; } | cut -d/ -f3 | sort -u |
        while read -r pid; do
            if [[ $(readlink "/proc/$pid/exe") == */slurmstepd* ]]; then say "$pid"; fi
        done
}

descendants() {  # pids…
    { grep -s '^PPid:' /proc/[0-9]*/status || true; } | awk -F'[/:\t]+' -v roots="$*" '
        BEGIN { split(roots, list, " "); for (i in list) found[list[i]] = 1 }
        { parent[$3] = $6 }
        END {
            do {
                more = 0
                for (pid in parent)
                    if (!(pid in found) && parent[pid] in found) { found[pid] = more = 1; print pid }
            } while (more)
        }'
}

# The steps, what descends from them, and what left their process tree but still carries the job's environment.
job_processes() {  # node, or nothing for all
    local roots
    roots=$(steps "$1" | xargs)
    {
        tr ' ' '\n' <<<"$roots"
        descendants "$roots"
        if [[ -z $1 ]]; then
            with_environment "SLURM_CLUSTER_NAME=$cluster"
        else
            comm -12 <(with_environment "SLURM_CLUSTER_NAME=$cluster" | sort) \
                <(with_environment "SLURMD_NODENAME=$1" | sort)
        fi
    } | sed '/^$/d' | sort -u
}

node_kill() {
    local -a victims
    known_node
    is_running "$run/slurmd.$node.pid" || die "slurmd of $node does not run"
    if [[ $leave_tasks == yes ]]; then
        mapfile -t victims < <(steps "$node")
    else
        mapfile -t victims < <(job_processes "$node")
    fi
    kill -KILL "$(pid_of "slurmd.$node")" "${victims[@]}" 2>/dev/null || true
    wait_until 5 stopped "$run/slurmd.$node.pid" || die "slurmd of $node did not die"
    rm -f "$run/slurmd.$node.pid"
    say "killed slurmd of $node and ${#victims[@]} processes of its jobs"
}

node_start() {
    local before
    known_node
    if is_running "$run/slurmd.$node.pid"; then
        say "$node runs already"
        return
    fi
    before=$(registered)
    start_slurmd "$node"
    wait_until 60 registered_anew "$before" ||
        failed "$node did not register within 60 s" "$log/slurmd.$node.log" "$log/slurmctld.log"
    say "$node runs"
}

known_node() { daemons | grep -qxF "slurmd.$node" || die "no node '$node' in this cluster: it has n1 to n$nodes"; }

registered() { scontrol show node "$node" | grep -o 'SlurmdStartTime=[^ ]*' || true; }

registered_anew() {  # what registered said before
    [[ $(registered) != "$1" ]] &&
        sinfo --noheader --nodes="$node" --format=%T | grep -qE '^(idle|mixed|allocated|completing)$'
}

controller_stop() {
    stop_daemons slurmctld
    say "slurmctld stopped"
}

controller_start() {
    start_slurmctld
    say "slurmctld runs"
}

locked() {  # function
    need_cluster
    lock
    "$@"
}

main() {
    parse_arguments "$@"
    scrub_environment
    case $command in
    help | -h | --help | '')
        usage
        [[ -n $command ]] || exit 2
        return
        ;;
    esac
    use_folder
    case $command in
    up) up ;;
    down) down ;;
    status) show_status ;;
    env)
        need_cluster
        print_environment
        ;;
    node-kill) locked node_kill ;;
    node-start) locked node_start ;;
    controller-stop) locked controller_stop ;;
    controller-start) locked controller_start ;;
    controller-restart)
        locked controller_stop
        controller_start
        ;;
    *) die "unknown command '$command'; $PROGRAM help lists them" ;;
    esac
}

main "$@"
