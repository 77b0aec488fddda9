# ingot-zoo: files of a shelf that were copied, lost, damaged, or take another form.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert ingot-verify

manifest() { # FORM
    cat >zoo.json <<END
{"shelf": "a shelf/", "models": {"m": "$MODEL"}, "recipes": {"rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["rtn"], "output": "a folder/it.ingot"$1}], "devices": ["cpu"]}
END
}
folder="a shelf/a folder"
runs() { # TEXT: a run ends with it, and the shelf is whole
    expect_exit 0 ingot-zoo run zoo.json
    grep -q "^1 products: $1" out || fail "$(cat out err)"
    mv err run.err
    expect_exit 0 ingot-zoo verify zoo.json
}

# A slash behind the name of the shelf changes nothing.
manifest ', "shard_bytes": 2000000'
runs "1 made"
runs "0 made, 1 finished before"
[ "$(ls "$folder" | wc -l)" = 2 ] || fail "there is $(ls "$folder")"

# A copy is the same file: what is in it is verified, and nothing is converted.
cp -r "$folder" copied
rm "$folder"/*
cp copied/* "$folder"
expect_exit 2 ingot-zoo status zoo.json
grep -q 'the file was changed after it was made' out || fail "$(cat out)"
runs "1 made"
grep -q 'verifying' run.err && ! grep -q 'converting' run.err || fail "$(cat run.err)"

# A copy that is damaged is made anew, and so is a set that lacks a shard.
rm "$folder"/*
cp copied/* "$folder"
printf 'xx' | dd of="$folder/it-00001-of-00002.ingot" bs=1 seek=1000000 conv=notrunc 2>/dev/null
runs "1 made"
grep -q 'm/rtn: damaged: made anew' run.err || fail "$(cat run.err)"
rm "$folder/it-00002-of-00002.ingot"
expect_exit 2 ingot-zoo status zoo.json
grep -q 'm/rtn *missing .*shard 2 is gone' out || fail "$(cat out)"
runs "1 made"
[ "$(ls "$folder" | wc -l)" = 2 ] || fail "there is $(ls "$folder")"

# Of another form nothing is left; a file that is no longer the one on record is its owner's.
manifest ', "shard_bytes": 1000000'
runs "1 made"
[ "$(ls "$folder" | wc -l)" = 3 ] || fail "there is $(ls "$folder")"
manifest ', "zstd": true'
runs "1 made"
runs "0 made, 1 finished before"
[ "$(ls "$folder")" = it.ingot ] || fail "there is $(ls "$folder")"
cp copied/it-00002-of-00002.ingot "$folder/it.ingot"
manifest ', "shard_bytes": 1000000'
expect_exit 0 ingot-zoo run zoo.json
cmp copied/it-00002-of-00002.ingot "$folder/it.ingot"

# Shards of a product that is not asked about are not foreign.
cat >two.json <<END
{"shelf": "two", "models": {"m": "$MODEL"}, "recipes": {"rtn": {"defaults": {"method": "rtn"}}, "three": {"defaults": {"method": "rtn", "bits": 3}}},
 "products": [{"model": "m", "recipes": ["rtn"], "shard_bytes": 2000000}, {"model": "m", "recipes": ["three"]}], "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo run two.json
expect_exit 0 ingot-zoo verify two.json --only m/three

# A shelf that is a link to a folder elsewhere has the files of that folder.
mv two elsewhere
ln -s elsewhere two
expect_exit 0 ingot-zoo verify two.json
touch two/stranger
expect_exit 1 ingot-zoo verify two.json
grep -q '^stranger: foreign' err || fail "$(cat err)"

# Somebody else's file stays, in the place of a shard and where a product is to lie from now on.
foreign() { # FILE
    echo precious >"own/$1"
    expect_exit 2 ingot-zoo run own.json
    grep -q "own/$1: a file that is not on record is in the place of the product" err || fail "$(cat err)"
    [ "$(cat "own/$1")" = precious ] || fail "$1 was replaced"
}
own() { # FORM
    cat >own.json <<END
{"shelf": "own", "models": {"m": "$MODEL"}, "recipes": {"rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["rtn"], "output": $1}], "devices": ["cpu"]}
END
}
mkdir own
own '"set.ingot", "shard_bytes": 2000000'
foreign set-00002-of-00002.ingot
rm own/set*
expect_exit 0 ingot-zoo run own.json
own '"one.ingot"'
foreign one.ingot
foreign one.ingot
expect_exit 0 ingot-zoo run own.json --force
expect_exit 0 ingot-zoo run own.json
grep -q '^1 products: 0 made, 1 finished before' out || fail "$(cat out)"

# A product that is a link: the file behind it is made, and what an interrupted run left beside that goes.
mkdir disk
mv own/one.ingot disk/one.ingot
ln -s ../disk/one.ingot own/one.ingot
expect_exit 0 ingot-zoo run own.json
grep -q '^1 products: 0 made, 1 finished before' out || fail "$(cat out)"
echo damaged >disk/one.ingot
for ending in partial resume waiting.partial; do
    echo precious >disk/one.ingot.$ending
done
expect_exit 0 ingot-zoo run own.json --force
expect_exit 0 ingot-verify own/one.ingot --source "$MODEL"
[ -L own/one.ingot ] || fail "the link of a product was replaced"
[ "$(ls disk)" = one.ingot ] || fail "beside the product there is $(ls disk)"

# A lock that may not be opened, such as another user's, is an error; it was waited for without end.
plain=
if [ "$(id -u)" = 0 ]; then
    plain="setpriv --bounding-set=-all --inh-caps=-all"
    $plain true || plain=
fi
rm -r two elsewhere
expect_exit 0 ingot-zoo run two.json
chmod 0 two/.ingot-zoo/locks/m@rtn.lock
if [ -n "$plain" ] || [ "$(id -u)" != 0 ]; then
    # shellcheck disable=SC2086
    expect_exit 2 timeout 60 $plain ingot-zoo run two.json
    grep -q 'm/rtn: failed: .*m@rtn.lock: cannot lock a product: Permission denied (check its permissions)' err ||
        fail "$(cat err)"
    grep -q 'm/three: finished before' err || fail "$(cat err)"
fi

# Names that begin with a dash are no options of the tools that a run starts.
mkdir -- -d
cp -r "$MODEL" ./-d/-m
chmod -R u+w ./-d/-m
head -c 20000 "$MODEL/calibration.txt" >-d/-t
cd -- -d
cat >-z.json <<END
{"shelf": "-s", "models": {"m": "-m"}, "texts": {"t": "-t"},
 "recipes": {"rtn": {"defaults": {"method": "rtn"}}, "fast": {"effort": "fast", "samples": 2, "seq_len": 64}},
 "defaults": {"evaluation": "t", "seq_len": 64, "windows": 2},
 "products": [{"model": "m", "recipes": ["rtn"], "output": "-o.ingot"},
 {"model": "m", "recipes": ["fast"], "calibration": "t", "statistics": true}], "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo run -- -z.json
grep -q "^2 products: 2 made" out || fail "$(cat out err)"
expect_exit 0 ingot-zoo verify -- -z.json
