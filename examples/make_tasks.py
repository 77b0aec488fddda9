#!/usr/bin/env python3
"""Multiple-choice items for `ingot-verify --tasks` out of any text: a context, its true continuation
and three continuations from elsewhere in the same text.

    examples/make_tasks.py TEXT... [-n 500] [--context 40] [--choice 8] [--seed 1] >items.jsonl

Words are what lies between white space; line breaks become spaces.  Contexts do not overlap, and a
false choice begins in another place of the text, after the same number of words.  The same seed and
text give the same items.
"""

import argparse
import json
import random
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("text", nargs="+")
    parser.add_argument("-n", "--items", type=int, default=500)
    parser.add_argument("--context", type=int, default=40, help="words of a context")
    parser.add_argument("--choice", type=int, default=8, help="words of a choice")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    words = []
    for path in options.text:
        with open(path, encoding="utf-8", errors="replace") as file:
            words += file.read().split()
    span = options.context + options.choice
    places = len(words) // span
    if places < max(options.items, 4):
        sys.exit(f"{len(words)} words give {places} items: use more text or a shorter --context")
    draw = random.Random(options.seed)

    def choice(place):
        start = place * span + options.context
        return " " + " ".join(words[start : start + options.choice])

    for place in sorted(draw.sample(range(places), options.items)):
        others = draw.sample([p for p in range(places) if p != place], 3)
        choices = [choice(place)] + [choice(p) for p in others]
        draw.shuffle(choices)
        item = {
            "context": " ".join(words[place * span : place * span + options.context]),
            "choices": choices,
            "answer": choices.index(choice(place)),
        }
        print(json.dumps(item, ensure_ascii=False))


if __name__ == "__main__":
    main()
