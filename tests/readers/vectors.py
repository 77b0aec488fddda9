"""The Python reader over the conformance vectors: values, digests, first errors.

    vectors.py --reader FOLDER VECTORS_FOLDER
"""

import argparse
import json
import os
import sys

import numpy as np
import xxhash


def values(reader_values, entry):
    """Bytes as the manifest gives them: +0 for both zeros of grouped tensors."""
    array = np.asarray(reader_values)
    if "bits" in entry:
        array = array.astype("<f4") + np.float32(0)  # -0 + 0 = +0
    elif entry["dtype"] == "BF16":
        return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return array.tobytes()


def expected(entry):
    raw = np.frombuffer(bytes.fromhex(entry["values"]), "u1")
    return ((raw.view("<f4") + np.float32(0)).tobytes() if "bits" in entry else raw.tobytes())


def check(ingot_reader, path, entry):
    try:
        with ingot_reader.Container(path, True) as container:
            container.verify()
            code = None
            if "content_id" in entry:
                assert container.content_id() == entry["content_id"], "content id"
                assert container.shards[0].root[::-1].hex() == entry["root"], "root"
                assert container.meta() == entry["meta"].encode(), "META"
            for tensor in entry.get("tensors", []):
                got = values(container.tensor(tensor["name"]), tensor)
                if "values" in tensor:
                    assert got == expected(tensor), tensor["name"]
                else:
                    digest = xxhash.xxh3_64_hexdigest(got)
                    assert digest == tensor["values_xxh3_64"], tensor["name"]
            for name, content in entry.get("files", {}).items():
                assert bytes(container.file(name)).hex() == content, name
    except ingot_reader.IngotError as error:
        code = error.code
    assert code == entry.get("code"), f"{code}, expected {entry.get('code')}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", required=True)
    parser.add_argument("vectors")
    options = parser.parse_args()
    sys.path.insert(0, options.reader)
    import ingot_reader

    with open(os.path.join(options.vectors, "vectors.json"), encoding="ascii") as f:
        manifest = json.load(f)
    count = 0
    for kind in ("valid", "invalid", "future"):
        for entry in manifest[kind]:
            try:
                check(ingot_reader, os.path.join(options.vectors, entry["file"]), entry)
            except AssertionError as error:
                sys.exit(f"{entry['file']}: {error}")
            count += 1
    print(f"{count} vectors")


if __name__ == "__main__":
    main()
