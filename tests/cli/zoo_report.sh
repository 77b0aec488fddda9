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

# A figure that is over its gate by little is printed with as many digits as tell the two apart.
cat >gate.json <<END
{"shelf": "gated", "models": {"m": "$MODEL"}, "texts": {"eval": "$MODEL/evaluation.txt"},
 "recipes": {"w3": {"defaults": {"method": "rtn", "bits": 3}}},
 "products": [{"model": "m", "recipes": ["w3"], "evaluation": "eval", "windows": 1, "seq_len": 64,
  "gates": {"max_kld": 0}}], "devices": ["cpu"]}
END
expect_exit 1 ingot-zoo run gate.json
expect_exit 1 ingot-zoo report gate.json --json
limit=$(sed -n 's/^ *"kld_mean": \([0-9.]*\),$/\1/p' out | awk '{ printf "%.12f", $1 - 2e-9 }')
sed -i "s/\"max_kld\": 0/\"max_kld\": $limit/" gate.json
expect_exit 1 ingot-zoo status gate.json
awk '/mean KL divergence/ { found = $(NF - 3); limit = $NF } END { exit !(found + 0 > 0 && found != limit) }' out ||
    fail "$(cat out)"
expect_exit 1 ingot-zoo report gate.json
sed -n 's|.*mean KL divergence</td><td>\([^<]*\)</td><td>\([^<]*\)<.*|\1 \2|p' gated/report.html >figures
awk '{ found = $1; limit = $2 } END { exit !(found + 0 > 0 && found != limit) }' figures || fail "the page says $(cat figures)"
