# ingot-zoo status and report: what is said of a product and drawn of it, with names as people have
# them: long ones.
. "$INGOT_ROOT/tests/lib.sh"
need ingot-zoo ingot-convert ingot-verify

# A long path leaves the reason of a failure whole, and the page breaks its line.
long=the-folder-of-a-project-with-a-long-name/and-another-one-below-it/where-models-are-kept
mkdir -p "$long/shelf/m"
long=$PWD/$long
cat >"$long/zoo.json" <<END
{"shelf": "shelf", "models": {"m": "$MODEL"},
 "recipes": {"rtn": {"defaults": {"method": "rtn"}}},
 "products": [{"model": "m", "recipes": ["rtn"], "output": "m/a-name-that-is-longer-than-most.ingot"}], "devices": ["cpu"]}
END
expect_exit 0 ingot-zoo run "$long/zoo.json"
rm "$long/shelf/m/"*.ingot
mkdir "$long/shelf/m/a-name-that-is-longer-than-most.ingot"
expect_exit 2 ingot-zoo run "$long/zoo.json"
expect_exit 2 ingot-zoo status "$long/zoo.json"
grep -q 'm/rtn *failed .*the output is a folder (name a file' out || fail "$(cat out)"
expect_exit 2 ingot-zoo report "$long/zoo.json" --json
grep -q '^ *"reason": ".*the output is a folder (name a file.*)",$' out || fail "$(cat out)"
# Names and reasons break their lines, so that the rest of the table stays in sight.
grep -q 'td:first-child{white-space:normal;overflow-wrap:anywhere' "$long/shelf/report.html" || fail "names do not break"
! grep -q '@media(max-width:520px)[^@]*white-space:normal' "$long/shelf/report.html" || fail "they do on phones alone"
