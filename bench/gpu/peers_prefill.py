"""Peers of prefill_bench, on the same shapes: cuDNN and FlashAttention-2 through torch SDPA (dense,
contiguous), and compiled FlexAttention over random 128 x 128 blocks per head (10 %, the diagonal
among them). 32 query heads, 8 kv heads, D=128, bf16, random data. Rates count what prefill_bench
counts: the causal half, or whole kept blocks.

Usage: peers_prefill.py [dense] [flex]
"""
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 128


def time_ms(function, repeats):
    function()  # compiles
    torch.cuda.synchronize()
    time.sleep(0.5)  # clocks fall in long runs; prefill_bench pauses too
    for _ in range(2):
        function()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for event in events[:-1]:
        event.record()
        function()
    events[-1].record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))
    return statistics.median(times), times[0], times[-1]


def report(name, flop, times):
    median, low, high = times
    print(f"{name}: {median:9.3f} ms ({low:.3f} .. {high:.3f})  {flop / median * 1e-9:5.0f} TFLOP/s",
          flush=True)


def tensors(length):
    shapes = ((HEADS, length), (KV_HEADS, length), (KV_HEADS, length))
    return [torch.randn(1, h, n, DIM, device="cuda", dtype=torch.bfloat16) for h, n in shapes]


def dense(backend, name, length, repeats):
    q, k, v = tensors(length)
    flop = 4.0 * HEADS * DIM * length * length / 2

    def run():
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True)

    with sdpa_kernel(backend):
        report(f"{name} {length:6d} x {length:6d}", flop, time_ms(run, repeats))


def block_mask(length, density):
    """Random kept blocks below the diagonal are full, the diagonal ones are causal."""
    blocks = length // BLOCK
    kept = torch.rand(1, HEADS, blocks, blocks, device="cuda") < density
    kept = torch.tril(kept, diagonal=-1)
    counts = kept.sum(-1, dtype=torch.int32)
    indices = torch.argsort(kept.to(torch.int8), dim=-1, descending=True, stable=True)
    diagonal = torch.arange(blocks, device="cuda", dtype=torch.int32)
    partial = torch.zeros(1, HEADS, blocks, blocks, device="cuda", dtype=torch.int32)
    partial[..., 0] = diagonal
    mask = BlockMask.from_kv_blocks(
        torch.ones(1, HEADS, blocks, device="cuda", dtype=torch.int32), partial, counts,
        indices.to(torch.int32), BLOCK_SIZE=BLOCK, mask_mod=lambda b, h, q, kv: q >= kv)
    return mask, int(counts.sum()) + HEADS * blocks


def flex(length, density, repeats):
    q, k, v = tensors(length)
    mask, kept = block_mask(length, density)
    compiled = torch.compile(flex_attention, dynamic=False)
    flop = 4.0 * DIM * BLOCK * BLOCK * kept
    share = kept * BLOCK * BLOCK / (HEADS * length * length / 2)
    with torch.no_grad():
        report(f"FlexAttention {length:6d}, kept {share:.3f}", flop,
               time_ms(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True), repeats))


def main():
    what = sys.argv[1:] or ["dense", "flex"]
    if "dense" in what:
        for length, repeats in ((8192, 21), (32768, 9)):
            dense(SDPBackend.CUDNN_ATTENTION, "cuDNN", length, repeats)
            dense(SDPBackend.FLASH_ATTENTION, "FlashAttention-2", length, max(repeats // 3, 3))
    if "flex" in what:
        for length, repeats in ((32768, 11), (131072, 5)):
            flex(length, 0.10, repeats)


main()
