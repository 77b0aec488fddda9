"""A reader that is a program over the conformance vectors: `PROGRAM --values FILE` prints a line
`tensor NAME KIND DTYPE SHAPE ... VALUES` for each tensor (VALUES in hexadecimal, last on the line)
and then OK, or the code of the first error, which may also be the first word on stderr.

    vectors_of_program.py [--without-zstd] VECTORS_FOLDER PROGRAM
"""

import argparse
import json
import os
import struct
import subprocess
import sys


def positive_zeros(raw):
    words = struct.unpack(f"<{len(raw) // 4}I", raw)
    return [0 if w == 1 << 31 else w for w in words]


def run(program, path):
    done = subprocess.run([program, "--values", path], capture_output=True, text=True, timeout=60,
                          check=False)
    lines = done.stdout.strip().split("\n")
    words = (lines[-1].split() or done.stderr.split() or ["nothing"])
    return done.returncode, words[0], [line.split(" ") for line in lines if line.startswith("tensor ")]


def check(entry, path, program, without_zstd):
    status, last, tensors = run(program, path)
    wanted = entry.get("code") or "OK"
    if without_zstd and (entry.get("code") == "E_COMPRESSION" or "zstd-chunks" in path):
        wanted = "E_UNSUPPORTED"
    assert last == wanted, f"{last}, expected {wanted}"
    assert (status == 0) == (wanted == "OK"), f"exit code {status}"
    if wanted != "OK":
        return
    assert len(tensors) == len(entry["tensors"]), "number of tensors"
    for words, tensor in zip(tensors, entry["tensors"]):
        assert words[1:4] == [tensor["name"], tensor["kind"], tensor["dtype"]], words[1:4]
        assert words[4] == "x".join(map(str, tensor["shape"])), words[4]
        if tensor["kind"] == "alias" or not tensor.get("values"):
            continue
        got, values = bytes.fromhex(words[-1]), bytes.fromhex(tensor["values"])
        if tensor["kind"] == "grouped":
            got, values = positive_zeros(got), positive_zeros(values)
        assert got == values, f"values of {tensor['name']}"


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
