#!/usr/bin/env python3
"""Writes a Llama of 30,000 random F32 weights with a tokenizer of bytes: a checkpoint on which every
method of ingot-convert runs in a fraction of a second.  Standard library only.

  python3 tests/tiny_checkpoint.py OUT_DIR [SEED]
"""

import json
import os
import random
import struct
import sys

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCAB = 32, 48, 4, 4, 2, 256

folder, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
rng = random.Random(seed)
os.makedirs(folder, exist_ok=True)


def write_json(name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file)


write_json("config.json", {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 256,
    "tie_word_embeddings": True, "torch_dtype": "float32"})

# The characters that stand for bytes in byte-level vocabularies.
plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
rest = [b for b in range(256) if b not in plain]
characters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
write_json("tokenizer.json", {
    "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": True},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {characters[b]: b for b in range(256)}, "merges": []}})

width = HIDDEN // HEADS
shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
for layer in range(LAYERS):
    at = f"model.layers.{layer}."
    shapes |= {at + "input_layernorm.weight": (HIDDEN,),
               at + "post_attention_layernorm.weight": (HIDDEN,),
               at + "self_attn.q_proj.weight": (HEADS * width, HIDDEN),
               at + "self_attn.k_proj.weight": (KV_HEADS * width, HIDDEN),
               at + "self_attn.v_proj.weight": (KV_HEADS * width, HIDDEN),
               at + "self_attn.o_proj.weight": (HIDDEN, HEADS * width),
               at + "mlp.gate_proj.weight": (FFN, HIDDEN),
               at + "mlp.up_proj.weight": (FFN, HIDDEN),
               at + "mlp.down_proj.weight": (HIDDEN, FFN)}
header, data = {}, b""
for name, shape in shapes.items():
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    scale = 0.2 if len(shape) > 1 else 0.1
    values = [rng.gauss(0.0 if len(shape) > 1 else 1.0, scale) for _ in range(count)]
    piece = struct.pack(f"<{count}f", *values)
    header[name] = {"dtype": "F32", "shape": list(shape),
                    "data_offsets": [len(data), len(data) + len(piece)]}
    data += piece
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(os.path.join(folder, "model.safetensors"), "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
