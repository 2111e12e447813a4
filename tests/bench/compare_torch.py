#!/usr/bin/env python3
"""Loss and gradients of a model of ours against PyTorch in float64, where PyTorch is installed.

    cmake --build build --target export_gradients
    tests/bench/compare_torch.py build/tests/bench/export_gradients [tolerance]

The program writes weights, a batch, its loss and its gradients (safetensors); here the same model is
written out in torch, and every tensor is compared: |g - reference| / |reference|, by default at most
1e-4. A gradient that is zero in exact arithmetic (the k part of a bias) is judged by the size of the
whole gradient. Exit status: 0 all agree, 1 some do not, 77 without PyTorch.
"""
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError as problem:
    print(f"skipped: {problem}")
    sys.exit(77)

TYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64}


def read_safetensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[first:last], TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def loss_of(w, tokens, labels, config):
    """The model of harness/model/transformer.h; w: name -> float64 tensor."""
    n, heads, d = tokens.shape[1], config["heads"], w["layers.0.ln1.weight"].shape[0]

    def norm(name, x):
        return F.layer_norm(x, (d,), w[name + ".weight"], w[name + ".bias"])

    def linear(name, x):
        return x @ w[name + ".weight"].t() + w[name + ".bias"]

    def attention(i, u):
        qkv = linear(f"layers.{i}.attn.qkv", u)
        wide_v = w[f"layers.{i}.attn.out.weight"].shape[1]
        wide_k = (qkv.shape[-1] - wide_v) // 2
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2)
                   for x in qkv.split([wide_k, wide_k, wide_v], -1))
        scores = q @ k.transpose(2, 3) / math.sqrt(wide_k // heads)
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return linear(f"layers.{i}.attn.out", (weights @ v).transpose(1, 2).flatten(2))

    def mlp(i, u):
        return linear(f"layers.{i}.mlp.down", F.gelu(linear(f"layers.{i}.mlp.up", u)))

    x = w["embed.weight"][tokens]
    if "pos.weight" in w:
        x = x + w["pos.weight"]
    if "front.conv.weight" in w:
        u, taps = norm("front.ln", x), w["front.conv.weight"]
        for j in range(len(taps)):
            x = x + F.pad(u, (0, 0, j, 0))[:, :n] * taps[j]
    i = 0
    while f"layers.{i}.attn.qkv.weight" in w:
        parts = [(attention, f"layers.{i}.ln1")]
        if f"layers.{i}.mlp.up.weight" in w:
            parts.append((mlp, f"layers.{i}.ln2"))
        for part, name in parts:
            x = norm(name, x + part(i, x)) if config["post_norm"] else x + part(i, norm(name, x))
        i += 1
    x = norm("ln_f", x)
    logits = linear("head", x) if "head.weight" in w else x @ w["embed.weight"].t()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def compare(path, tolerance):
    given = read_safetensors(path)
    config = {"heads": 0, "post_norm": 0}
    config.update({k[7:]: int(v[0]) for k, v in given.items() if k.startswith("config.")})
    names = [k[5:] for k in given if k.startswith("grad.")]
    w = {k: torch.from_numpy(given[k].astype(np.float64)).requires_grad_(True) for k in names}
    tokens, labels = (torch.from_numpy(given["input." + k].astype(np.int64)) for k in ("tokens", "labels"))
    loss = loss_of(w, tokens, labels, config)
    loss.backward()
    whole = math.sqrt(sum(float((t.grad ** 2).sum()) for t in w.values()))
    errors = {"loss": abs(float(given["loss"][0]) - loss.item()) / abs(loss.item())}
    for name, tensor in w.items():
        off = np.linalg.norm(given["grad." + name].astype(np.float64) - tensor.grad.numpy())
        size = float(torch.linalg.norm(tensor.grad))
        errors[name] = off / (size if size > 1e-6 * whole else whole)
    bad = [name for name, error in errors.items() if not error <= tolerance]
    worst = max(errors, key=lambda name: errors[name])
    print(f"{len(errors)} tensors, largest difference {errors[worst]:.2e} ({worst}), "
          f"{len(bad)} above {tolerance:g}{': ' + ', '.join(bad) if bad else ''}")
    return not bad


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    tolerance = float(sys.argv[2]) if len(sys.argv) == 3 else 1e-4
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gradients.safetensors")
        for kind in ("lm", "mqar", "post"):
            for method in ("dense", "dense_naive"):
                subprocess.run([sys.argv[1], path, kind, method], check=True)
                print(f"{kind:5s} {method:12s}", end=" ")
                fine = compare(path, tolerance) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
