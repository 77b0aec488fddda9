#!/usr/bin/env python3
"""Writes a copy of a Llama checkpoint of one shard with planted outliers, as F32; numpy only.

  python3 tests/plant_outliers.py examples/demo-4m OUT_DIR --columns 1   # the function is unchanged
  python3 tests/plant_outliers.py examples/demo-4m OUT_DIR --lone 4      # another model

--columns N: N columns of every linear times 100, and what feeds them (the norm before q, k, v and
before gate, up; rows of v; rows of up) divided by 100.
--lone N: the same inputs divided by 100, and one weight of every row, in a column drawn from those N,
becomes 100 times the mean magnitude of its matrix; the other weights stay.
"""

import argparse
import json
import os
import shutil
import struct

import numpy as np

FACTOR = 100.0
TYPES = {"F16": np.float16, "F32": np.float32}


def read(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = file.read()
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[begin:end], TYPES[entry["dtype"]])
        out[name] = values.reshape(entry["shape"]).astype(np.float32)
    return out


def write(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())


def plant(tensors, config, count, draw, change):
    """Divides `count` inputs of every linear by FACTOR where they are made, then calls
    change(weight, columns) for the weights that read them."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    shared = heads // kv_heads
    for layer in range(config["num_hidden_layers"]):
        block = {
            name.split(".")[-2]: values
            for name, values in tensors.items()
            if name.startswith(f"model.layers.{layer}.") and name.endswith(".weight")
        }
        for producer, readers in (
            ("input_layernorm", ["q_proj", "k_proj", "v_proj"]),
            ("post_attention_layernorm", ["gate_proj", "up_proj"]),
            ("up_proj", ["down_proj"]),
            ("v_proj", ["o_proj"]),
        ):
            rows = draw.choice(len(block[producer]), count, replace=False)
            block[producer][rows] /= FACTOR
            columns = rows
            if producer == "v_proj":  # a row of v feeds every query head that shares it
                head, lane = np.divmod(rows, head_dim)
                columns = (head[:, None] * shared + np.arange(shared)) * head_dim + lane[:, None]
            for name in readers:
                change(block[name], columns.ravel())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("out")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--columns", type=int)
    kind.add_argument("--lone", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.makedirs(options.out)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(os.path.join(options.model, name), options.out)
    with open(os.path.join(options.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    tensors = read(os.path.join(options.model, "model.safetensors"))
    draw = np.random.default_rng(options.seed)

    def multiply(weight, columns):
        weight[:, columns] *= FACTOR

    def set_lone(weight, columns):
        at = draw.choice(columns, len(weight))
        signs = draw.choice([-1.0, 1.0], len(weight))
        weight[np.arange(len(weight)), at] = signs * FACTOR * np.abs(weight).mean()

    if options.columns is not None:
        plant(tensors, config, options.columns, draw, multiply)
    else:
        plant(tensors, config, options.lone, draw, set_lone)
    write(os.path.join(options.out, "model.safetensors"), tensors)


if __name__ == "__main__":
    main()
