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
grep -q 'm/rtn *failed .*a folder is in the place of the product (move it away)' out || fail "$(cat out)"
expect_exit 2 ingot-zoo report "$long/zoo.json" --json
grep -q '^ *"reason": ".*a folder is in the place of the product (move it away)",$' out || fail "$(cat out)"
expect_exit 2 ingot-zoo verify "$long/zoo.json"
grep -q '^m/rtn: unreadable: .*; its last run failed: .*a folder is in the place of the product (move it away)$' err ||
    fail "$(cat err)"
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

# Names of products that lie close together stand on nothing and inside the picture, and are cut
# where they are long; memory is that of the table; a page of which products lack says so first.
cat >close.json <<END
{"shelf": "close", "models": {"m": "$MODEL"}, "texts": {"eval": "$MODEL/evaluation.txt"},
 "recipes": {
  "four-bits-with-a-name-that-goes-on-and-on": {"defaults": {"method": "rtn", "bits": 4}},
  "four-bits-with-a-name-that-is-as-long-as-that": {"defaults": {"method": "rtn", "bits": 4}},
  "a": {"defaults": {"method": "rtn", "bits": 4}}, "b": {"defaults": {"method": "rtn", "bits": 4}},
  "c": {"defaults": {"method": "rtn", "bits": 4}}, "d": {"defaults": {"method": "rtn", "bits": 4}}},
 "products": [{"model": "m", "recipes": ["four-bits-with-a-name-that-goes-on-and-on", "a", "c",
    "four-bits-with-a-name-that-is-as-long-as-that", "d"]},
  {"model": "m", "recipes": ["b"], "output": "b.ingot"}],
 "defaults": {"evaluation": "eval", "windows": 1, "seq_len": 64, "gates": {"max_kld": 0}}, "devices": ["cpu"]}
END
mkdir -p close/b.ingot
expect_exit 2 ingot-zoo run close.json
expect_exit 2 ingot-zoo report close.json
grep -q '>not complete, and over a gate<' close/report.html || fail "a product is missing, the page does not say so"
grep -o '<text class="name"[^<]*<' close/report.html |
    sed 's/.* x="\([0-9.]*\)" y="\([0-9.]*\)" text-anchor="\([a-z]*\)">\([^<]*\)</\1 \2 \3 \4/; s/…/./' >names
[ -s names ] || fail "no names"
awk '{
    width = 6 * length($4); left = $3 == "end" ? $1 - width : $1; right = left + width
    if (left < 0 || right > 440 || length($4) > 30) { print "outside:", $0; bad = 1 }
    for (i = 1; i < NR; i++)
        if ($2 - y[i] < 10 && y[i] - $2 < 10 && left < r[i] && right > l[i]) { print "over another:", $0; bad = 1 }
    y[NR] = $2; l[NR] = left; r[NR] = right
} END { exit bad }' names || fail "$(cat names)"
for memory in $(grep -o '<text class="tick"[^<]*s, [0-9.]* MB<' close/report.html | sed 's/.*s, \([0-9.]*\) MB</\1/'); do
    grep -q "<td>$memory MB</td>" close/report.html || fail "$memory MB is not in the table"
done
