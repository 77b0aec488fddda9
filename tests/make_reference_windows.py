#!/usr/bin/env python3
"""Regenerates tests/fixtures/reference_windows.json: what transformers computes in FP32 for the
first windows of a text, per model of ../shared (too large to run whole in every test run).

    python3 tests/make_reference_windows.py SHARED SMOLLM2_DIR

Per window of `length` tokens (perplexity protocol of the architecture: no special tokens,
non-overlapping, tail dropped): the mean negative log-likelihood of tokens 1..length-1 in nats and
the argmax after each of tokens 0..length-2.
"""
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

CASES = [  # model, text, length, windows
    ("demo-4m", "books-eval.txt", 512, 4),
    ("stories-260k", "tinystories.txt", 256, 4),
    ("books-28m", "books-eval.txt", 1024, 1),
    ("smollm2-135m", "wikitext2-test.txt", 512, 1),
]


def score(folder, text, length, count):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = []
    for w in range(count):
        window = torch.tensor(ids[w * length : (w + 1) * length])
        with torch.no_grad():
            logits = model(window[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits.double(), window[1:]).item()
        windows.append({"nll": nll, "argmax": logits.argmax(-1).tolist()})
    return windows


def main():
    shared, smollm2 = map(pathlib.Path, sys.argv[1:3])
    out = []
    for name, text, length, count in CASES:
        folder = smollm2 if name.startswith("smollm2") else shared / "models" / name
        content = (shared / "corpora" / text).read_bytes().decode("utf-8", errors="replace")
        # Only the windows' share of the text: a cut inside a word moves at most the last tokens.
        content = content[: 12 * length * count]
        out.append({"model": name, "text": text, "length": length,
                    "windows": score(folder, content, length, count)})
    path = pathlib.Path(__file__).parent / "fixtures" / "reference_windows.json"
    path.write_text(json.dumps(out, separators=(",", ":")).replace("{\"model\"", "\n{\"model\"")
                    + "\n")


if __name__ == "__main__":
    main()
