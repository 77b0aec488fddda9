"""Loads an Ingot container into a `transformers` model and scores a text with it.

What it is: an example of third-party use.  Weights are dequantized to FP32 through the Python
reader in ../readers/python; configuration and tokenizer are the container's own files.
What it is not: fast, or a way to run models in few bytes: the model is as large as in FP32.

    python3 load_ingot.py model.ingot --text FILE [--seq-len N] [--windows N]

Prints the perplexity under the protocol of spec/quality.md, section 4.
"""

import argparse
import json
import math
import os
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../readers/python"))
from ingot_reader import Container, IngotError  # noqa: E402

HEAD = "lm_head.weight"


def load(path):
    """The model in FP32 and its tokenizer; every chunk that is loaded is checked."""
    with Container(path) as container:
        stored = container.model_names()
        config = json.loads(container.file("config.json"))
        # The head of a tied checkpoint may have been quantized on its own.
        if HEAD in stored:
            config["tie_word_embeddings"] = container.info(HEAD)["kind"] == "alias"
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config),
                                                 dtype=torch.float32)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        differ = set(stored) ^ set(parameters)
        if differ - ({HEAD} if model.config.tie_word_embeddings else set()):
            raise SystemExit(f"not this model's tensors: {sorted(differ)[:5]}")
        with torch.no_grad():
            for name in stored:
                values = torch.from_numpy(container.tensor(name))
                if parameters[name].shape != values.shape:
                    raise SystemExit(f"{name}: shape {tuple(values.shape)} is not the model's")
                parameters[name].copy_(values)
        tokenizer = Tokenizer.from_str(container.file("tokenizer.json").decode())
    return model.eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def perplexity(model, tokenizer, text, seq_len=None, windows=None):
    """exp of the mean negative log-likelihood over whole windows, and the number of windows."""
    length = seq_len or min(2048, model.config.max_position_embeddings)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    ids = ids[:len(ids) // length * length].view(-1, length)[:windows]
    total = 0.0
    for window in ids:
        with torch.no_grad():
            logits = model(window[None]).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(total / (len(ids) * (length - 1))), len(ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Perplexity of a container on a text.")
    parser.add_argument("path")
    parser.add_argument("--text", required=True)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--windows", type=int)
    options = parser.parse_args()
    with open(options.text, encoding="utf-8", newline="") as file:
        contents = file.read()
    try:
        score, count = perplexity(*load(options.path), contents, options.seq_len, options.windows)
    except IngotError as error:
        raise SystemExit(str(error)) from error
    print(f"perplexity {score:.6f} over {count} windows")
