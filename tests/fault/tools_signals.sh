# SIGINT, SIGTERM, SIGPIPE and SIGKILL in ingot-calib, ingot-convert and ingot-verify: one error, exit 2, nothing under a
# final name; after SIGKILL the partial file, which the next run names and replaces.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-calib ingot-convert ingot-verify
TEXT=$MODEL/calibration.txt

# interrupt SIGNAL COMMAND...: sends it once the command is at work; sets code.
interrupt() {
    signal=$1
    shift
    "$@" >out 2>err </dev/null &
    process=$!
    sleep 0.7
    kill "-$signal" $process 2>/dev/null || fail "$1 ended before the signal"
    code=0
    wait $process || code=$?
}

ingot-convert "$MODEL" -o model.ingot >/dev/null 2>&1 || fail "conversion"
for signal in INT TERM; do
    interrupt $signal ingot-calib "$MODEL" -o out.calib --text "$TEXT"
    [ "$code" = 2 ] || fail "ingot-calib, SIG$signal: exit code $code"
    expect_error "interrupted by SIG$signal"
    expect_no_files out.calib
    interrupt $signal ingot-verify model.ingot --source "$MODEL" --text "$TEXT" --html out.html
    [ "$code" = 2 ] || fail "ingot-verify, SIG$signal: exit code $code"
    expect_error "interrupted by SIG$signal"
    expect_no_files out.html
done

# A reader of the messages that goes away ends nothing: the file is whole, or there is none.
{
    code=0
    ingot-convert "$MODEL" -o piped.ingot --text "$TEXT" --samples 8 --seq-len 256 2>&1 || code=$?
    echo "$code" >code
} | sed -n "/^block 1/q"
[ "$(cat code)" = 2 ] || fail "a closed pipe: exit code $(cat code)" # the result had no reader
ingot-verify piped.ingot >/dev/null || fail "a closed pipe ended the conversion"
expect_no_files piped.ingot.partial

# Nor does one that is gone before the first word.
unread() { # COMMAND...: sets code
    { sleep 0.2; code=0; "$@" 2>&1 || code=$?; echo "$code" >code; } | true
    code=$(cat code)
}
unread ingot-convert "$MODEL" -o unread.ingot
[ "$code" = 2 ] || fail "ingot-convert without a reader: exit code $code"
ingot-verify unread.ingot >/dev/null || fail "no container without a reader"
unread ingot-calib "$MODEL" -o unread.calib --text "$TEXT" --samples 1 --seq-len 16
ingot-verify unread.calib >/dev/null || fail "no statistics without a reader"
head -c 1000000 unread.ingot >cut.ingot
printf x | dd of=unread.ingot bs=1 seek=2000000 conv=notrunc 2>/dev/null
for file in unread.ingot cut.ingot; do # one that is opened, and one that is not
    unread ingot-verify $file --html unread.html
    [ "$code" = 2 ] || fail "ingot-verify $file without a reader: exit code $code"
done
grep -q 'not valid' unread.html || fail "no page without a reader"

interrupt KILL ingot-calib "$MODEL" -o out.calib --text "$TEXT"
[ "$code" = 137 ] || fail "ingot-calib, SIGKILL: exit code $code"
[ ! -e out.calib ] || fail "SIGKILL left a file under the final name"
[ -e out.calib.partial ] || fail "SIGKILL left no partial file"
expect_exit 0 ingot-calib "$MODEL" -o out.calib --text "$TEXT" --samples 2 --seq-len 64
grep -q 'a partial file of an interrupted run was found' err || fail "the partial file is not named"
[ -e out.calib ] && [ ! -e out.calib.partial ] || fail "the partial file is still there"
