#!/usr/bin/env python3
"""What PyTorch and sentence-transformers give on this machine's GPU, for the same work as gpu_bench.cu: a model of
all-MiniLM-L6-v2's shape with random weights, texts of about 20 and about 103 word pieces, and the best 200 and 1,000 of
many keys by a matmul and topk. Prints Markdown tables, or one line where something is missing.
"""
import os
import random
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
DIM, WIDE, HEADS, LAYERS, WORDS = 384, 1536, 12, 6, 30522
SECONDS = 6


def model_folder(folder):
    """A BERT folder with random weights whose every word `w123` is one piece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(WORDS - len(special))])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                             special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]", model_max_length=512).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=WORDS, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         intermediate_size=WIDE)).save_pretrained(folder)


def encoder(folder, device="cuda"):
    from sentence_transformers import SentenceTransformer, models

    words = models.Transformer(folder, max_seq_length=512)
    return SentenceTransformer(modules=[words, models.Pooling(DIM), models.Normalize()], device=device).bfloat16()


def texts_of(length, count):
    draw = random.Random(length)
    return [" ".join(f"w{draw.randrange(WORDS - 4)}" for _ in range(draw.randint(length * 3 // 4, length * 5 // 4) - 2))
            for _ in range(count)]


def encode_rate(model, texts, batch):
    """Tokens/s, [CLS] and [SEP] included; the first call warms up."""
    import torch

    model.encode(texts[:batch], batch_size=batch, show_progress_bar=False)
    tokens, start = 0, time.monotonic()
    while time.monotonic() - start < SECONDS:
        model.encode(texts, batch_size=batch, convert_to_tensor=True, show_progress_bar=False)
        torch.cuda.synchronize()
        tokens += sum(text.count(" ") + 3 for text in texts)
    return tokens / (time.monotonic() - start)


def encoding():
    with tempfile.TemporaryDirectory() as folder:
        model_folder(folder)
        model = encoder(folder)
        print("| sentence-transformers in bf16 | best batch | tokens/s |\n|---|---:|---:|")
        for name, length in (("S", 20), ("L", 103)):
            texts = texts_of(length, 8192 if length == 20 else 2048)
            rates = {batch: encode_rate(model, texts, batch) for batch in (128, 512, 2048)}
            best = max(rates, key=rates.get)
            print(f"| {name}, about {length} tokens a text | {best} | {rates[best]:.0f} |", flush=True)


def search():
    import torch

    print("\n| matmul and topk | queries | b | ms |\n|---:|---:|---:|---:|")
    for count in (1_000_000, 10_000_000):
        keys = torch.randn(count, DIM, device="cuda", dtype=torch.bfloat16)
        for b in (200, 1000):
            for n in (1, 32, 256):
                queries, times = torch.randn(n, DIM, device="cuda", dtype=torch.bfloat16), []
                for _ in range(8):
                    torch.cuda.synchronize()
                    start = time.monotonic()
                    torch.topk(queries @ keys.T, b)
                    torch.cuda.synchronize()
                    times.append((time.monotonic() - start) * 1e3)
                print(f"| {count} | {n} | {b} | {sorted(times[2:])[3]:.3f} |", flush=True)
        del keys


def main():
    for part in (encoding, search):
        try:
            part()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            print(f"peers: {part.__name__} was left out: {type(error).__name__}: {str(error).splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
