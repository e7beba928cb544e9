#!/usr/bin/env python3
"""The peers that Engram's encoder is compared with, each in a process of its own.

Such a process loads one peer and then does what it is asked, a line of JSON for a line of JSON: an idle peer costs the others
nothing, and one that fails leaves only its own row empty. All start from strings and end with normalized f32 rows in memory,
tokenization included, and take texts of similar length together. Peer (below) is the other side of it.

    peers.py NAME MODEL THREADS CACHE
MODEL: the model's folder; CACHE: where the graph is exported to, once, for those that read ONNX.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
import time
from importlib.metadata import version

LENGTH = 256  # max_seq_length, here and with Engram
BATCHES = (4, 8, 16, 32, 64)
NAMES = ("onnxruntime f32", "OpenVINO f32", "OpenVINO bf16", "torch.compile f32", "torch.compile bf16",
         "sentence-transformers f32", "sentence-transformers bf16")
BF16_FLAGS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}


class Failed(Exception):
    """A peer that cannot be measured, and why."""


# ---- the machine ----


def cpu():
    """(name, flags) of the first CPU."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        parts = [[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]
    return (dict(reversed(parts)).get("model name", "unknown CPU"),
            next((set(value.split()) for name, value in parts if name in ("flags", "Features")), set()))


def bf16_reason():
    """Why bf16 is not worth measuring on this CPU, or None."""
    if cpu()[1] & set(BF16_FLAGS):
        return None
    return f"this CPU has no {' and no '.join(BF16_FLAGS.values())}, so bf16 would only be converted"


def machine():
    name, flags = cpu()
    has = [text for flag, text in {"avx2": "AVX2", "avx512f": "AVX-512", **BF16_FLAGS}.items() if flag in flags]
    return f"{name} ({', '.join(has)}), {len(os.sched_getaffinity(0))} CPUs"


# ---- inside a peer's process ----


class Batched:
    """What all have in common but sentence-transformers, which does this itself: word pieces, texts of similar length
    together, padding up to a batch's longest. forward: int64 [texts, length] ids and mask -> f32 [texts, dim]."""

    def __init__(self, model):
        import numpy
        from tokenizers import Tokenizer

        self.numpy = numpy
        self.tokenizer = Tokenizer.from_file(str(pathlib.Path(model) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LENGTH)

    def count(self, texts):
        return sum(len(encoding.ids) for encoding in self.tokenizer.encode_batch(texts))

    def padded(self, encodings):
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = self.numpy.zeros((len(encodings), longest), dtype=self.numpy.int64)
        mask = self.numpy.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        return ids, mask

    def encode(self, texts, batch):
        encodings = self.tokenizer.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(encodings[i].ids))
        places = [order[first : first + batch] for first in range(0, len(order), batch)]
        out = None
        for rows, embeddings in self.run(places, encodings):
            out = self.numpy.empty((len(texts), embeddings.shape[1]), dtype=self.numpy.float32) if out is None else out
            out[rows] = embeddings
        return out

    def run(self, places, encodings):
        for rows in places:
            yield rows, self.forward(*self.padded([encodings[i] for i in rows]))


def pooled(model, dtype):
    """The model with pooling and normalization behind it, as one module: (ids, mask) -> f32 [texts, dim]."""
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = AutoModel.from_pretrained(model, add_pooling_layer=False).eval().to(dtype)

        def forward(self, ids, mask):
            hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)

    return Pooled().eval()


class Compiled(Batched):
    """torch.compile with frozen, packed weights."""

    def __init__(self, model, threads, dtype):
        super().__init__(model)
        import torch
        import torch._inductor.config

        torch.set_num_threads(threads)
        torch._inductor.config.freezing = True
        self.torch = torch
        self.version = f"torch {version('torch')}"
        self.module = torch.compile(pooled(model, getattr(torch, dtype)), dynamic=True)

    def forward(self, ids, mask):
        with self.torch.inference_mode():
            return self.module(self.torch.from_numpy(ids), self.torch.from_numpy(mask)).numpy()


def classic(model):
    """`pooled` in f32 with attention written out, as BERT was exported for years: what reads ONNX knows this form best."""
    import torch

    class Classic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = pooled(model, torch.float32).bert
            self.heads = self.bert.config.num_attention_heads

        def split(self, x):
            return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).permute(0, 2, 1, 3)

        def attention(self, layer, x, bias):
            q, k, v = (self.split(part(x)) for part in (layer.self.query, layer.self.key, layer.self.value))
            weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / q.size(3) ** 0.5 + bias, dim=-1)
            heads = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
            return layer.output.LayerNorm(layer.output.dense(heads.view(x.size(0), x.size(1), x.size(2))) + x)

        def forward(self, ids, mask):
            e = self.bert.embeddings
            x = e.word_embeddings(ids) + e.token_type_embeddings(torch.zeros_like(ids))
            x = e.LayerNorm(x + e.position_embeddings(torch.arange(ids.size(1)).unsqueeze(0)))
            bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
            for layer in self.bert.encoder.layer:
                x = self.attention(layer.attention, x, bias)
                up = torch.nn.functional.gelu(layer.intermediate.dense(x))
                x = layer.output.LayerNorm(layer.output.dense(up) + x)
            weights = mask.unsqueeze(-1).to(x.dtype)
            return torch.nn.functional.normalize((x * weights).sum(1) / weights.sum(1), dim=1)

    return Classic().eval()


def exported(model, cache):
    """The model with pooling as ONNX, made once."""
    file = pathlib.Path(cache) / "model.onnx"
    if not file.exists():
        import torch

        part = file.with_suffix(".part")
        ones, names = torch.ones(2, 8, dtype=torch.int64), {0: "texts", 1: "length"}
        torch.onnx.export(classic(model), (ones, ones), str(part), input_names=["ids", "mask"], output_names=["out"],
                          dynamic_axes={"ids": names, "mask": names, "out": {0: "texts"}}, opset_version=17, dynamo=False)
        part.rename(file)
    return str(file)


class Onnxruntime(Batched):
    """Batches in as many sessions of one thread as there are threads, a single text with all threads: with several threads
    a session has them wait for each other after every operation."""

    def __init__(self, model, threads, cache):
        super().__init__(model)
        import onnxruntime

        def session(count):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = count
            return onnxruntime.InferenceSession(exported(model, cache), options, ["CPUExecutionProvider"])

        self.single = session(threads)
        self.sessions = queue.SimpleQueue()
        for _ in range(threads):
            self.sessions.put(session(1))
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.version = f"onnxruntime {version('onnxruntime')}"

    def forward(self, ids, mask):
        return self.single.run(None, {"ids": ids, "mask": mask})[0]

    def batch(self, rows, ids, mask):
        session = self.sessions.get()
        try:
            return rows, session.run(None, {"ids": ids, "mask": mask})[0]
        finally:
            self.sessions.put(session)

    def run(self, places, encodings):
        if len(places) == 1:
            return super().run(places, encodings)
        jobs = [self.pool.submit(self.batch, rows, *self.padded([encodings[i] for i in rows])) for rows in places]
        return (job.result() for job in jobs)


class OpenVino(Batched):
    """Batches in as many requests at once as it asks for, a single text with all threads."""

    def __init__(self, model, threads, dtype, cache):
        super().__init__(model)
        import openvino

        def compiled(hint):
            return openvino.Core().compile_model(exported(model, cache), "CPU", {
                "PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": threads})

        self.single = compiled("LATENCY").create_infer_request()
        self.requests = openvino.AsyncInferQueue(compiled("THROUGHPUT"))
        self.version = f"OpenVINO {version('openvino')}"

    def forward(self, ids, mask):
        return self.single.infer({"ids": ids, "mask": mask})[0]

    def run(self, places, encodings):
        if len(places) == 1:
            yield from super().run(places, encodings)
            return
        done = []
        self.requests.set_callback(lambda request, rows: done.append((rows, request.get_output_tensor(0).data.copy())))
        for rows in places:
            ids, mask = self.padded([encodings[i] for i in rows])
            self.requests.start_async({"ids": ids, "mask": mask}, rows)
        self.requests.wait_all()
        yield from done


class SentenceTransformers:
    def __init__(self, model, threads, dtype):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        self.model.max_seq_length = LENGTH
        self.version = f"sentence-transformers {version('sentence-transformers')}, torch {version('torch')}"

    def count(self, texts):
        return sum(len(ids) for ids in self.model.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"])

    def encode(self, texts, batch):
        return self.model.encode(texts, batch_size=batch, show_progress_bar=False, normalize_embeddings=True)


def peer_open(name, model, threads, cache):
    kind, dtype = name.rsplit(" ", 1)
    torch_dtype = {"f32": "float32", "bf16": "bfloat16"}[dtype]
    if kind == "onnxruntime":
        return Onnxruntime(model, threads, cache)
    if kind == "OpenVINO":
        return OpenVino(model, threads, dtype, cache)
    if kind == "torch.compile":
        return Compiled(model, threads, torch_dtype)
    return SentenceTransformers(model, threads, torch_dtype)


def serve(peer, texts, batch=None, vectors=None):
    """One pass in batches, or without `batch` one text at a time."""
    import numpy

    if batch:
        start = time.perf_counter()
        out = peer.encode(texts, batch)
        answer = {"seconds": time.perf_counter() - start}
    else:
        us, out = [], []
        for text in texts:
            start = time.perf_counter()
            out.append(peer.encode([text], 1)[0])
            us.append((time.perf_counter() - start) * 1e6)
        answer = {"us": us}
    if vectors:
        numpy.save(vectors, numpy.asarray(out, dtype=numpy.float32))
    return {"tokens": peer.count(texts), **answer}


def main():
    name, model, threads, cache = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    sets = {}

    def answer(**what):
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        peer = peer_open(name, model, int(threads), cache)
        answer(ready=peer.version)
        for line in sys.stdin:
            asked = json.loads(line)
            if "texts" in asked:
                sets[asked["set"]] = asked["texts"]
            else:
                answer(**serve(peer, sets[asked["set"]][: asked["count"]], asked["batch"], asked.get("vectors")))
    except Exception as failure:  # pylint: disable=broad-except
        answer(error=f"{type(failure).__name__}: {failure}".splitlines()[0])
        raise


# ---- the other side ----


class Peer:
    """A peer's process. Raises Failed, with its reason, where it cannot be measured; the log has the rest."""

    def __init__(self, name, model, threads, folder):
        self.name = name
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{name.replace(' ', '-')}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads),
                       "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str((folder / "inductor").resolve())}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([sys.executable, __file__, name, str(model), str(threads), str(folder)],
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                            env=environment)
        self.version = self._answer()["ready"]

    def _answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"it ended with status {self.process.wait()}"}
        if "error" in answer:
            raise Failed(f"{answer['error']} ({self.log})")
        return answer

    def _ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def texts(self, name, texts):
        self._ask(set=name, texts=texts)

    def encode(self, name, count, batch):
        """{"tokens", "seconds"} of the first `count` texts of a set, in batches; batch None: {"tokens", "us"}, one by one."""
        self._ask(set=name, count=count, batch=batch)
        return self._answer()

    def vectors(self, name, count, batch, file):
        self._ask(set=name, count=count, batch=batch, vectors=str(file))
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def peers_open(names, model, threads, folder, say):
    """(the peers that run, {name: why it was left out})."""
    running, left_out = [], {}
    for name in names:
        if name.endswith("bf16") and bf16_reason():
            left_out[name] = bf16_reason()
            continue
        try:
            running.append(Peer(name, model, threads, folder))
            say(f"{name}: {running[-1].version}")
        except Failed as failure:
            left_out[name] = str(failure)
    return running, left_out


if __name__ == "__main__":
    main()
