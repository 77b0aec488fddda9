"""The conformance vectors of spec/vectors/: containers and what a reader must make of them.

    generate.py FOLDER      writes FOLDER/valid, invalid, future and vectors.json
    generate.py --check FOLDER    says whether FOLDER is what would be written

Made from spec/container.md and spec/quantization.md alone (numpy and xxhash; see container.py).
"""

import json
import os
import sys
import tempfile

from container import ALIAS, GROUPED, content_id, xxh64
from invalid import invalid, invalid_sets
from rules import more_invalid, more_invalid_sets
from valid import DTYPES, metas, mixed, shard_name, valid

NEED_ZSTD = ("zstd-chunks", "zstd-frames")
KINDS = ("dense", "grouped", "alias", "auxiliary")


def describe(t):
    out = {"name": t.name, "kind": KINDS[t.kind], "shape": list(t.dims), "dtype": DTYPES[t.dtype]}
    if t.kind == GROUPED or (t.kind == ALIAS and t.bits):
        out |= {"bits": t.bits, "group": t.group, "zero_points": "stored" if t.zero_mode else
                "symmetric", "scale_dtype": DTYPES[t.scale_dtype]}
    if t.kind == GROUPED:
        out["outliers"] = t.outliers
    if len(t.values) > 4096 or (not t.values and 0 not in t.dims):
        raw = t.values or t.parts[0]
        out["values_xxh3_64"] = xxh64(raw)[::-1].hex()
    else:
        out["values"] = t.values.hex()
    return out


# ---- future -----------------------------------------------------------------------------------


def future():
    """(name, code or None, File): what a later minor version may add."""
    out = []
    for name, code, change in [
            ("minor-version", None, {"minor": 9}), ("compat-bit", None, {"compat": 1 << 63}),
            ("ro-compat-bit", None, {"ro_compat": 5}),
            ("incompat-bit", "E_INCOMPAT", {"incompat": 2}),
            ("unknown-section", None, {"unknown": [(0, b"HINT", 0, b"skip me")]}),
            ("private-section", None, {"unknown": [(6, b"note", 6, b"")]}),
            ("critical-section", "E_CRITICAL_SECTION", {"unknown": [(3, b"MUST", 1, b"know")]})]:
        f = mixed()
        for key, value in change.items():
            setattr(f, key, value)
        out.append((name, code, f))
    return out


# ---- writing ----------------------------------------------------------------------------------


def write(folder):
    manifest = {"version": "1.0", "valid": [], "invalid": [], "future": []}
    for kind in ("valid", "invalid", "future"):
        os.makedirs(os.path.join(folder, kind), exist_ok=True)

    def save(kind, name, raw):
        with open(os.path.join(folder, kind, name), "wb") as f:
            f.write(raw)

    def expected(shards):
        first = shards[0]
        return {"profile": first.profile, "content_id": content_id(shards),
                "root": first.build()[88:104][::-1].hex(), "meta": first.meta.decode(),
                "files": {name: raw.hex() for name, raw in first.files},
                "tensors": [describe(t) for f in shards for t in f.tensors]}

    codes = {name: code for name, code, _ in metas()}
    for name, shards in valid():
        names = [f"{name}.ingot"] if len(shards) == 1 else [
            shard_name(name, i, len(shards)) for i in range(len(shards))]
        for file_name, f in zip(names, shards):
            save("valid", file_name, f.build())
        entry = {"file": f"valid/{names[0]}", "shards": len(names)} | expected(shards)
        if codes.get(name):
            entry["meta_code"] = codes[name]
        if name in NEED_ZSTD:
            entry["needs_zstd"] = True
        manifest["valid"].append(entry)
    for name, code, raw in invalid() + more_invalid():
        save("invalid", f"{name}.ingot", raw)
        needs_zstd = name.startswith("frame-")
        manifest["invalid"].append({"file": f"invalid/{name}.ingot", "code": code} |
                                   ({"needs_zstd": True} if needs_zstd else {}))
    for name, code, opened, files in [*invalid_sets(), *more_invalid_sets()]:
        for file_name, raw in files.items():
            save("invalid", file_name, raw)
        manifest["invalid"].append({"file": f"invalid/{opened}", "code": code})
    for name, code, f in future():
        save("future", f"{name}.ingot", f.build())
        entry = {"file": f"future/{name}.ingot", "code": code}
        manifest["future"].append(entry | ({} if code else expected([f])))
    with open(os.path.join(folder, "vectors.json"), "w", encoding="ascii") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")


def read_all(folder):
    out = {}
    for kind in ("valid", "invalid", "future"):
        for name in os.listdir(os.path.join(folder, kind)):
            with open(os.path.join(folder, kind, name), "rb") as f:
                out[f"{kind}/{name}"] = f.read()
    with open(os.path.join(folder, "vectors.json"), "rb") as f:
        out["vectors.json"] = f.read()
    return out


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            wanted, there = read_all(folder), read_all(sys.argv[2])
        wrong = [name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)]
        if wrong:
            sys.exit(f"{sys.argv[2]} differs from what generate.py writes: {sorted(wrong)}")
        print(f"{len(wanted)} files")
    elif len(sys.argv) == 2:
        write(sys.argv[1])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
