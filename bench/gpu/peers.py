"""Ceilings of this GPU, and PyTorch at the shapes of row_ops_bench.

Usage: peers.py ceilings | rows
  ceilings: device copy (bytes read plus written) and a bf16 product of 8192 cubed, random data.
  rows:     compiled RMSNorm, SiLU x up and rotary embedding with a cache write, in CUDA graphs, on
            rotating buffers.
"""

import statistics
import sys

import torch

HIDDEN, FFN, Q_HEADS, KV_HEADS, DIM = 4096, 14336, 32, 8, 128
ROTATE_BYTES = 300e6


def times_ms(run, repeats):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
    for begin, end in zip(events[::2], events[1::2]):
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in zip(events[::2], events[1::2]))
    return statistics.median(times), times[len(times) // 10], times[len(times) * 9 // 10]


def ceilings():
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    median, low, high = times_ms(lambda: target.copy_(source), 15)
    print(f"copy {2 * source.nbytes / median * 1e-9:.3f} TB/s ({low:.3f}-{high:.3f} ms)")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    median, low, high = times_ms(lambda: a @ b, 15)
    print(f"gemm {2 * 8192**3 / median * 1e-9:.1f} TFLOP/s ({low:.3f}-{high:.3f} ms)")


def in_graph(name, rows, size, call):
    """call(i) works on buffer set i; `size` bytes have to move."""
    launches = max(8, min(100, int(ROTATE_BYTES / size)))
    for i in range(3):
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            call(i)
    graph.replay()
    median, low, high = (1e3 * t / launches for t in times_ms(graph.replay, 15))
    print(f"torch {name:16} {rows:5} rows {median:9.2f} us ({low:.2f}-{high:.2f}) "
          f"{size / median * 1e-6:6.3f} TB/s", flush=True)


def sets(size, make):
    return [make() for _ in range(max(1, min(16, int(ROTATE_BYTES / size) + 1)))]


def norms(rows):
    weight = torch.ones(HIDDEN, device="cuda")

    @torch.compile(dynamic=False)
    def norm(x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (x * scale * weight).to(torch.bfloat16)

    size = rows * HIDDEN * 6
    xs = sets(size, lambda: torch.randn(rows, HIDDEN, device="cuda"))
    in_graph("RmsNorm", rows, size, lambda i: norm(xs[i % len(xs)]))


def activations(rows):
    @torch.compile(dynamic=False)
    def gated(x):
        return torch.nn.functional.silu(x[:, :FFN].float()).to(x.dtype) * x[:, FFN:]

    size = rows * FFN * 6
    xs = sets(size, lambda: torch.randn(rows, 2 * FFN, device="cuda", dtype=torch.bfloat16))
    in_graph("SiLU x up", rows, size, lambda i: gated(xs[i % len(xs)]))


def ropes(rows):
    width = (Q_HEADS + 2 * KV_HEADS) * DIM
    angles = torch.randn(rows, 1, DIM // 2, device="cuda")
    cos, sin = angles.cos(), angles.sin()

    def rotate(x):
        low, high = x.float().chunk(2, -1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)

    @torch.compile(dynamic=False)
    def append(qkv, cache, slots):
        heads = qkv.view(rows, -1, DIM)
        q, k, v = heads.split((Q_HEADS, KV_HEADS, KV_HEADS), 1)
        cache[0].index_copy_(0, slots, rotate(k))
        cache[1].index_copy_(0, slots, v)
        return rotate(q)

    size = rows * DIM * 4 * (Q_HEADS + 2 * KV_HEADS)
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    inputs = sets(size, lambda: (make(rows, width), make(2, rows, KV_HEADS, DIM)))
    slots = torch.randperm(rows, device="cuda")
    in_graph("RoPE + append", rows, size, lambda i: append(*inputs[i % len(inputs)], slots))


def main():
    if sys.argv[1:] == ["ceilings"]:
        ceilings()
        return
    for part in (norms, activations, ropes):
        for rows in (64, 4096):  # each is a compilation
            try:
                part(rows)
            except RuntimeError as error:
                print(f"torch {part.__name__} {rows}: {str(error).splitlines()[0][:100]}")


main()
