# ingot-zoo slurm against a real slurmctld and two slurmd of this machine: shared statistics first,
# one task a product, a node killed in the middle, its task requeued and finished on the other; what
# became of jobs that left the queue, from accounting (slurmdbd and MariaDB, where they are); a GPU for
# products on devices.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo
[ "$(id -u)" = 0 ] || skip "only root runs slurmd here"
export PATH="$PATH:/usr/sbin:/sbin"
need munged slurmctld slurmd sbatch squeue scontrol

here=$PWD
host=$(hostname -s)
port=$((20000 + $$ % 20000))
mkdir state spool log munge
chmod 700 munge
dd if=/dev/urandom of=munge/key bs=1024 count=1 2>/dev/null
chmod 600 munge/key
cat >slurm.conf <<END
ClusterName=zoo
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket
CredType=cred/munge
SlurmctldPort=$port
SlurmctldPidFile=$here/ctld.pid
SlurmdPidFile=$here/%n.pid
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool/%n
SlurmctldLogFile=$here/log/ctld
SlurmdLogFile=$here/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdTimeout=6
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobRequeue=1
MinJobAge=10
GresTypes=gpu
NodeName=z1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=8000 Gres=gpu:1
NodeName=z2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=8000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
END
touch card0
echo "NodeName=z[1-2] Name=gpu File=$here/card0" >gres.conf
export SLURM_CONF="$here/slurm.conf"

# Whatever runs on a node of ours, or is one: their environment names our configuration.
processes_of() {
    grep -lazF "$1" /proc/[0-9]*/environ 2>/dev/null | sed -n 's,/proc/\([0-9]*\)/.*,\1,p'
}
end_all() {
    for file in "$here"/z?.pid "$here"/ctld.pid "$here"/dbd.pid "$here"/db.pid "$here"/munge/pid; do
        [ ! -e "$file" ] || kill -9 "$(cat "$file")" 2>/dev/null || true
    done
}
trap end_all EXIT

munged --force --key-file="$here/munge/key" --socket="$here/munge/socket" \
    --pid-file="$here/munge/pid" --log-file="$here/log/munge" --seed-file="$here/munge/seed" \
    2>log/munged.err || skip "munged does not start: $(cat log/munged.err)"

# Accounting in a database of ours.
start_accounting() {
    command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null &&
        command -v mariadb-install-db >/dev/null || {
        # not in setup: no test is worth a database server on somebody's machine
        echo "install slurmdbd and mariadb-server to test it" >log/dbd.out
        return 1
    }
    mariadb-install-db --no-defaults --user=root --datadir="$here/db" --skip-test-db \
        --auth-root-authentication-method=normal >log/db.install 2>&1 || return 1
    mariadbd --no-defaults --user=root --datadir="$here/db" --socket="$here/db.sock" \
        --bind-address=127.0.0.1 --port=$((port + 4)) --pid-file="$here/db.pid" \
        --innodb-buffer-pool-size=64M >log/db 2>&1 </dev/null &
    waited=0
    until mariadb --no-defaults --user=root --socket="$here/db.sock" -e \
        "CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'zoo'; GRANT ALL ON *.* TO 'slurm'@'127.0.0.1'" \
        2>log/db.user; do
        waited=$((waited + 1))
        [ $waited -lt 30 ] || return 1
        sleep 1
    done
    cat >slurmdbd.conf <<END
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 3))
SlurmUser=root
LogFile=$here/log/dbd
PidFile=$here/dbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 4))
StorageUser=slurm
StoragePass=zoo
StorageLoc=zoo
END
    chmod 600 slurmdbd.conf
    cat >>slurm.conf <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 3))
AccountingStoragePass=$here/munge/socket
END
    slurmdbd >log/dbd.out 2>&1 || return 1
    waited=0
    until sacctmgr -i add cluster zoo >log/sacctmgr 2>&1; do
        waited=$((waited + 1))
        [ $waited -lt 20 ] || return 1
        sleep 1
    done
}
has_accounting=yes
if ! start_accounting; then
    has_accounting=
    echo "SKIP: no accounting here: $(cat log/dbd.out log/db.user log/sacctmgr 2>/dev/null | tail -3)"
    sed -i '/^AccountingStorage/d' slurm.conf
    echo "AccountingStorageType=accounting_storage/none" >>slurm.conf
fi
slurmctld -f "$SLURM_CONF" || skip "slurmctld does not start: $(tail -3 log/ctld)"
for node in z1 z2; do
    slurmd -N $node -f "$SLURM_CONF" || skip "slurmd does not start: $(tail -3 log/$node)"
done
waited=0
until [ "$(sinfo -h -N -o %t | grep -c idle)" = 2 ]; do
    waited=$((waited + 1))
    [ $waited -lt 30 ] || skip "the nodes do not come up: $(sinfo -h -N; tail -3 log/z1)"
    sleep 1
done

cat >zoo.json <<END
{"shelf": "shelf", "models": {"demo": "$MODEL"},
 "texts": {"cal": "$MODEL/calibration.txt", "eval": "$MODEL/evaluation.txt"},
 "recipes": {"rtn": {"defaults": {"method": "rtn"}},
  "w4": {"samples": 2, "seq_len": 128},
  "w3": {"defaults": {"bits": 3}, "samples": 2, "seq_len": 128},
  "long": {"defaults": {"bits": 3}, "samples": 32}},
 "defaults": {"evaluation": "eval", "windows": 1, "calibration": "cal"},
 "products": [{"model": "demo", "recipes": ["long", "rtn"]},
  {"model": "demo", "recipes": ["w4", "w3"], "statistics": true}],
 "devices": ["cpu"], "limits": {"threads": 1}, "slurm": ["--partition=all"]}
END

expect_exit 0 ingot-zoo slurm zoo.json
grep -q '4 products submitted' out || fail "$(cat out)"
grep -q 'after statistics of job' out || fail "no job waits for the statistics: $(cat out)"
expect_exit 2 ingot-zoo status zoo.json
grep -qE 'demo/(w3|long) .*(queued|running)' out || fail "status does not ask Slurm: $(cat out)"
expect_exit 0 ingot-zoo slurm zoo.json
grep -q '^0 products submitted' out || fail "what is queued was submitted again: $(cat out)"

# The node of the long conversion dies, with all that runs there, once a block is done: that it runs is
# looked at often, and it has text enough for some seconds, so that its end is not first.
waited=0
log=shelf/.ingot-zoo/logs/demo@long.log
until grep -qs '^block 1/' $log && [ -e shelf/demo/long.ingot.resume ]; do
    waited=$((waited + 1))
    [ $waited -lt 450 ] || fail "the long conversion does not begin: $(squeue; cat $log)"
    sleep 0.2
done
node=$(squeue -h -r -n ingot-zoo -o '%K|%N|%T' -t R | sed -n 's/^0|\(z[12]\)|.*/\1/p' | head -1)
[ -n "$node" ] || fail "where does it run? $(squeue -r)"
kill -9 "$(cat "$node.pid")"
victims=""
for process in $(processes_of "SLURMD_NODENAME=$node"); do
    if grep -qazF "SLURM_CONF=$SLURM_CONF" "/proc/$process/environ" 2>/dev/null; then
        victims="$victims $process"
    fi
done
# The step's keeper first: it must not report the end of what it keeps.
for process in $victims; do
    keeper=$(ps -o ppid= -p "$process" | tr -d ' ')
    case $(cat "/proc/${keeper:-0}/comm" 2>/dev/null || true) in
        slurmstepd*) kill -9 "$keeper" 2>/dev/null || true ;;
    esac
done
for process in $victims; do
    kill -9 "$process" 2>/dev/null || true
done
[ ! -e shelf/demo/long.ingot ] || fail "it was finished before its node died"
scontrol update NodeName="$node" State=DOWN Reason=killed

waited=0
until ingot-zoo status zoo.json >out 2>err; do
    waited=$((waited + 1))
    [ $waited -lt 150 ] || fail "not finished: $(cat out; squeue -r; sinfo -h -N; tail -3 log/ctld)"
    # Slurm lets two minutes pass before a requeued job; the test does not.
    squeue -h -r -t PD -o '%i %r' | while read -r job reason; do
        [ "$reason" != BeginTime ] || scontrol update JobId="$job" StartTime=now || true
    done
    sleep 1
done
grep -q '4 products: 4 done' out || fail "$(cat out)"
[ "$(ls shelf/.ingot-zoo/statistics/*.calib | wc -l)" = 1 ] || fail "statistics were not shared"
grep -c 'demo/long: converting' shelf/.ingot-zoo/slurm/*.out | grep -q ':2$' ||
    fail "the long conversion was not requeued"
[ "$(grep -c '^block 1/4  error' $log)" = 1 ] || fail "the requeued task began from the beginning"
expect_exit 0 ingot-zoo verify zoo.json

wait_until_gone() { # JOB leaves the queue
    waited=0
    while squeue -h -t all -j "$1" -o %T 2>/dev/null | grep -q .; do
        waited=$((waited + 1))
        [ $waited -lt 120 ] || fail "the job does not leave the queue: $(squeue -t all)"
        sleep 1
    done
}

# A product on devices asks for a GPU; a task that cannot make it says why, also when it has left the
# queue, which then only accounting knows.
sed 's/"devices": \["cpu"\]/"devices": ["cuda:0"]/; s/"shelf": "shelf"/"shelf": "cards"/' zoo.json >cards.json
sed -i 's/"recipes": \["long", "rtn"\]/"recipes": ["rtn"]/; /"statistics": true/d; s/\["rtn"\]},/["rtn"]}],/' cards.json
expect_exit 0 ingot-zoo slurm cards.json
grep -q 'one GPU' out || fail "$(cat out)"
job=$(sed -n 's/^job \([0-9]*\):.*/\1/p' out)
scontrol show job "$job" >shown
grep -qE 'TresPerNode=gres[:/]gpu:1' shown || fail "no GPU was asked for: $(cat shown)"
grep -q -- '--device cuda$' cards/.ingot-zoo/slurm/*.sh || fail "the task does not use it"
wait_until_gone "$job"
code=0
ingot-zoo status cards.json --json >out 2>err || code=$?
if [ -e /dev/nvidiactl ]; then
    wanted=COMPLETED
else
    wanted=FAILED
    grep -q 'no NVIDIA driver' out || fail "status does not say why: $(cat out)"
fi
if [ -n "$has_accounting" ]; then
    grep -q "\"state\": \"$wanted\"" out || fail "accounting was not asked: $(cat out; sacct -n -P -X -o JobID,State)"
    sacct -n -P -X -j "$job" -o JobID,State,NodeList,ExitCode
    # One that was cancelled, and left no record of its own.
    scontrol update PartitionName=all State=DOWN
    rm -r cards
    expect_exit 0 ingot-zoo slurm cards.json
    job=$(sed -n 's/^job \([0-9]*\):.*/\1/p' out)
    scancel "$job"
    wait_until_gone "$job"
    expect_exit 2 ingot-zoo status cards.json
    grep -q 'demo/rtn .*CANCELLED' out || fail "a cancelled task is not told: $(cat out)"
fi
echo "node $node was killed; its task was finished on the other"
