#!/usr/bin/env python3
r"""The peer of `cordee bench train`: the same Llama-style step in PyTorch, as one would write it by hand.

Prints one JSON line with the medians over the steps. Needs torch alone.

  scripts/peers/pytorch_train.py --dim 288 --layers 6 --heads 6 --ffn 768 --vocab 32000 --seq 256 --batch 8 --threads 2
  scripts/peers/pytorch_train.py --dim 768 --layers 12 --heads 12 --ffn 2048 --vocab 50304 --tie --seq 1024 --batch 32 \
    --device cuda --dtype bf16 --compile --steps 50

bf16 is autocast: weights, gradients and moments stay in f32. f32 on a GPU multiplies in TF32, as people run it.
"""
import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
SHAPE = dict(dim=288, layers=6, heads=6, kv_heads=0, ffn=768, vocab=32000, seq=256, batch=8, steps=10, warmup=3, accum=1, threads=0)
for name, default in SHAPE.items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
parser.add_argument("--ce-chunks", type=int, default=0, help="the loss over so many chunks of tokens, whose logits backward makes again; 0: all at once")
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--tie", action="store_true")
parser.add_argument("--compile", action="store_true")
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = True
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
    # In f32 under autocast too; attention takes one type.
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


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
        x, targets = self.norm(x).flatten(0, 1), targets.flatten()
        if not args.ce_chunks:
            return F.cross_entropy(self.head(x).float(), targets)
        chunks = zip(x.chunk(args.ce_chunks), targets.chunk(args.ce_chunks))
        losses = [checkpoint(self.summed_loss, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(losses).sum() / targets.numel()

    def summed_loss(self, x, targets):
        return F.cross_entropy(self.head(x).float(), targets, reduction="sum")


def wait():
    if args.device == "cuda":
        torch.cuda.synchronize()


# Made where it stays: a billion random weights take a CPU half a minute.
with torch.device(args.device):
    model = Model()
step_model = torch.compile(model) if args.compile else model
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
frequencies = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
angles = torch.outer(torch.arange(args.seq).float(), frequencies)
cos, sin = angles.cos()[None, None].to(args.device), angles.sin()[None, None].to(args.device)
autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16")
tokens = torch.Generator().manual_seed(1)
times, losses = [], []
for step in range(args.warmup + args.steps):
    wait()
    started = time.perf_counter()
    for _ in range(args.accum):
        batch = torch.randint(0, args.vocab, (args.batch, args.seq + 1), generator=tokens)
        inputs, targets = (part.contiguous().to(args.device, non_blocking=True) for part in (batch[:, :-1], batch[:, 1:]))
        with autocast:
            loss = step_model(inputs, targets, cos, sin) / args.accum
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(round(loss.item() * args.accum, 4))
    wait()
    if step >= args.warmup:
        times.append(time.perf_counter() - started)

seconds = statistics.median(times)
parameters = sum(parameter.numel() for parameter in model.parameters())
multiplied = parameters - (0 if args.tie else args.vocab * args.dim)
flops_per_token = 6 * multiplied + 6 * args.layers * args.dim * args.seq
n = args.batch * args.seq * args.accum
# The shares between two steps are interpolated, as those of `cordee bench train` are.
deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
spread = dict(min=min(times), p10=deciles[0], p90=deciles[-1], max=max(times))
report = dict(
    peer="pytorch " + torch.__version__, compile=args.compile, device=args.device, dtype=args.dtype, ce_chunks=args.ce_chunks,
    threads=torch.get_num_threads(), parameters=parameters, steps=len(times), tokens_per_s=round(n / seconds, 1),
    step_ms=round(seconds * 1e3, 2), step_ms_spread={share: round(time * 1e3, 2) for share, time in spread.items()},
    model_flops_per_s=round(flops_per_token * n / seconds), first_loss=losses[0], last_loss=losses[-1],
    peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
if args.device == "cuda":
    report["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20
print(json.dumps(report))
