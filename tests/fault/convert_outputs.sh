# Outputs that cannot be: no folder, a folder, an input, no permission.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-convert

expect_exit 2 ingot-convert "$MODEL" -o none/out.ingot --method rtn
expect_error none/out.ingot
! grep -q plan: err || fail "the folder was missed only after the plan: $(cat err)"
expect_exit 2 ingot-convert "$MODEL" -o out.ingot --method rtn --text "$MODEL/calibration.txt" \
    --target-bpw 4 --sensitivity none/table.sens
expect_error none/table.sens
expect_exit 2 ingot-calib "$MODEL" --text "$MODEL/calibration.txt" -o none/out.calib
expect_error none/out.calib
expect_exit 2 ingot-verify "$MODEL/config.json" --html none/page.html --json
expect_error none/page.html
grep -q '"error": "E_NOT_FOUND"' out || fail "the object says: $(grep error out)"
expect_exit 2 ingot-bench convert --model "$MODEL" --methods rtn --folder none
expect_error none/ingot-bench-convert.ingot
[ ! -s out ] || fail "measured before the folder was missed: $(cat out)"
expect_exit 2 ingot-convert "$MODEL" -o . --method rtn
expect_error "."
mkdir folder
expect_exit 2 ingot-convert "$MODEL" -o folder --method rtn --force
expect_error folder
[ -z "$(ls -A folder)" ] || fail "something was written into the folder"

# The name of a stream, as /dev/stdout is one, is not replaced by a file, also where it leads to one.
ln -s /proc/self/fd/1 stream
expect_exit 2 ingot-convert "$MODEL" -o stream --method rtn --force
expect_error "device or pipe"
[ -L stream ] || fail "the name of a stream was replaced"

# The output is an input: refused, --force or not, and the input stays as it is.
cp -r "$MODEL" model
before=$(cat model/* | cksum)
expect_exit 2 ingot-convert model -o model/model.safetensors --method rtn --force
expect_error model.safetensors
cp model/calibration.txt text.txt
expect_exit 2 ingot-convert model -o text.txt --text text.txt --force
expect_error text.txt
ln text.txt link.txt
expect_exit 2 ingot-convert model -o link.txt --text text.txt --force
expect_error link.txt
cmp text.txt model/calibration.txt
[ "$(cat model/* | cksum)" = "$before" ] || fail "an input was changed"
expect_no_files model/model.safetensors.partial text.txt.partial link.txt.partial

if [ "$(id -u)" != 0 ]; then
    mkdir locked
    chmod 500 locked
    expect_exit 2 ingot-convert "$MODEL" -o locked/out.ingot --method rtn
    expect_error locked/out.ingot
else
    echo "SKIP: root may write everywhere"
    expect_exit 2 ingot-convert "$MODEL" -o /proc/out.ingot --method rtn
    expect_error /proc/out.ingot
fi

# What is kept already is read where nothing can be written; what would replace it is refused before
# anything is measured.
read_only() {
    if [ "$(id -u)" != 0 ]; then
        "$@"
    else
        # shellcheck disable=SC2016
        unshare -m sh -c 'mount --bind kept kept && mount -o remount,bind,ro kept && exec "$@"' - "$@"
    fi
}
# A name that is too long with what is added to it is told before the work, not where it is met.
long=$(printf '%242s' '' | tr ' ' x)
expect_exit 2 ingot-convert "$MODEL" --text "$MODEL/calibration.txt" --samples 2 --seq-len 32 -o "$long" --resume
expect_error "File name too long (use a shorter name)"
! grep -q '^block' err || fail "blocks were converted"
expect_exit 2 ingot-verify nothing.ingot --html "${long}0123456789"
expect_error "File name too long (use a shorter name)"
expect_exit 0 ingot-convert "$MODEL" -o "$long"
rm "$long"
mkdir kept
if [ "$(id -u)" = 0 ] && ! read_only true 2>/dev/null; then
    echo "SKIP: root without mounts of its own may write everywhere"
    exit
fi
windows="--text $MODEL/calibration.txt --samples 2 --seq-len"
table="--dry-run --target-bpw 4.5 --sensitivity kept/table.sens"
# shellcheck disable=SC2086
{
    expect_exit 0 ingot-calib "$MODEL" $windows 64 -o kept/out.calib
    expect_exit 0 ingot-convert "$MODEL" $windows 64 $table
    [ -s kept/table.sens ] || fail "no table was kept"
    chmod 500 kept
    expect_exit 0 read_only ingot-calib "$MODEL" $windows 64 -o kept/out.calib --reuse
    expect_exit 0 read_only ingot-convert "$MODEL" $windows 64 $table
    expect_exit 2 read_only ingot-calib "$MODEL" $windows 32 -o kept/out.calib --reuse
    expect_error "kept/out.calib: cannot be made"
    expect_exit 2 read_only ingot-convert "$MODEL" $windows 32 $table
    expect_error "kept/table.sens: cannot be made"
    chmod 700 kept
}
