#!/usr/bin/env python3
"""Writes a Hugging Face folder with random BF16 weights of a given shape, for measurements of speed
and memory: neither depends on the values.  numpy only.

  python3 tests/generate_checkpoint.py llama-3.1-8b OUT_DIR --tokenizer examples/demo-4m
  python3 tests/generate_checkpoint.py llama-70b-block OUT_DIR --layers 2 --tokenizer ...

Weights are normal with deviation 0.02 (output projections smaller, by the square root of twice the
depth), norms near one, so that activations stay in range.  Values come from one pool of 2^24
normals, read from a random place for every piece of a tensor: making 16 GB takes as long as writing
it.  The tokenizer of the folder named is copied; its ids must be below the vocabulary.
"""

import argparse
import json
import os
import shutil
import struct

import numpy as np

SHAPES = {
    # hidden, ffn, layers, heads, kv heads, vocabulary, tied
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256, False),
    "llama-70b-block": (8192, 28672, 2, 64, 8, 4096, False),
    "llama-1b": (2048, 8192, 16, 32, 8, 128256, True),
    "tiny": (256, 704, 2, 4, 2, 4096, True),
}
SHARD_BYTES = 4 << 30
POOL = 1 << 24
PIECE = 1 << 22  # elements


def tensors(shape, layers):
    """(name, rows, cols or None, deviation); a norm has no columns."""
    hidden, ffn, _, heads, kv_heads, vocab, tied = shape
    head_dim = hidden // heads
    out = 0.02 / (2 * layers) ** 0.5
    yield "model.embed_tokens.weight", vocab, hidden, 0.02
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", hidden, None, 0.0
        yield p + "self_attn.q_proj.weight", heads * head_dim, hidden, 0.02
        yield p + "self_attn.k_proj.weight", kv_heads * head_dim, hidden, 0.02
        yield p + "self_attn.v_proj.weight", kv_heads * head_dim, hidden, 0.02
        yield p + "self_attn.o_proj.weight", hidden, heads * head_dim, out
        yield p + "post_attention_layernorm.weight", hidden, None, 0.0
        yield p + "mlp.gate_proj.weight", ffn, hidden, 0.02
        yield p + "mlp.up_proj.weight", ffn, hidden, 0.02
        yield p + "mlp.down_proj.weight", hidden, ffn, out
    yield "model.norm.weight", hidden, None, 0.0
    if not tied:
        yield "lm_head.weight", vocab, hidden, 0.02


def to_bf16(values):
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


class Source:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.normals = self.rng.standard_normal(POOL, dtype=np.float32)
        self.scaled = {}

    def write(self, file, count, deviation):
        if deviation == 0.0:
            file.write(to_bf16(1 + 0.05 * self.normals[:count]).tobytes())
            return
        if deviation not in self.scaled:
            pool = to_bf16(self.normals * deviation)
            self.scaled = {deviation: np.concatenate([pool, pool[:PIECE]])}
        pool = self.scaled[deviation]
        for done in range(0, count, PIECE):
            at = int(self.rng.integers(POOL))
            file.write(memoryview(pool[at : at + min(PIECE, count - done)]))


def shards(all_tensors):
    group, size = [], 0
    for tensor in all_tensors:
        bytes_ = 2 * tensor[1] * (tensor[2] or 1)
        if group and size + bytes_ > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += bytes_
    yield group


def write_shard(path, group, source):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, rows, cols, _ in group:
        size = 2 * rows * (cols or 1)
        header[name] = {
            "dtype": "BF16",
            "shape": [rows, cols] if cols else [rows],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, rows, cols, deviation in group:
            source.write(file, rows * (cols or 1), deviation)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokenizer", required=True, help="folder with tokenizer.json")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    hidden, ffn, layers, heads, kv_heads, vocab, tied = shape
    layers = args.layers or layers
    os.makedirs(args.out, exist_ok=True)
    groups = list(shards(list(tensors(shape, layers))))
    source, index, total = Source(args.seed), {}, 0
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        name = "model.safetensors" if len(groups) == 1 else name
        total += write_shard(os.path.join(args.out, name), group, source)
        index.update({tensor[0]: name for tensor in group})
    if len(groups) > 1:
        with open(os.path.join(args.out, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": index}, file)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with open(os.path.join(args.out, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = os.path.join(args.tokenizer, name)
        if os.path.exists(path):
            shutil.copy(path, args.out)
    print(f"{args.out}: {total / 1e9:.2f} GB in {len(groups)} file(s)")


if __name__ == "__main__":
    main()
