"""A reader that is a program over the conformance vectors: `PROGRAM --values FILE` prints a line
`tensor NAME KIND DTYPE SHAPE ... VALUES` for each tensor (VALUES in hexadecimal, last on the line)
and then OK, or the code of the first error, which may also be the first word on stderr.  What it
prints besides is compared, too: `root HEX`, `content_id HEX`, `meta SIZE HEX`,
`file NAME SIZE HEX`, and the target's values behind `of=TARGET` of an alias.

    vectors_of_program.py [--without-zstd] VECTORS_FOLDER PROGRAM
"""

import argparse
import json
import os
import struct
import subprocess
import sys

import xxhash


def positive_zeros(raw):
    words = struct.unpack(f"<{len(raw) // 4}I", raw)
    return struct.pack(f"<{len(words)}I", *(0 if w == 1 << 31 else w for w in words))


def run(program, path, *options, limits=None):
    """Exit code, OK or a code, and the words of each other line."""
    done = subprocess.run([program, *options, path], capture_output=True, text=True, timeout=120,
                          preexec_fn=limits, check=False)
    lines = done.stdout.strip().split("\n")
    words = (lines[-1].split() or done.stderr.split() or ["nothing"])
    return done.returncode, words[0], [line.split(" ") for line in lines]


def check_tensor(words, tensor):
    assert words[1:4] == [tensor["name"], tensor["kind"], tensor["dtype"]], words[1:4]
    assert words[4] == "x".join(map(str, tensor["shape"])), words[4]
    # A reader need not print the values of aliases again.
    if words[-1].startswith("of="):
        return
    got = bytes.fromhex(words[-1] if len(words) > 5 else "")
    if "bits" in tensor:
        got = positive_zeros(got)
    if "values" in tensor:
        values = bytes.fromhex(tensor["values"])
        assert got == (positive_zeros(values) if "bits" in tensor else values), (
            f"values of {tensor['name']}")
    else:
        digest = xxhash.xxh3_64_hexdigest(got)
        assert digest == tensor["values_xxh3_64"], f"values of {tensor['name']}"


def check(entry, path, program, without_zstd):
    status, last, lines = run(program, path, "--values")
    wanted = entry.get("code") or "OK"
    if without_zstd and entry.get("needs_zstd"):
        wanted = "E_UNSUPPORTED"
    assert last == wanted, f"{last}, expected {wanted}"
    assert (status == 0) == (wanted == "OK"), f"exit code {status}"
    if wanted != "OK":
        return
    tensors = [words for words in lines if words[0] == "tensor"]
    assert len(tensors) == len(entry["tensors"]), "number of tensors"
    for words, tensor in zip(tensors, entry["tensors"]):
        check_tensor(words, tensor)
    for words in lines:
        if words[0] in ("root", "content_id"):
            assert words[1] == entry[words[0]], words[0]
        elif words[0] == "meta":
            assert bytes.fromhex(words[2]).decode() == entry["meta"], "META"
    files = {words[1]: words[3] for words in lines if words[0] == "file"}
    assert files in ({}, entry["files"]), "files"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--without-zstd", action="store_true")
    parser.add_argument("vectors")
    parser.add_argument("program")
    options = parser.parse_args()
    with open(os.path.join(options.vectors, "vectors.json"), encoding="ascii") as f:
        manifest = json.load(f)
    count = 0
    for kind in ("valid", "invalid", "future"):
        for entry in manifest[kind]:
            path = os.path.join(options.vectors, entry["file"])
            try:
                check(entry, path, options.program, options.without_zstd)
            except AssertionError as error:
                sys.exit(f"{entry['file']}: {error}")
            count += 1
    print(f"{count} vectors")


if __name__ == "__main__":
    main()
