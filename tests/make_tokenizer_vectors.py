#!/usr/bin/env python3
"""Writes tests/vectors/tokenizer/: small tokenizers and what the `tokenizers` library (0.23) makes of
hard texts with them.

    python3 tests/make_tokenizer_vectors.py [SMOLLM2_FOLDER]      from the root of the tree

NAME.json is a tokenizer, NAME.cases.json its cases: texts and decoded texts as hexadecimal bytes, token
ids as numbers.  corpora.json holds, for the models and texts of ../shared (and SmolLM2 where its folder
is given), how many tokens the library finds and a digest of their ids: FNV-1a over 32-bit words.
demo-4m's tokenizer is taken from examples/; the others are trained or put together here.  Training breaks
ties at random, so a tokenizer may come out different (with its cases) when this is run again."""

import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = "tests/vectors/tokenizer"
DEMO = "examples/demo-4m/tokenizer.json"
SHARED = "../shared"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CJK = "[一-龥぀-ゟ゠-ヿ]+"

TRAINING = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind; it's what dogs do.",
    "In 1999 there were 12345 of them, 3.14159 each. We'll see what they're worth in 2026.",
    "def add(a, b):\n    return a + b  # the sum\n\nfor i in range(10):\n    print(add(i, i))\n",
    "Äpfel, Öl und Übermut; déjà vu, naïve café. Привет, мир! こんにちは世界、日本語の文。 你好，世界。",
] * 4

TEXTS = [
    b"", b" ", b"  ", b"a", b"Hello, world!", b" leading", b"trailing ", b"  both  ", b"\n", b"\n\n\n", b"\r\n\r\n",
    b"line one\r\nline two\r\n\r\nline four", b"tab\tand\x0bvertical\x0cfeed", b"trailing spaces   \n   indented",
    b"1", b"12", b"123", b"1234", b"12345678901234567890", b"3.14159e-10", b"1,000,000", b"0x1F",
    b"I'll, you're, we've, it's, I'm, he'd, don't, I'LL, YOU'RE, 's'S", "I’ll “quote” – dash".encode(),
    b"def f(x):\n    if x > 0:\n        return {'a': [1, 2, 3]}\n\n\treturn None\n",
    b"#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 1 << 3); }", b"<html><body class=\"x\">&amp;</body></html>",
    b"snake_case camelCase PascalCase SCREAMING_CASE kebab-case", b"https://example.org/a/b?c=d&e=f#g",
    "日本語のテキスト、漢字とかな。".encode(), "你好，世界！这是一个测试。".encode(), "한국어 텍스트입니다.".encode(),
    "Привет, мир! Ещё раз.".encode(), "مرحبا بالعالم ١٢٣".encode(), "नमस्ते दुनिया १२३".encode(), "สวัสดีชาวโลก".encode(),
    "😀 😃😄 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️".encode(), "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟏𝟐𝟑".encode(), "½ ² Ⅷ ① ㈱ ﬁ ﬀ".encode(),
    "caf\u00e9 cafe\u0301 A\u030a \u00c5 \u212b".encode(), "q\u0307\u0323 q\u0323\u0307 o\u0302\u0323".encode(),
    "\u1100\u1161\u11a8 \uac01 \u1112\u1161\u11ab\uae00".encode(), "e\u0301\u0301\u0301 \u0301 \u0301x".encode(),
    "\u00a0nbsp\u3000ideographic\u2003em\u200bzero\u2028line\u2029para\u0085nel\u180emvs".encode(),
    "\ufeffbom \ufffd replacement".encode(), b"nul\x00in\x00side\x00", b"\x00", b"\x01\x02\x7f",
    b"\xff", b"bad \xff\xfe bytes", b"\xc3", b"\xc3\x28", b"cut \xe2\x82", b"cut \xf0\x9f\x98", b"\xf0\x9f\x98\xf0\x9f\x98\x80",
    b"\xed\xa0\x80 surrogate", b"\xc0\xaf overlong", b"\xe0\x80\xaf", b"\xf4\x90\x80\x80", b"\x80\x80\x80", b"\xe2\x28\xa1",
    b"<|endoftext|>", b"a<|endoftext|>b", b" <|endoftext|> ", b"<|endoftext|><|endoftext|>", b"<|endoftext", b"|><|",
    b"<s>x</s>", b"<unk>", b"<s> spaced </s> out", b"<0x41><0x0A>", "▁ ▁▁x▁".encode(), b"<|im_start|>user\nhi<|im_end|>",
    b"a<tool> b </tool>c", b"nospace<mask>here and <mask> there", b"  <mask>  ", b"word wordword word", b"Caf\xc3\xa9CAFE\xcc\x81",
    b"foo  foo   foo\tfoo\n foo", b"ifoo foo2 foo_ foo. (foo)", b"\t\t\tx", b"a \n b \r c \r\n d", b"....!!!???,,,;;;",
    b"a" * 300, b" " * 300, b"\n" * 70, b"ab" * 200, b"!" * 100, "é".encode() * 100, "日".encode() * 100, b"1" * 100,
    b"x" * 40 + b" " * 40 + b"y",
]
LONG = [(b"a", 100000), (b" ", 100000), (b"ab ", 30000), (b"\n", 100000), ("日".encode(), 30000), ("é\u0301".encode(), 30000),
        (b"the quick brown fox ", 5000)]


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        h = ((h ^ i) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def random_texts(seed, count):
    rng = random.Random(seed)
    words = [t.decode("utf-8", "replace") for t in TEXTS if 0 < len(t) < 40]
    for _ in range(count):
        yield "".join(rng.choice(words) for _ in range(rng.randrange(1, 8))).encode()


def cases(tokenizer, seed):
    out = []
    for text in TEXTS + list(random_texts(seed, 40)):
        s = text.decode("utf-8", "replace")
        ids = tokenizer.encode(s, add_special_tokens=False).ids
        case = {"text": text.hex(), "ids": ids}
        decoded = tokenizer.decode(ids, skip_special_tokens=False).encode()
        skipped = tokenizer.decode(ids, skip_special_tokens=True).encode()
        if decoded != text:
            case["decoded"] = decoded.hex()
        if skipped != decoded:
            case["skipped"] = skipped.hex()
        out.append(case)
    rng = random.Random(seed)
    vocab = sorted(tokenizer.get_vocab().values())
    for _ in range(30):  # ids no text gives: bytes that are not UTF-8, spaces inside, special tokens
        ids = [rng.choice(vocab) for _ in range(rng.randrange(12))]
        out.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False).encode().hex(),
                    "skipped": tokenizer.decode(ids, skip_special_tokens=True).encode().hex()})
    for unit, times in LONG:
        ids = tokenizer.encode((unit * times).decode(), add_special_tokens=False).ids
        out.append({"text": unit.hex(), "times": times, "count": len(ids), "fnv": fnv(ids)})
    return out


def write(name, value):
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def bytelevel(vocab, split, normalizer=None, ignore_merges=False, added=()):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.normalizer = normalizer
    t.pre_tokenizer = split
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    t.add_tokens(list(added))
    return json.loads(t.to_str())


def split(regex, behavior="isolated"):
    return pre_tokenizers.Split(Regex(regex), behavior)


def llama3():
    """ignore_merges, and words in the vocabulary that no merge makes."""
    t = bytelevel(400, pre_tokenizers.Sequence([split(LLAMA3), pre_tokenizers.ByteLevel(False, use_regex=False)]),
                  ignore_merges=True)
    vocab = t["model"]["vocab"]
    for word in ["ĠHello", "snake", "Ġreturn", "12", "camel", "ĠPascal", "ĠtextÃ©"]:
        vocab.setdefault(word, len(vocab) + 100)
    t["added_tokens"] = [a for a in t["added_tokens"] if a["content"] in vocab]
    return t


def qwen2():
    added = [AddedToken("<tool>", lstrip=True), AddedToken("</tool>", rstrip=True), AddedToken("<mask>", lstrip=True, rstrip=True),
             AddedToken("foo", single_word=True), AddedToken("Caf\u00e9", normalized=True), AddedToken("word", normalized=False)]
    return bytelevel(420, pre_tokenizers.Sequence([split(QWEN2), pre_tokenizers.ByteLevel(False, use_regex=False)]),
                     normalizer=normalizers.NFC(), added=added)


def digits():
    return bytelevel(400, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]))


def gpt2():
    t = bytelevel(400, pre_tokenizers.ByteLevel(True))
    t["model"]["merges"] = [" ".join(m) for m in t["model"]["merges"]]
    return t


def deepseek():
    return bytelevel(450, pre_tokenizers.Sequence([split(r"\p{N}{1,3}"), split(CJK), split(DEEPSEEK),
                                                   pre_tokenizers.ByteLevel(False, use_regex=False)]))


def sentencepiece(byte_fallback):
    """A vocabulary of characters, <0xHH> and trained merges, as conversions of SentencePiece models have it."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    t.train_from_iterator([x.split("Привет")[0] for x in TRAINING], trainers.BpeTrainer(
        vocab_size=len(special) + 200, special_tokens=special, show_progress=False, max_token_length=12))
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    j = json.loads(t.to_str())
    j["added_tokens"] = j["added_tokens"][:3]
    # The trainer merges over spaces; conversions hold no token with a space in its middle.
    bad = {k for k in j["model"]["vocab"] if "▁" in k.lstrip("▁")}
    j["model"]["merges"] = [m for m in j["model"]["merges"] if not bad & {m[0], m[1], m[0] + m[1]}]
    keep = {k for k in j["model"]["vocab"] if k not in bad}
    j["model"]["vocab"] = {k: i for i, k in enumerate(sorted(keep, key=j["model"]["vocab"].get))}
    return j


def metaspace(scheme, splits):
    j = sentencepiece(False)
    j["normalizer"] = json.loads('{"type":"NFKC"}')
    j["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": splits}
    j["decoder"] = dict(j["pre_tokenizer"])
    j["model"]["fuse_unk"] = False
    return j


def punctuation():
    t = bytelevel(350, pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("merged_with_previous"),
                                                pre_tokenizers.Digits(False), split(r"[aeiou]+", "contiguous"),
                                                pre_tokenizers.ByteLevel(False, use_regex=False)]),
                  normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.Strip(),
                                                   normalizers.Replace(Regex(r"\h{8,}|qu"), "Q")]))
    t["decoder"] = None
    return t


def affixes():
    """Continuing prefix and end-of-word suffix."""
    t = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False,
                                                        continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    return json.loads(t.to_str())


def corpora(smollm2):
    models_ = {n: f"{SHARED}/models/{n}/tokenizer.json" for n in ("demo-4m", "books-28m", "stories-260k")}
    if smollm2:
        models_["smollm2-135m"] = os.path.join(smollm2, "tokenizer.json")
    out = {}
    for name, path in models_.items():
        t = Tokenizer.from_file(path)
        out[name] = {}
        for file in ("books-calibration.txt", "books-eval.txt", "tinystories.txt", "wikitext2-test.txt"):
            with open(f"{SHARED}/corpora/{file}", "rb") as f:
                text = f.read().decode("utf-8", "replace")
            ids = t.encode(text, add_special_tokens=False).ids
            assert t.decode(ids, skip_special_tokens=False) == text, "the library does not give the text back"
            out[name][file] = {"count": len(ids), "fnv": fnv(ids)}
    return out


def main():
    os.makedirs(OUT, exist_ok=True)
    made = {"llama3": llama3(), "qwen2": qwen2(), "digits": digits(), "gpt2": gpt2(), "deepseek": deepseek(),
            "fallback": sentencepiece(True), "metaspace": metaspace("always", True),
            "metaspace-first": metaspace("first", False), "punctuation": punctuation(), "affixes": affixes()}
    for seed, (name, tokenizer) in enumerate(made.items(), 1):
        write(f"{name}.json", tokenizer)
        write(f"{name}.cases.json", cases(Tokenizer.from_file(f"{OUT}/{name}.json"), seed))
    write("demo-4m.cases.json", cases(Tokenizer.from_file(DEMO), 0))
    if os.path.isdir(SHARED):
        write("corpora.json", corpora(sys.argv[1] if len(sys.argv) > 1 else None))


if __name__ == "__main__":
    main()
