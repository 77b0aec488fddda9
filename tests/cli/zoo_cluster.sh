# What status takes from squeue and sacct: stubs that print what the real ones (Slurm 22.05) print;
# tests/fault/zoo_slurm.sh asks these themselves.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo

mkdir bin
cat >bin/sacct <<'END'
#!/bin/sh
[ -e no-accounting ] && { echo "Slurm accounting storage is disabled" >&2; exit 1; }
cat <<'LINES'
11|RUNNING|z1|0:0
12_[0-1,3%2]|CANCELLED by 0|None assigned|0:0
12_2|FAILED|z2|2:0
12_4|NODE_FAIL|z1|0:0
13_0|TIMEOUT|z1|0:0
13_[1,...]|PENDING|None assigned|0:0
99_0|FAILED|z1|1:0
12_77|FAILED|z1|1:0
12_[x]|FAILED|z1|1:0
12_|FAILED|z1|1:0
LINES
END
cat >bin/squeue <<'END'
#!/bin/sh
[ -e no-queue ] && exit 1
echo '13_0|RUNNING|z2|None'
echo '13_1|PENDING||Resources'
END
chmod +x bin/*
export PATH="$PWD/bin:$PATH"
cat >zoo.json <<END
{"shelf": "shelf", "models": {"m": "$MODEL"},
 "recipes": {"a": {"defaults": {"method": "rtn", "bits": 2}}, "b": {"defaults": {"method": "rtn", "bits": 3}},
  "c": {"defaults": {"method": "rtn", "bits": 4}}, "d": {"defaults": {"method": "rtn", "bits": 5}},
  "e": {"defaults": {"method": "rtn", "bits": 6}}},
 "products": [{"model": "m", "recipes": ["a", "b", "c", "d", "e"]}], "devices": ["cpu"]}
END
mkdir -p shelf/.ingot-zoo/slurm shelf/.ingot-zoo/records shelf/.ingot-zoo/locks
cat >shelf/.ingot-zoo/slurm/jobs.json <<END
[{"job": "11", "kind": "statistics", "products": [], "submitted": 1},
 {"job": "12", "kind": "products", "products": ["m/a", "m/b", "m/c", "m/d", "m/e"], "submitted": 2},
 {"job": "13", "kind": "products", "products": ["m/c", "m/d"], "submitted": 3}]
END
says() { grep -qE "$1" out || fail "not told: $1: $(cat out)"; }
expect_exit 2 ingot-zoo status zoo.json
says '^m/a  *new .*job 12_0 CANCELLED *$'
says '^m/b  *new .*job 12_1 CANCELLED *$'
says '^m/c  *running .*job 13_0 RUNNING z2'
says '^m/d  *queued .*job 13_1 PENDING'
says '^m/e  *new .*job 12_4 NODE_FAIL z1'
# Out of the queue: accounting alone.
touch no-queue
expect_exit 2 ingot-zoo status zoo.json
grep -q 'warning: squeue does not answer' err || fail "it is not said that squeue is silent"
says '^m/c  *new .*job 13_0 TIMEOUT z1'
says '^m/d  *queued .*job 13_1 PENDING'
touch no-accounting
expect_exit 2 ingot-zoo status zoo.json
says '^m/e  *new *gates none *$'
