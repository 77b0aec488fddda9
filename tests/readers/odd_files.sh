# What a reader says where a file of a set is there by name but cannot be read as a file (container.md,
# section 12, step 23).  For scripts that have included tests/lib.sh.

# odd_files COMMAND...: a reader, whose exit codes are 0 valid, 1 a rule is broken, 2 the system failed.
odd_files() {
    set_files=$INGOT_ROOT/spec/vectors/valid/set
    for kind in folder fifo loop dangling link; do
        rm -rf odd
        mkdir odd
        cp "$set_files-00001-of-00003.ingot" "$set_files-00003-of-00003.ingot" odd/
        second=odd/set-00002-of-00003.ingot
        codes=E_IO wanted=2
        case $kind in
            folder) mkdir "$second" ;;
            fifo) mkfifo "$second" ;;
            loop) ln -s set-00002-of-00003.ingot "$second" ;;
            dangling) ln -s no-such-file "$second" && codes=E_SHARD_MISSING wanted=1 ;;
            link) ln -s "$set_files-00002-of-00003.ingot" "$second" && codes='' wanted=0 ;;
        esac
        odd_code=0
        timeout 60 "$@" odd/set-00001-of-00003.ingot >out 2>err </dev/null || odd_code=$?
        [ "$odd_code" = $wanted ] || fail "$1, $kind: exit code $odd_code: $(cat err)"
        # A program need not have a code for the system's failures, but no other one.
        got=$(grep -ohE 'E_[A-Z_]+' out err | sort -u)
        [ "$got" = "$codes" ] || [ "$wanted$got" = 2 ] || fail "$1, $kind: $got"
    done
    odd_code=0
    timeout 60 "$@" odd >out 2>err </dev/null || odd_code=$?
    [ "$odd_code" = 2 ] || fail "$1 on a folder: exit code $odd_code"
}
