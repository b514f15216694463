"""Turns the logs of run.sh into one Markdown table: kernel, shape, time, share of the roofline,
peer, ratio (ours over the peer's rate), spread.

Usage: table.py FOLDER
"""

import pathlib
import re
import sys

VOCAB = 152064
NUMBER = r"([\d.]+)"
SPAN = rf"[(\[]{NUMBER} ?(?:-|\.\.| ) ?{NUMBER}[)\]]"


def log(folder, name):
    path = folder / f"{name}.log"
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def matches(lines, pattern):
    for line in lines:
        found = re.search(pattern, line)
        if found:
            yield [float(x) if re.fullmatch(r"[\d.]+", x) else x.strip() for x in found.groups()]


class Table:
    def __init__(self, folder):
        self.folder = folder
        ceilings = log(folder, "ceilings")
        self.copy = next(matches(ceilings, rf"copy {NUMBER} TB/s"), [4.2])[0]
        self.gemm = next(matches(ceilings, rf"gemm {NUMBER} TFLOP/s"), [782.0])[0]
        self.rows = []

    def add(self, kernel, shape, us, rate, ceiling, unit, peer, low_us, high_us):
        """`peer`: (name, rate in the same unit), or None."""
        time = f"{us / 1e3:.3f} ms" if us >= 1e3 else f"{us:.1f} us"
        share = f"{rate:.0f} {unit}" if unit == "TFLOP/s" else f"{rate:.2f} {unit}"
        name, ratio = (peer[0], f"{rate / peer[1]:.2f}") if peer and peer[1] > 0 else ("", "")
        spread = max(us - low_us, high_us - us) / us
        self.rows.append((kernel, shape, time, share, f"{100 * rate / ceiling:.0f} %", name, ratio,
                          f"{100 * spread:.1f} %"))

    def prefill(self):
        peers = {}
        for name, length, ms, low, high, rate in matches(
                log(self.folder, "peers_prefill"),
                rf"^(\S+)\s+(\d+)(?: x \s*\d+|, kept [\d.]+):\s+{NUMBER} ms {SPAN}\s+{NUMBER}"):
            peers[name, int(length)] = rate

        def peer(name, keys):
            length = min((n for k, n in peers if k == name), default=None,
                         key=lambda n: abs(n - keys))
            return (f"{name} {length}", peers[name, length]) if length else None

        for dim, queries, keys, kept, ms, low, high, rate in matches(
                log(self.folder, "prefill"),
                rf"^D=(\d+)\s+(\d+) q x\s+(\d+) keys, kept {NUMBER}:\s+{NUMBER} ms {SPAN}\s+"
                rf"{NUMBER} TFLOP"):
            dense = kept == 1.0
            shape = f"{queries:.0f} x {keys:.0f}, D={dim:.0f}"
            if not dense:
                shape += f", {100 * kept:.0f} % of blocks"
            other = peer("cuDNN" if dense else "FlexAttention", keys) if dim == 128 else None
            self.add("prefill (wgmma)", shape, 1e3 * ms, rate, self.gemm, "TFLOP/s", other,
                     1e3 * low, 1e3 * high)
        for path, name, queries, keys, dim, page, ms, low, high, rate in matches(
                log(self.folder, "prefill_sm80"),
                rf"^prefill_(\w+)\s+(.*?)\s+q\s+(\d+) k\s+(\d+) d\s+(\d+) page (\d+):\s+{NUMBER} ms "
                rf"{SPAN}\s+{NUMBER} TFLOP"):
            ways = {"sm80": "cp.async", "geforce": "cp.async, 99 KB", "bulk": "bulk copies"}
            kernel = f"prefill (mma.sync, {ways[path]})"
            shape = f"{name}, {queries:.0f} x {keys:.0f}, D={dim:.0f}, page {page:.0f}"
            other = "FlexAttention" if "blocks" in name else "FlashAttention-2"
            other = peer(other, keys) if dim == 128 and "window" not in name else None
            self.add(kernel, shape, 1e3 * ms, rate, self.gemm, "TFLOP/s", other, 1e3 * low,
                     1e3 * high)

    def decode(self):
        peers = {}
        for name, rows, tokens, us, rate in matches(
                log(self.folder, "peers_decode"),
                rf"^torch (\w+)\s+B=(\d+)\s+(\d+)\s+{NUMBER} us\s+{NUMBER} TB/s"):
            key = f"B={rows:.0f} {tokens:.0f}"
            if key not in peers or rate > peers[key][1]:
                peers[key] = (f"torch {name.split('_')[0].lower()}, contiguous", rate)
        for shape, us, low, high, rate in matches(
                log(self.folder, "decode"),
                rf"^(B=.*?)\s\s+{NUMBER} us {SPAN}\s+{NUMBER} TB/s"):
            self.add("decode over page lists", shape, us, rate, self.copy, "TB/s",
                     peers.get(shape), low, high)

    def matmul(self):
        pattern = (rf"^(cublaslt|ours)\s+(\d+) x\s+(\d+) x\s+(\d+)\s+{NUMBER} us {SPAN}\s+{NUMBER} "
                   rf"TB/s\s+{NUMBER} TF/s")
        found = list(matches(log(self.folder, "matmul"), pattern))
        ours = {tuple(x[1:4]) for x in found if x[0] == "ours"}
        torch = {(m, n, k): us for m, n, k, us in matches(
            log(self.folder, "peers_matmul"),
            rf"^torch\s+(\d+) x\s+(\d+) x\s+(\d+)\s+{NUMBER} us")}
        cublas = {tuple(x[1:4]): x[4] for x in found if x[0] == "cublaslt"}
        for name, m, n, k, us, low, high, bytes_rate, math_rate in found:
            if name != "ours" and (m, n, k) in ours:
                continue  # a peer's line; where we have no kernel, cuBLASLt is what serves
            peers, peer = (cublas, "cuBLASLt") if name == "ours" else (torch, "torch")
            few = m * self.copy < self.gemm  # memory bound
            rate, ceiling, unit = ((bytes_rate, self.copy, "TB/s") if few else
                                   (math_rate, self.gemm, "TFLOP/s"))
            other = (peer, rate * us / peers[m, n, k]) if (m, n, k) in peers else None
            self.add("matrix product" + ("" if name == "ours" else " (cuBLASLt)"),
                     f"{m:.0f} x {n:.0f} x {k:.0f}", us, rate, ceiling, unit, other, low, high)

    def row_ops(self):
        pattern = rf"^(?:row_ops|torch) (.*?)\s+(\d+) rows\s+{NUMBER} us {SPAN}\s+{NUMBER} TB/s"
        peers = {(name, rows): rate for name, rows, _, _, _, rate in
                 matches(log(self.folder, "peers_rows"), pattern)}
        for name, rows, us, low, high, rate in matches(log(self.folder, "rows"), pattern):
            peer = ("torch.compile", peers[name, rows]) if (name, rows) in peers else None
            self.add(name, f"{rows:.0f} rows", us, rate, self.copy, "TB/s", peer, low, high)

    def sample(self):
        peers = {(rows, name): us for rows, name, us in matches(
            log(self.folder, "peers_matmul"), rf"^torch\s+(\d+) rows\s+(.*?)\s+{NUMBER} us alone")}
        for rows, name, us, low, high in matches(
                log(self.folder, "sample"), rf"^\s*(\d+) rows\s+(.*?)\s+{NUMBER} us {SPAN}"):
            rate = rows * VOCAB * 4 / us * 1e-6
            peer = ("torch ops", rate * us / peers[rows, name]) if (rows, name) in peers else None
            self.add(f"sampling, {name}", f"{rows:.0f} x {VOCAB}", us, rate, self.copy, "TB/s", peer,
                     low, high)

    def write(self):
        machine = (log(self.folder, "machine") or ["unknown GPU"])[0]
        print(f"{machine}; copy {self.copy:.2f} TB/s, bf16 product {self.gemm:.0f} TFLOP/s.\n")
        head = ("kernel", "shape", "time", "rate", "of the roofline", "peer", "ratio", "spread")
        for row in (head, ("---",) * len(head), *self.rows):
            print("| " + " | ".join(row) + " |")


def main():
    table = Table(pathlib.Path(sys.argv[1]))
    for part in (table.prefill, table.decode, table.matmul, table.row_ops,
                 table.sample):
        part()
    table.write()


main()
