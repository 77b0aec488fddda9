#!/usr/bin/env python3
"""Writes the checkpoint of a container with folds as F32 with these folds in its weights: the same
function, of which a converter that chooses none has to make the same matrices.

  python3 tests/fold_checkpoint.py MODEL_DIR CONTAINER OUT_DIR

numpy alone; a checkpoint of one shard, F16 or F32.
"""
import os
import shutil
import sys

import numpy as np

from plant_outliers import read, write

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "examples",
                                "readers", "python"))
import ingot_reader  # noqa: E402


def main():
    model, container, out = sys.argv[1:4]
    os.makedirs(out)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(os.path.join(model, name), out)
    tensors = read(os.path.join(model, "model.safetensors"))
    with ingot_reader.Container(container, digests=False) as stored:
        names = {name.decode() for shard in stored.shards for name in shard.names}
        for name, values in tensors.items():
            if name + "#rowfold" in names:
                values *= np.asarray(stored.tensor(name + "#rowfold"), np.float32)[:, None]
            if name + "#fold" in names:
                values *= np.asarray(stored.tensor(name + "#fold"), np.float32)
            if name.endswith("norm.weight"):
                values[:] = stored.tensor(name)
    write(os.path.join(out, "model.safetensors"), tensors)


if __name__ == "__main__":
    main()
