"""Matrix products of torch (cuBLAS) at the shapes of matmul_bench, bf16, and its way to the next token at those of
sample_bench. Times in a CUDA graph on rotating weights, and alone between two events with a cold L2."""

import statistics

import torch

ROTATE_BYTES = 500e6
SHAPES = [(28672, 4096), (4096, 14336), (4096, 4096), (6144, 4096), (128256, 4096)]
VOCAB = 152064


def timed(run, repetitions=21, before=lambda: None):
    times = []
    for _ in range(repetitions):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def in_graph(run, launches):
    for i in range(3):
        run(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            run(i)
    return timed(graph.replay) / launches


def products():
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    for m in (1, 2, 4, 8, 16, 32, 64, 512, 2048, 8192):
        for n, k in SHAPES:
            if n > 100000 and m > 64:
                continue
            copies = max(2, int(ROTATE_BYTES // (n * k * 2)))
            weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            run = lambda i: torch.mm(x, weights[i % copies].t(), out=out)
            graph_us = in_graph(run, 2 * copies)
            alone_us = timed(lambda: run(0), before=flush.zero_)
            print(f"torch    {m:5d} x {n:6d} x {k:5d}  {graph_us:8.2f} us  {n * k * 2 / graph_us / 1e6:5.2f} TB/s "
                  f"{2 * m * n * k / graph_us / 1e6:6.1f} TF/s  alone {alone_us:8.2f} us")


def next_tokens():
    def top_p(logits):
        ordered, ids = torch.softmax(logits / 0.8, -1).sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered > 0.9] = 0
        return ids.gather(-1, torch.multinomial(ordered, 1))

    kinds = {
        "greedy": lambda logits: logits.argmax(-1),
        "temperature": lambda logits: torch.multinomial(torch.softmax(logits / 0.8, -1), 1),
        "top_k 50": lambda logits: torch.multinomial(torch.softmax(logits.topk(50, -1).values / 0.8, -1), 1),
        "top_p 0.9": top_p,
    }
    for rows in (1, 8, 64, 256):
        sets = [torch.randn(rows, VOCAB, device="cuda") * 2.5 for _ in range(max(2, 512 // rows))]
        for name, choose in kinds.items():
            choose(sets[0])
            turn = iter(range(1 << 30))
            us = timed(lambda: choose(sets[next(turn) % len(sets)]))
            print(f"torch {rows:3d} rows  {name:30s} {us:8.2f} us alone")


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    products()
    next_tokens()
