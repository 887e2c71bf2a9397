#!/usr/bin/env python3
"""A peer of `cordee bench comm`: all-reduce by PyTorch's Gloo, between processes of one machine over loopback.

Prints one JSON line for each size, measured by the same rule: a barrier before each round, the time of the slowest rank,
the middle of as many rounds as fit into half a second (5 to 1000) after three that do not count. Needs torch alone.

  scripts/peers/gloo_allreduce.py RANKS MIB...
"""
import json
import statistics
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def slowest(seconds):
    """Of each round, what its slowest rank took."""
    most = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.tolist()


def rank(rank, world, sizes, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    for mib in sizes:
        numbers = torch.ones(mib << 18)

        def measured(rounds):
            seconds = []
            for _ in range(rounds):
                dist.barrier()
                started = time.perf_counter()
                dist.all_reduce(numbers)
                seconds.append(time.perf_counter() - started)
            return slowest(seconds)

        pace = statistics.median(measured(3))
        seconds = measured(min(max(int(0.5 / pace), 5), 1000))
        if rank == 0:
            middle = statistics.median(seconds)
            busbw = (mib << 20) / middle / 1e9 * 2 * (world - 1) / world
            line = {"peer": f"gloo of torch {torch.__version__}", "operation": "all_reduce", "bytes": mib << 20}
            line |= {"world": world, "rounds": len(seconds), "ms": middle * 1e3, "busbw_gbs": busbw}
            print(json.dumps(line), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    world, sizes = int(sys.argv[1]), [int(mib) for mib in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (world, sizes, f"{folder}/meeting"), nprocs=world)
