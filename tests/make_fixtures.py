#!/usr/bin/env python3
"""Write tests/fixtures/NAME: tiny randomly initialised checkpoints and what `transformers` computes
from them, the oracle of the forward pass for families no small public model exists of.

    pip install torch transformers        # made with torch 2.14.0, transformers 5.17.0
    python3 tests/make_fixtures.py [NAME...]

Weights are drawn wide (standard deviation 0.3), so that logits differ clearly from token to token
and a missing bias, norm or window changes the argmax; norm weights and biases are random too.
Tokens are sampled from the model itself, so that its perplexity is far below the vocabulary.

expected.json: ids; logits of the last positions (first_logit_position on), computed in FP32 from
the stored weights; argmax at every position; perplexity of ids[1:] given those before them.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

FOLDER = Path(__file__).resolve().parent / "fixtures"
LENGTH = 48  # tokens
LOGIT_POSITIONS = 4
STD = 0.3
FOLDER_BYTES_MAX = 150_000

COMMON = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)

# name -> configuration, dtype of the stored weights, bytes per shard
MODELS = {
    # q/k/v biases, tied head, window in the second layer only
    "tiny-qwen2": (
        Qwen2Config(
            **COMMON,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=9,
            max_window_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        ),
        torch.float16,
        None,
    ),
    # q/k norms, heads * head_dim larger than hidden
    "tiny-qwen3": (
        Qwen3Config(
            **{**COMMON, "head_dim": 16},
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        ),
        torch.bfloat16,
        None,
    ),
    # a window shorter than the text in every layer, untied head
    "tiny-mistral": (
        MistralConfig(**{**COMMON, "hidden_size": 48, "num_attention_heads": 6},
                      sliding_window=7),
        torch.float16,
        None,
    ),
    # llama3 rope scaling whose three ranges all occur, untied head, shards
    "tiny-llama": (
        LlamaConfig(
            **{**COMMON, "num_hidden_layers": 3, "num_key_value_heads": 1},
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 100.0,  # wavelengths 6, 20, 63 and 199 against the bounds 8 and 32
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        torch.bfloat16,
        20_000,
    ),
    # biases everywhere, linear rope scaling, another activation, FP32
    "tiny-llama-bias": (
        LlamaConfig(
            **COMMON,
            attention_bias=True,
            mlp_bias=True,
            hidden_act="gelu",
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        ),
        torch.float32,
        None,
    ),
}


def randomise(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * STD
        parameter.data = 1.0 + noise if name.endswith("norm.weight") else noise
    model.tie_weights()


def sample(model, generator):
    ids = [1]
    with torch.no_grad():
        while len(ids) < LENGTH:
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            probabilities = torch.softmax(logits, dim=-1)
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return ids


def expectation(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    top = logits.topk(2, dim=-1).values
    margin = float((top[:, 0] - top[:, 1]).min() / logits.abs().max())
    scores = torch.log_softmax(logits.double(), dim=-1)[:-1]
    nll = -scores.gather(1, torch.tensor(ids[1:])[:, None]).mean()
    first = len(ids) - LOGIT_POSITIONS
    return margin, {
        "ids": ids,
        "first_logit_position": first,
        "logits": [[float(f"{x:.9g}") for x in row] for row in logits[first:].tolist()],
        "argmax": logits.argmax(dim=-1).tolist(),
        "perplexity": math.exp(float(nll)),
    }


def write(name, config, dtype, shard_bytes):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    for seed in range(1, 100):
        generator = torch.Generator().manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomise(model, generator)
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 3])
        sizes = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
        model.to(dtype).save_pretrained(folder, **sizes)
        stored = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        margin, expected = expectation(stored, sample(stored, generator))
        if margin > 2e-3:  # else the argmax at some position is a matter of rounding
            break
        shutil.rmtree(folder)
    text = json.dumps(expected, indent=None, separators=(",", ":"))
    (folder / "expected.json").write_text(text + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert total < FOLDER_BYTES_MAX, f"{name}: {total} bytes"
    print(f"{name}: seed {seed}, {total} bytes, perplexity {expected['perplexity']:.3f}, "
          f"smallest margin {margin:.2e} of the largest logit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        write(name, *MODELS[name])
