# ingot-verify --tasks: accuracy beside the source, gate, malformed items; and the generator of items.
. "$INGOT_ROOT/tests/lib.sh"

ingot-convert "$MODEL" -o model.ingot --bits 2 >/dev/null 2>&1 || fail "conversion failed"
head -n 24 "$MODEL/tasks.jsonl" >items.jsonl

# json KEY VALUE: the last output has it, at the top level.
json() {
    grep -qE "^ \"$1\": $2,?\$" out || { grep -E "^ \"(valid|error|$1)" out >&2; fail "$1 is not $2"; }
}

# ---- beside the source: plain rounding to 2 bits answers as chance does, the model does not ----
expect_exit 1 ingot-verify model.ingot --quick --source "$MODEL" --tasks items.jsonl \
    --max-accuracy-drop 0.2 --json --html report.html
json valid true
json gates_passed false
json error '"E_GATE"'
json task_items 24
json max_accuracy_drop 0.2[0-9]*
json perplexity null
expect_error "accuracy is"
awk '/^ "(accuracy|source_accuracy|accuracy_drop)":/ { gsub(/[",:]/, ""); v[$1] = $2 }
    /^ "answers_(lost|gained)":/ { gsub(/[",:]/, ""); v[$1] = $2 }
    /"source_choice"/ { changed++ }
    function near(a, b) { return a - b < 1e-9 && b - a < 1e-9 }
    END {
        exit !(v["source_accuracy"] > 0.6 && v["accuracy"] < 0.6 && v["answers_lost"] > 4 &&
            near(v["accuracy_drop"], v["source_accuracy"] - v["accuracy"]) &&
            near(24 * v["accuracy_drop"], v["answers_lost"] - v["answers_gained"]) &&
            changed >= v["answers_lost"] + v["answers_gained"])
    }' out || { cat out >&2; fail "the figures do not fit together"; }
grep -q 'Task accuracy' report.html || fail "no section in the page"
grep -q 'from right to wrong' report.html || fail "no flips in the page"
expect_exit 0 ingot-verify model.ingot --quick --source "$MODEL" --tasks items.jsonl \
    --max-accuracy-drop 1
grep -q '^accuracy  .* of 24 items; source' out || fail "no accuracy in the report"
grep -q 'accuracy drop <= 1: met' out || fail "the gate is not reported"

# ---- alone ----
expect_exit 0 ingot-verify model.ingot --quick --tasks items.jsonl --json
json source_accuracy null
json accuracy_drop null
json answers_changed null

# ---- could not run ----
expect_exit 2 ingot-verify model.ingot --tasks items.jsonl --max-accuracy-drop 0.1 --json
json error '"E_USAGE"'
expect_error "--source"
expect_exit 2 ingot-verify model.ingot --source "$MODEL" --max-accuracy-drop 0.1
expect_error "--tasks"
expect_exit 2 ingot-verify model.ingot --tasks items.jsonl --max-accuracy-drop 1.5
expect_exit 2 ingot-verify model.ingot --tasks missing.jsonl
expect_error "missing.jsonl"
{ head -n 2 items.jsonl && echo '{"context": "a", "choices": ["b"], "answer": 0}'; } >bad.jsonl
expect_exit 2 ingot-verify model.ingot --tasks bad.jsonl --json
json error '"E_INPUT"'
expect_error "bad.jsonl: line 3"
expect_exit 2 ingot-verify model.ingot --tasks items.jsonl --html items.jsonl
expect_error "replace an input"

# ---- the generator ----
need_python json
"$PYTHON" "$INGOT_ROOT/examples/make_tasks.py" "$MODEL/evaluation.txt" --context 30 --choice 6 >made.jsonl
cmp made.jsonl "$MODEL/tasks.jsonl" || fail "the items of the tree are not what the generator makes"
