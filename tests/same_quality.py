#!/usr/bin/env python3
"""Whether conversions on several devices are of equal quality (spec/quality.md, section 5).

    python3 tests/same_quality.py MODEL --calibration TEXT --evaluation TEXT [--ways cpu,cuda]
                                  [--sets N] [--samples N] [--seq-len N] [--windows N]
                                  [--window-len N] [--judge D] [--bits B] [--group G] [--jobs N]
                                  [--threads N] [--seconds S] [--build build/release]
                                  [--max-perplexity X] [--max-kl X] [--max-output X]

The calibration text is cut into N parts.  Of each, every way makes one container, and --judge (the
last way) scores it.  A way is a device of ingot-convert, or several with + between them.  Two
conversions of one part that differ in nothing but the order of sums are two draws, so what counts
are means over the parts of the ratio to the first way: perplexity, mean KL divergence, and output
error (the geometric mean over the matrices), each with its standard error.  Output errors are what
a conversion makes small, they average over many matrices, and no scored text adds its chance to
theirs: of the three they show the smallest fault.  One line of JSON for each way but the first.

N conversions run side by side on the CPU, one process at a time on a CUDA device; after S seconds
none is begun any more.

Exits with 1 if a mean lies further from 1 than the limit and two of its standard errors.
"""
import argparse
import concurrent.futures
import json
import math
import os
import statistics
import sys
import tempfile
import time

from tool_report import call


def parts_of(path, count):
    """The text in `count` parts of whole lines."""
    with open(path, "rb") as file:
        text = file.read()
    cuts = [0]
    for i in range(1, count):
        cuts.append(max(cuts[-1], text.find(b"\n", len(text) * i // count) + 1))
    cuts.append(len(text))
    return [text[a:b] for a, b in zip(cuts, cuts[1:])]


def convert(args, way, text, output):
    """The output error: the geometric mean over the matrices."""
    devices = ["--devices", way.replace("+", ",")] if "+" in way else ["--device", way]
    report = call([os.path.join(args.build, "bin", "ingot-convert"), args.model, "-o", output,
                   "--text", text, "--samples", str(args.samples), "--seq-len", str(args.seq_len),
                   "--bits", str(args.bits), "--group", str(args.group), "--threads",
                   str(args.threads), "--json"] + devices)
    return statistics.geometric_mean(t["output_error"] for t in report["tensors"]
                                     if t["output_error"])


def score(args, output):
    windows = ["--windows", str(args.windows)] if args.windows else []
    report = call([os.path.join(args.build, "bin", "ingot-verify"), output, "--source", args.model,
                   "--text", args.evaluation, "--seq-len", str(args.window_len or args.seq_len),
                   "--device", args.judge, "--json"] + windows)
    if report["valid"] is not True:
        sys.exit("%s is not valid" % output)
    return report["perplexity"], report["kld_mean"]


def measure(args, pools, work, way, part, text):
    """(perplexity, KL, output error) of one container, or None when time is up."""
    output = os.path.join(work, "%s-%d.ingot" % (way, part))

    def made():
        return convert(args, way, text, output) if time.monotonic() < args.end else None

    error = pools[set(way.split("+")) == {"cpu"}].submit(made).result()
    if error is None:
        return None
    perplexity, kl = pools[args.judge == "cpu"].submit(score, args, output).result()
    os.remove(output)
    print("part %d, %s: perplexity %.4f, KL %.5f, output error %.6f" %
          (part, way, perplexity, kl, error), flush=True)
    return perplexity, kl, error


FIGURES = ("perplexity", "kl", "output_error")


def ratio(pairs):
    """Mean of b / a, and its standard error, by logarithms."""
    logs = [math.log(b / a) for a, b in pairs]
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return {"ratio": math.exp(statistics.fmean(logs)), "standard_error": error}


def compare(name, way, first, results):
    both = [(a, b) for a, b in zip(results[first], results[way]) if a and b]
    if not both:
        return None
    report = {"model": name, "way": way, "against": first, "parts": len(both),
              "means": [{f: statistics.fmean(r[i] for r in side) for i, f in enumerate(FIGURES)}
                        for side in zip(*both)]}
    report.update((f, ratio([(a[i], b[i]) for a, b in both])) for i, f in enumerate(FIGURES))
    print(json.dumps(report), flush=True)
    return report


def is_equal(report, limits):
    """One part has no standard error: that shows nothing."""
    return all(math.isfinite(report[key]["standard_error"]) and
               abs(report[key]["ratio"] - 1) <= limit + 2 * report[key]["standard_error"]
               for key, limit in limits.items())


def main():
    parser = argparse.ArgumentParser(description="quality of conversions on several devices")
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--ways", default="cpu,cuda")
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--windows", type=int, default=0, help="0: the whole text")
    parser.add_argument("--window-len", type=int, default=0, help="0: as --seq-len")
    parser.add_argument("--judge")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--max-perplexity", type=float, default=0.001)
    parser.add_argument("--max-kl", type=float, default=0.02)
    parser.add_argument("--max-output", type=float, default=0.001)
    args = parser.parse_args()
    ways = args.ways.split(",")
    args.judge = args.judge or ways[-1]
    args.end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as work, \
            concurrent.futures.ThreadPoolExecutor(1) as device, \
            concurrent.futures.ThreadPoolExecutor(args.jobs) as cpu, \
            concurrent.futures.ThreadPoolExecutor(args.sets * len(ways)) as waiting:
        results = {way: [] for way in ways}
        for part, text in enumerate(parts_of(args.calibration, args.sets)):
            path = os.path.join(work, "part-%d.txt" % part)
            with open(path, "wb") as file:
                file.write(text)
            for way in ways:
                results[way].append(waiting.submit(measure, args, {True: cpu, False: device}, work,
                                                   way, part, path))
        results = {way: [r.result() for r in of_way] for way, of_way in results.items()}
    name = os.path.basename(os.path.normpath(args.model))
    reports = [compare(name, way, ways[0], results) for way in ways[1:]]
    limits = dict(zip(FIGURES, (args.max_perplexity, args.max_kl, args.max_output)))
    return 0 if all(r is not None and is_equal(r, limits) for r in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
