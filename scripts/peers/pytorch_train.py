#!/usr/bin/env python3
"""The peer of `cordee bench train`: the same Llama-style step in PyTorch, as one would write it by hand.

Prints one JSON line with the medians over the steps. Needs torch alone.

  scripts/peers/pytorch_train.py --dim 288 --layers 6 --heads 6 --ffn 768 --vocab 32000 --seq 256 --batch 8 --threads 2
"""
import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
SHAPE = dict(dim=288, layers=6, heads=6, kv_heads=0, ffn=768, vocab=32000, seq=256, batch=8, steps=10, warmup=3, threads=0)
for name, default in SHAPE.items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
parser.add_argument("--tie", action="store_true")
parser.add_argument("--compile", action="store_true")
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(0)
KV_HEADS = args.kv_heads or args.heads
HEAD_DIM = args.dim // args.heads


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(args.dim))

    def forward(self, x):
        return F.rms_norm(x, (args.dim,), self.weight, 1e-5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(), Norm()
        self.q = linear(args.dim, args.heads * HEAD_DIM)
        self.k, self.v = linear(args.dim, KV_HEADS * HEAD_DIM), linear(args.dim, KV_HEADS * HEAD_DIM)
        self.out = linear(args.heads * HEAD_DIM, args.dim)
        self.gate, self.up, self.down = linear(args.dim, args.ffn), linear(args.dim, args.ffn), linear(args.ffn, args.dim)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape
        normed = self.attention_norm(x)
        split = lambda y: y.view(rows, length, -1, HEAD_DIM).transpose(1, 2)
        q, k, v = rotate(split(self.q(normed)), cos, sin), rotate(split(self.k(normed)), cos, sin), split(self.v(normed))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=KV_HEADS != args.heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, -1))
        normed = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(args.vocab, args.dim)
        self.blocks = nn.ModuleList(Block() for _ in range(args.layers))
        self.norm, self.head = Norm(), linear(args.dim, args.vocab)
        if args.tie:
            self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets, cos, sin):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


model = Model()
step_model = torch.compile(model) if args.compile else model
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
frequencies = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
angles = torch.outer(torch.arange(args.seq).float(), frequencies)
cos, sin = angles.cos()[None, None], angles.sin()[None, None]
tokens = torch.Generator().manual_seed(1)
times, losses = [], []
for step in range(args.warmup + args.steps):
    started = time.perf_counter()
    batch = torch.randint(0, args.vocab, (args.batch, args.seq + 1), generator=tokens)
    loss = step_model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), cos, sin)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(round(loss.item(), 4))
    if step >= args.warmup:
        times.append(time.perf_counter() - started)

seconds = statistics.median(times)
parameters = sum(parameter.numel() for parameter in model.parameters())
multiplied = parameters - (0 if args.tie else args.vocab * args.dim)
flops_per_token = 6 * multiplied + 6 * args.layers * args.dim * args.seq
n = args.batch * args.seq
print(json.dumps(dict(
    peer="pytorch " + torch.__version__, compile=args.compile, threads=torch.get_num_threads(), parameters=parameters,
    tokens_per_s=round(n / seconds, 1), step_ms=round(seconds * 1e3, 2), model_flops_per_s=round(flops_per_token * n / seconds),
    first_loss=losses[0], last_loss=losses[-1], peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))
