"""Queries, keys and values of a trained model on test sequences, as .npy files for the task `npy`.

    python3 capture.py MODEL TOKENS OUT

MODEL: directory of `subquad train` (checkpoint.safetensors): token model, pre-norm, rotary positions, GELU,
no convolution, dense attention. TOKENS: lines of `subquad sample`. OUT gets layer<i>_q.npy, _k.npy, _v.npy
of shape [sequences, heads, n, d], q and k after rotation. Needs numpy; double precision throughout.
"""
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np


def read_safetensors(path):
    data = Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(data, "<f4", (end - begin) // 4, 8 + length + begin)
        tensors[name] = flat.reshape(entry["shape"]).astype(float)
    return tensors


def norm(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    erf = np.vectorize(math.erf, otypes=[float])
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def rotate(x):
    """Entries (i, i + d/2) turned by t 10000^(-2 i / d); x [..., n, d]."""
    n, half = x.shape[-2], x.shape[-1] // 2
    angle = np.arange(n)[:, None] * 10000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           a * np.sin(angle) + b * np.cos(angle)], -1)


def heads_of(x, heads):
    batch, n, width = x.shape
    return x.reshape(batch, n, heads, width // heads).transpose(0, 2, 1, 3)


def softmax_attention(q, k, v):
    n, d = q.shape[-2:]
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(d)
    logits[..., np.triu(np.ones((n, n), bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def main(model, tokens, out):
    weights = read_safetensors(Path(model) / "checkpoint.safetensors")
    heads = int(next(line.split(":")[1] for line in
                     (Path(model) / "config.resolved.yaml").read_text().splitlines()
                     if line.strip().startswith("heads:")).strip(" []"))
    sequences = np.array([json.loads(line)["tokens"] for line in Path(tokens).read_text().splitlines()])
    x = weights["embed.weight"][sequences]
    Path(out).mkdir(parents=True, exist_ok=True)
    layer = 0
    while f"layers.{layer}.ln1.weight" in weights:
        at = f"layers.{layer}."
        u = norm(x, weights, at + "ln1")
        qkv = u @ weights[at + "attn.qkv.weight"].T + weights[at + "attn.qkv.bias"]
        q, k, v = (heads_of(part, heads) for part in np.split(qkv, 3, axis=-1))
        q, k = rotate(q), rotate(k)
        for name, value in (("q", q), ("k", k), ("v", v)):
            np.save(Path(out) / f"layer{layer}_{name}.npy", value.astype(np.float32))
        o = softmax_attention(q, k, v).transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[1], -1)
        x = x + o @ weights[at + "attn.out.weight"].T + weights[at + "attn.out.bias"]
        u = norm(x, weights, at + "ln2")
        x = x + (gelu(u @ weights[at + "mlp.up.weight"].T + weights[at + "mlp.up.bias"])
                 @ weights[at + "mlp.down.weight"].T + weights[at + "mlp.down.bias"])
        layer += 1
    # The captured model is the trained one if it still predicts: the loss of the next token.
    logits = norm(x, weights, "ln_f") @ weights["embed.weight"].T
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    batch, n = sequences.shape
    loss = -logits[np.arange(batch)[:, None], np.arange(n - 1)[None], sequences[:, 1:]].mean()
    print(f"{layer} layers, {heads} heads, {batch} sequences of {n}; loss of the next token {loss:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
