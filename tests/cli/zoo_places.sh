# ingot-zoo: places of products that are links, or that something else has.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert ingot-verify

manifest() { # FORM
    cat >zoo.json <<END
{"shelf": "shelf", "models": {"m": "$MODEL"}, "recipes": {"rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["rtn"], "output": $1}], "devices": ["cpu"]}
END
}

# A link that leads to nothing is no file of somebody else: the file behind it is made.
mkdir -p shelf disk
for form in '"one.ingot"' '"set.ingot", "shard_bytes": 2000000'; do
    manifest "$form"
    for name in one.ingot set-00001-of-00002.ingot set-00002-of-00002.ingot; do
        ln -sf ../disk/$name shelf/$name
    done
    expect_exit 0 ingot-zoo run zoo.json
    grep -q '^1 products: 1 made' out || fail "$(cat out)"
done
[ "$(find shelf -name '*.ingot' -type l | wc -l)" = 3 ] || fail "a link was replaced: $(ls -l shelf)"
[ "$(ls disk | wc -l)" = 3 ] || fail "behind the links there is $(ls disk)"

# One whose file has gone says so; in a circle links are no place for a file.
rm disk/set-00001-of-00002.ingot
expect_exit 2 ingot-zoo status zoo.json
grep -q 'm/rtn *missing .*the file behind its link is gone' out || fail "$(cat out)"
expect_exit 1 ingot-zoo verify zoo.json
grep -q 'm/rtn: missing: the file behind its link is gone' err || fail "$(cat err)"
manifest '"circle.ingot"'
ln -s circle.ingot shelf/circle.ingot
expect_exit 2 ingot-zoo run zoo.json
grep -q 'symbolic links lead in a circle' err || fail "$(cat err)"
rm -r shelf/circle.ingot shelf/.ingot-zoo

# Somebody else's file in the place of a product: said by status and plan before a run and by status
# after it, and to verify it is foreign.
for form in '"own.ingot"' '"sub/own.ingot", "shard_bytes": 2000000'; do
    manifest "$form"
    name=own.ingot
    case $form in *sub*) name=sub/own-00002-of-00002.ingot ;; esac
    mkdir -p shelf/sub
    echo precious >shelf/$name
    for state in new failed; do
        expect_exit 2 ingot-zoo status zoo.json
        grep -q "m/rtn *$state .*a file that is not on record is in the place of the product" out || fail "$(cat out)"
        expect_exit 2 ingot-zoo plan zoo.json
        expect_error "m/rtn: shelf/$name: a file that is not on record is in the place of the product (move it away"
        expect_exit 0 ingot-zoo plan zoo.json --force
        expect_exit 1 ingot-zoo verify zoo.json
        grep -qx "$name: foreign: in the place of m/rtn, and on no record" err || fail "$(cat err)"
        grep -q '1 missing, .* foreign files' out || fail "$(cat out)"
        if [ $state = failed ]; then
            why="it was never finished; its last run failed: shelf/$name: a file that is not on record is in the place of the product (move it away"
            grep -q "^m/rtn: missing: $why" err || fail "$(cat err)"
            expect_exit 1 ingot-zoo verify zoo.json --json
            grep -q "^ *\"reason\": \"$why" out || fail "$(cat out)"
        fi
        expect_exit 2 ingot-zoo run zoo.json
        [ "$(cat shelf/$name)" = precious ] || fail "$name was replaced"
    done
    rm -r shelf/.ingot-zoo
done
rm shelf/$name
mkdir shelf/$name # which --force does not replace
expect_exit 2 ingot-zoo status zoo.json
grep -q 'm/rtn *new .*a folder is in the place of the product (move it away)' out || fail "$(cat out)"
rmdir shelf/$name
expect_exit 2 ingot-zoo status zoo.json
grep -q '^m/rtn *new *gates none *$' out || fail "$(cat out)"
expect_exit 0 ingot-zoo run zoo.json

# Something else in the place of a file that was made is not a file that has gone.
mv shelf/sub/own-00001-of-00002.ingot kept.ingot
mkdir shelf/sub/own-00001-of-00002.ingot
expect_exit 2 ingot-zoo status zoo.json
grep -q 'm/rtn *missing .*something else is in its place' out || fail "$(cat out)"
rmdir shelf/sub/own-00001-of-00002.ingot
mv kept.ingot shelf/sub/own-00001-of-00002.ingot

# A file or a record that may not be read is neither damaged nor missing, and its product not done.
plain=
if [ "$(id -u)" = 0 ]; then
    plain="setpriv --bounding-set=-all --inh-caps=-all"
    $plain true || plain=
fi
if [ -n "$plain" ] || [ "$(id -u)" != 0 ]; then
    file=shelf/sub/own-00001-of-00002.ingot record=shelf/.ingot-zoo/records/m@rtn.json
    rm shelf/own.ingot shelf/one.ingot shelf/set*
    expect_exit 0 ingot-zoo verify zoo.json
    chmod 0 $file
    # shellcheck disable=SC2086
    expect_exit 2 $plain ingot-zoo verify zoo.json --json
    grep -q '"unreadable": 1' out && grep -q '"damaged": 0' out || fail "$(cat out)"
    # shellcheck disable=SC2086
    expect_exit 2 $plain ingot-zoo verify zoo.json
    grep -q '^m/rtn: unreadable: .*Permission denied' err || fail "$(cat err)"
    grep -q '^1 products: 0 whole, .* 1 unreadable; 0 foreign files' out || fail "$(cat out)"
    chmod 644 $file
    # shellcheck disable=SC2086
    unreadable() { # WHAT PATH: said by every subcommand, in the first run and in the next
        for run in first next; do
            expect_exit 2 $plain ingot-zoo status zoo.json
            grep -q "^m/rtn *unreadable .*$1 cannot be read: Permission denied" out || fail "$(cat out)"
            grep -q '^1 products: 1 unreadable, 0 over a gate' out || fail "$(cat out)"
            expect_exit 2 $plain ingot-zoo plan zoo.json
            expect_error "m/rtn: $2: $1 cannot be read: Permission denied (check its permissions"
            expect_exit 2 $plain ingot-zoo verify zoo.json
            grep -q "^m/rtn: unreadable: $1 cannot be read: Permission denied\$" err || fail "$run: $(cat err)"
            expect_exit 2 $plain ingot-zoo run zoo.json
            grep -q "^m/rtn: failed: $2: $1 cannot be read: Permission denied (check its permissions" err ||
                fail "$(cat err)"
            grep -q '^1 products: 0 made, 0 finished before, 1 failed' out || fail "$(cat out)"
        done
    }
    again() { # what was not read is verified again, and not made again
        expect_exit 0 ingot-zoo run zoo.json
        grep -q verifying err && ! grep -q converting err || fail "$(cat err)"
        expect_exit 0 ingot-zoo verify zoo.json
    }
    other=shelf/sub/own-00002-of-00002.ingot
    chmod 0 $file
    unreadable "the file" $file
    chmod 644 $file
    again
    chmod 0 $other
    unreadable "shard 2" $other
    chmod 644 $other
    again
    chmod 0 shelf/sub
    # shellcheck disable=SC2086
    expect_exit 2 $plain ingot-zoo run zoo.json
    grep -q "^m/rtn: failed: $file: the file cannot be read: Permission denied" err || fail "$(cat err)"
    chmod 755 shelf/sub
    again
    # One that is to be made in another way need not be read, nor one that is made anew.
    chmod 0 $file
    # shellcheck disable=SC2086
    expect_exit 0 $plain ingot-zoo plan zoo.json --force
    # shellcheck disable=SC2086
    expect_exit 0 $plain ingot-zoo run zoo.json --force
    grep -q '^1 products: 1 made' out || fail "$(cat out)"
    chmod 0 $file
    sed -i 's/"method": "rtn"/&, "bits": 3/' zoo.json
    # shellcheck disable=SC2086
    expect_exit 0 $plain ingot-zoo run zoo.json
    grep -q '^1 products: 1 made' out || fail "$(cat out)"
    chmod 0 $record
    # shellcheck disable=SC2086
    expect_exit 2 $plain ingot-zoo verify zoo.json
    grep -q '^m/rtn: unreadable: its record cannot be read: .*Permission denied' err || fail "$(cat err)"
    # shellcheck disable=SC2086
    expect_exit 2 $plain ingot-zoo status zoo.json
    grep -q '^m/rtn .*its record cannot be read' out || fail "$(cat out)"
    chmod 644 $record
else
    echo "SKIP: root reads every file here, and setpriv cannot take that from it"
fi

# What run could not begin plan says: a name that is too long with what is added to it at work, a file
# in the place of a folder, a shelf that may not be written to.
manifest() { # SHELF FORM
    cat >zoo.json <<END
{"shelf": "$1", "models": {"m": "$MODEL"}, "recipes": {"rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["rtn"], "output": $2}], "devices": ["cpu"]}
END
}
cannot() { # TEXT
    for command in plan run; do
        expect_exit 2 ${user:-} ingot-zoo $command zoo.json
        grep -q "$1" err || fail "$command: $(cat out err)"
    done
}
name=$(printf '%0*d' 234 0).ingot # and .resume.partial
manifest names "\"sub/$name\""
expect_exit 0 ingot-zoo plan zoo.json
expect_exit 0 ingot-zoo run zoo.json
manifest names "\"sub/0$name\""
cannot "m/rtn: .*0$name.*: .*File name too long (use a shorter name)"
manifest names "\"sub/${name#00000000}\", \"shard_bytes\": 2000000" # -00001-of-00002 and .partial
expect_exit 0 ingot-zoo run zoo.json
manifest names "\"sub/${name#0000000}\", \"shard_bytes\": 2000000"
cannot "m/rtn: .*File name too long (use a shorter name)"
manifest names "\"sub/$name/it.ingot\""
cannot "m/rtn: .*names/sub/$name: a file is in the place of a folder of the shelf"
manifest names '"sub/place.ingot"'
mkdir names/sub/place.ingot
expect_exit 2 ingot-zoo plan zoo.json
expect_error "m/rtn: names/sub/place.ingot: a folder is in the place of the product (move it away)"
user=$plain
if [ -n "$plain" ] || [ "$(id -u)" != 0 ]; then
    mkdir closed
    chmod 555 closed
    manifest closed/shelf '"it.ingot"'
    cannot 'closed.*: .*Permission denied (check its permissions)'
    [ "$(grep -c 'Permission denied' err)" = 1 ] || fail "$(cat err)"
    chmod 755 closed
    expect_exit 0 $plain ingot-zoo run zoo.json
    chmod -R a-w closed/shelf
    expect_exit 0 $plain ingot-zoo plan zoo.json
    manifest closed/shelf '"other.ingot"'
    cannot 'closed/shelf.*: .*Permission denied (check its permissions)'
    chmod -R u+w closed/shelf
    mkdir -m 555 closed/shelf/sub
    manifest closed/shelf '"sub/other.ingot"'
    cannot 'm/rtn: .*closed/shelf/sub.*: .*Permission denied'
    chmod 755 closed/shelf/sub
    ln -s ../../../disk/other.ingot closed/shelf/sub/other.ingot
    chmod 555 closed/shelf/sub
    expect_exit 0 $plain ingot-zoo run zoo.json
fi
