#!/usr/bin/env python3
"""The ablation table of spec/quality.md: every step of GPTQ and of --effort best on and off.

    python3 tests/ablation.py [--build build/release] [--shared ../shared] [--models demo-4m,...]
                              [--smollm2 DIR] [--device D] [--jobs N] [--bits 4,3]
                              [--rows REGEX] [--samples N] [--windows N]

Converts each model at 4 and 3 bits by every row of ROWS and prints a table in Markdown: perplexity,
mean KL divergence to the checkpoint in nats, seconds of the conversion.  Models that are not there
are left out, with a line that says so.  Conversions run N side by side (default 1); for the seconds
leave it at 1.  --rows takes the rows whose title matches; --samples and --windows make a quick pass
of it, on fewer windows of calibration and of scored text.
"""
import argparse
import concurrent.futures
import json
import os
import re
import sys
import tempfile

from tool_report import call

# model: folder under shared/models, group, calibration windows x tokens, text and windows scored
MODELS = {
    "demo-4m": (128, 128, 512, "books-eval.txt", 80),
    "books-28m": (128, 128, 1024, "books-eval.txt", 40),
    "smollm2-135m": (64, 128, 2048, "wikitext2-test.txt", 40),
}
NONE = dict(sequential=False, correction=False, residual=False, polish=0)
ALL = dict(sequential=True, correction=True, residual=True, polish=3)
ROWS = [
    ("plain rounding", "rtn", {}),
    ("searched scales, rounding", "fast", {}),
    ("`gptq`, no further step", "gptq", NONE),
    ("with `polish` alone", "gptq", {**NONE, "polish": 3}),
    ("with `sequential` alone", "gptq", {**NONE, "sequential": True}),
    ("with `correction` alone", "gptq", {**NONE, "correction": True}),
    ("with `correction` and `residual`", "gptq", {**NONE, "correction": True, "residual": True}),
    ("**all steps**", "gptq", ALL),
    ("all but `sequential`", "gptq", {**ALL, "sequential": False}),
    ("all but `correction`", "gptq", {**ALL, "correction": False}),
    ("all but `residual`", "gptq", {**ALL, "residual": False}),
    ("all but `polish`", "gptq", {**ALL, "polish": 0}),
    ("`awq+gptq`, no further step", "awq+gptq", NONE),
    ("`awq+gptq`, all steps", "awq+gptq", ALL),
    ("all steps, asymmetric", "gptq --asym", ALL),
    ("all steps, text of `@self`", "gptq", {**ALL, "text": "@self"}),
    ("`--effort best`", "best", ALL),
    ("`--effort best` without `distillation`", "best", {**ALL, "distillation": False}),
    ("`--effort best` without `tuning`", "best", {**ALL, "tuning": False}),
    ("`--effort best`, text of `@self`", "best", {**ALL, "text": "@self"}),
]


def measure(args, folder, model, bits, method, steps):
    group, samples, length, text, windows = MODELS[model]
    samples, windows = args.samples or samples, args.windows or windows
    steps = dict(steps)
    calibration = steps.pop("text", os.path.join(args.shared, "corpora", "books-calibration.txt"))
    with tempfile.TemporaryDirectory() as work:
        recipe, output = os.path.join(work, "recipe.json"), os.path.join(work, "out.ingot")
        with open(recipe, "w", encoding="utf-8") as file:
            json.dump({"steps": steps} if steps else {}, file)
        command = [os.path.join(args.build, "bin", "ingot-convert"), folder, "-o", output,
                   "--bits", str(bits), "--group", str(group), "--device", args.device,
                   "--recipe", recipe, "--json"]
        command += (["--effort", method] if method in ("fast", "best") else
                    ["--method"] + method.split())
        if method != "rtn":
            command += ["--text", calibration, "--samples", str(samples), "--seq-len", str(length)]
        converted = call(command)
        scored = call([os.path.join(args.build, "bin", "ingot-verify"), output, "--source", folder,
                       "--text", os.path.join(args.shared, "corpora", text), "--seq-len",
                       str(length), "--windows", str(windows), "--device", args.device, "--json"])
    if scored["valid"] is not True:
        sys.exit("%s at %d bits by %s is not valid: %s" % (model, bits, method, scored))
    return scored["perplexity"], scored["kld_mean"], converted["seconds"]


def main():
    parser = argparse.ArgumentParser(description="the ablation table of spec/quality.md")
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--smollm2", default=os.environ.get("INGOT_SMOLLM2"))
    parser.add_argument("--books", default=None, help="folder of books-28m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--bits", default="4,3")
    parser.add_argument("--rows", default="")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--windows", type=int)
    args = parser.parse_args()
    folders = {}
    for model in args.models.split(","):
        folder = {"smollm2-135m": args.smollm2, "books-28m": args.books}.get(model)
        folder = folder or os.path.join(args.shared, "models", model)
        if os.path.exists(os.path.join(folder, "config.json")):
            folders[model] = folder
        else:
            print("left out: %s is not in %s" % (model, folder), file=sys.stderr)
    columns = [(model, int(bits)) for model in folders for bits in args.bits.split(",")]
    chosen = [row for row in ROWS if re.search(args.rows, row[0])]
    print("| | " + " | ".join("%s W%d g%d" % (m, b, MODELS[m][0]) for m, b in columns) + " |")
    print("|---|" + "---|" * len(columns), flush=True)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        rows = [[pool.submit(measure, args, folders[m], m, b, method, steps) for m, b in columns]
                for _, method, steps in chosen]
        for (title, _, _), cells in zip(chosen, rows):
            figures = ["%.2f / %.4f, %.1f s" % cell.result() for cell in cells]
            print("| %s | %s |" % (title, " | ".join(figures)), flush=True)


if __name__ == "__main__":
    main()
