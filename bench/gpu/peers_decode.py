"""Decode attention of torch (cuDNN and flash SDPA) at the shapes of decode_bench: contiguous K and V, 32/8 heads of
128 channels, bf16. Times in a CUDA graph of 20 calls on rotating buffers, and alone between two events."""

import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Q_HEADS, KV_HEADS, DIM = 32, 8, 128
ROTATE_BYTES = 400e6


def timed(run, repetitions):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repetitions)]
    for i in range(repetitions):
        events[2 * i].record()
        run()
        events[2 * i + 1].record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events[::2], events[1::2]))


def measure(backend, rows, tokens):
    size = rows * KV_HEADS * tokens * DIM * 4
    sets = max(1, int(-(-ROTATE_BYTES // size)))
    make = lambda heads, length: torch.randn(rows, heads, length, DIM, device="cuda", dtype=torch.bfloat16)
    q = make(Q_HEADS, 1)
    kv = [(make(KV_HEADS, tokens), make(KV_HEADS, tokens)) for _ in range(sets)]

    def call(i):
        k, v = kv[i % sets]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    with sdpa_kernel(backend):
        for i in range(3):
            call(i)
        torch.cuda.synchronize()
        launches = max(20, sets)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(launches):
                call(i)
        for _ in range(3):
            graph.replay()
        in_graph = timed(graph.replay, 15) / launches
        alone = timed(lambda: call(0), 20)
    return in_graph, alone, size


def main():
    shapes = [(1, 4096), (1, 131072), (8, 1024), (8, 4096), (8, 16384), (8, 131072), (64, 4096)]
    for rows, tokens in shapes:
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
            try:
                in_graph, alone, size = measure(getattr(SDPBackend, name), rows, tokens)
            except RuntimeError as error:
                print(f"torch {name:16} B={rows} {tokens}: {str(error).splitlines()[0][:90]}")
                continue
            print(
                f"torch {name:16} B={rows:<3} {tokens:>6}  {in_graph * 1e3:8.1f} us "
                f"{size / in_graph * 1e-9:5.2f} TB/s  alone {alone * 1e3:.1f} us"
            )
            sys.stdout.flush()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
