# Whatever call of the C library fails during a conversion, and whichever time: one clear error and
# exit 2, or the same file as ever; never another file under the final name, never an existing file
# lost.  INGOT_TEST_EVERY=1 takes every number; else the first ones and a sample of the rest.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert ingot-verify

SHIM=$INGOT_BUILD/fault/faulty_calls.so
SMALL=$INGOT_ROOT/tests/fixtures/tiny-llama
model=$SMALL threads=1
preload=$SHIM
dense=25
if ldd "$(command -v ingot-convert)" | grep -q libasan; then
    preload="$(ldd "$(command -v ingot-convert)" | awk '/libasan/ { print $3 }'):$SHIM"
    dense=5 # runs take ten times as long
fi

# next N: the number to try after it.
next() {
    if [ "${INGOT_TEST_EVERY:-0}" = 1 ] || [ "$1" -lt "$dense" ]; then
        echo $(($1 + 1))
    else
        echo $(($1 + 1 + $1 / 8))
    fi
}

# same FOLDER: ./now holds exactly the files of FOLDER.
same() {
    diff -r "$1" now >/dev/null
}

# faults CALL HOW VERDICT OPTION...: VERDICT is what may come of it: "error" (or the whole file),
# "same" (only the whole file).  ./before is what stood there, ./after what a good run leaves.
faults() {
    call=$1 how=$2 verdict=$3
    shift 3
    n=1 met=0
    while :; do
        rm -rf now mark
        cp -r before now
        code=0
        FAULT_CALL=$call FAULT_AT=$n FAULT_HOW=$how FAULT_ALL=${all:-0} FAULT_MARK=$PWD/mark \
            LD_PRELOAD=$preload ingot-convert "$model" -o now/x.ingot --method rtn --threads $threads "$@" \
            >out 2>err </dev/null || code=$?
        what="$call $n $how: $*"
        [ -e mark ] || break
        met=$((met + 1))
        if [ $code = 0 ]; then
            same after || fail "$what: exit 0 with other files: $(ls now)"
        elif [ $code = 2 ]; then
            [ "$verdict" = error ] || { cat err >&2; fail "$what: should have gone well"; }
            expect_error ":"
            [ "$(grep -c '^ingot-convert: ' err)" = 1 ] || { cat err >&2; fail "$what: not one error"; }
            if [ $how = ENOMEM ]; then expect_error memory; fi
            if [ $how = ENOSPC ]; then expect_error space; fi
            same before || fail "$what: left other files: $(ls -l now)"
        elif [ $code = 137 ]; then
            recover "$what" "$@"
        else
            cat err >&2
            fail "$what: exit code $code"
        fi
        n=$(next "$n")
    done
    [ $code = 0 ] && same after || fail "$what: no fault, and yet exit code $code"
    [ $met -gt 0 ] || fail "$call is never called: $*"
    echo "$call $how: $met faults, the last before number $n ${*:+($*)}"
}

# recover WHAT OPTION...: after SIGKILL each name holds the old file, the new one, or none; a run
# with --force brings the new state about.
recover() {
    what=$1
    shift
    for file in now/*.ingot; do
        [ -e "$file" ] || continue
        name=${file##*/}
        cmp -s "$file" "before/$name" || cmp -s "$file" "after/$name" || fail "$what: a strange $file"
    done
    for file in before/*.ingot; do
        [ -e "$file" ] || continue
        name=${file##*/}
        cmp -s "$file" "now/$name" || cmp -s "$file" "now/$name.replaced" ||
            same_set after || fail "$what: $file is lost"
    done
    ingot-convert "$model" -o now/x.ingot --method rtn --threads 1 "$@" --force >out 2>err ||
        { cat err >&2; fail "$what: the next run fails"; }
    same after || fail "$what: the next run leaves $(ls now)"
}

# same_set FOLDER: its containers are complete in ./now, whatever else is there.
same_set() {
    for one in "$1"/*.ingot; do cmp -s "$one" "now/${one##*/}" || return 1; done
}

# setting BEFORE OPTION...: ./after for these options, ./before as BEFORE says (none or old).
setting() {
    rm -rf before after
    mkdir before after
    old=$1
    shift
    if [ "$old" = old ]; then
        ingot-convert "$model" -o before/x.ingot --method rtn --seed 5 "$@" >out 2>err
    fi
    ingot-convert "$model" -o after/x.ingot --method rtn --threads 1 "$@" >out 2>err
    for file in after/*.ingot; do ingot-verify "$file" >out 2>err; done
}

setting none
for call in open pread pwrite fsync ftruncate fallocate rename fstat flock; do
    faults $call EIO error
done
all=1
for call in pread pwrite; do faults $call EIO error; done
for call in pwrite fsync fallocate ftruncate; do faults $call ENOSPC error; done
all=0
faults pread end error
for how in short EINTR; do
    faults pread $how same
    faults pwrite $how same
done
faults fallocate EINTR same
faults flock EINTR same
if [ "$preload" = "$SHIM" ]; then # the sanitizer brings an allocator of its own
    (dense=10 && faults malloc ENOMEM error)
    (all=1 && dense=4 && faults malloc ENOMEM error)
    # A chunk that could not be compressed for want of memory was stored as it was.
    setting old --zstd
    (dense=4 && faults malloc ENOMEM error --force --zstd)
fi

for options in "" "--zstd" "--shard-size 20000" "--zstd --shard-size 16000"; do
    # shellcheck disable=SC2086
    {
        setting old $options
        for call in pwrite fsync rename ftruncate; do faults $call EIO error --force $options; done
        for call in pwrite rename fsync ftruncate; do
            dense=6 faults $call kill error --force $options
            dense=6 faults $call killed error --force $options
        done
    }
done

# Tensors of several chunks, which threads write beside each other: the one that fails is enough.
model=$MODEL threads=3
setting old
for how in EIO short kill; do
    dense=4 faults pwrite $how $([ $how = short ] && echo same || echo error) --force
done
