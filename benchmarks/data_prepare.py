"""How fast data is prepared and loaded: one JSON object per number, with name, value, unit, baseline, ratio.

    python benchmarks/data_prepare.py

The corpus is this Python's own library. ``baseline`` is a plain way to the same result on the same texts,
null where there is none; ``ratio`` says how many times better ours is. Expected on two idle cores of 2021:
prepare 6 to 10 s, 12 CPU-s and under 300 MiB; signatures above 20 MB/s a core; loader above 10 Mtok/s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tidecell.data import dedup
from tidecell.data.document import Document
from tidecell.data.executor import Prepared, prepare
from tidecell.data.filters import FilterParams, clean, judge
from tidecell.data.loader import Loader
from tidecell.data.permutation import permute
from tidecell.data.pipeline import Recipe
from tidecell.data.sources import read_file, scan

SEQ_LEN, MICRO_BATCH = 256, 8
NUM_ROWS_SHUFFLED = 10_000_000


def report(name: str, value: float, unit: str, baseline: float | None = None, *, less: bool = False) -> None:
    """Print one number."""
    ratio = None
    if baseline:
        ratio = round(baseline / value if less else value / baseline, 2)
    rounded = None if baseline is None else round(baseline, 4)
    print(
        json.dumps(
            {"name": name, "value": round(value, 4), "unit": unit, "baseline": rounded, "ratio": ratio}
        )
    )


def cpu_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the fewest CPU seconds that a piece of work took."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return max(min(taken), 1e-9)


def plain_signature(text: str, num_hashes: int = 112) -> list[int]:
    """MinHash as textbooks write it: a set of word 5-grams, one hash each, many minima."""
    words = re.findall(r"\w+", text.lower())
    grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
    values = [int.from_bytes(hashlib.blake2b(g.encode(), digest_size=8).digest(), "little") for g in grams]
    rng = random.Random(1)
    factors = [(rng.getrandbits(64) | 1, rng.getrandbits(64)) for _ in range(num_hashes)]
    return [min((a * v + b) & (2**64 - 1) for v in values) for a, b in factors]


def measure_prepare() -> Prepared:
    """Prepare the default dataset from nothing, then again."""
    began = time.monotonic()
    done = prepare([], "bench", Recipe())
    wall_s = time.monotonic() - began
    again = prepare([], "bench", Recipe())
    usage = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    report("prepare_wall", wall_s, "s")
    report("prepare_again_wall", again.wall_s, "s", wall_s, less=True)
    report("prepare_cpu", sum(u.ru_utime + u.ru_stime for u in usage), "s")
    report("prepare_peak_memory_main_process", usage[0].ru_maxrss / 1024, "MiB")
    report("prepare_peak_memory_largest_worker", usage[1].ru_maxrss / 1024, "MiB")
    report("chars_per_token_validation", done.manifest.splits["validation"].chars_per_token, "chars")
    packing = done.manifest.splits["train"].packing
    report("packing_padding_share", packing.padding_share, "share")
    return done


def measure_steps() -> None:
    """Measure cleaning, filters and MinHash, one core."""
    documents = [d for f in scan([]).files for d in read_file(f) if isinstance(d, Document)]
    megabytes = sum(len(d.text.encode()) for d in documents) / 1e6
    cleaned = [Document(d.id, clean(d.text), d.source, d.metadata) for d in documents]
    params = FilterParams()
    report("clean", megabytes / cpu_s(lambda: [clean(d.text) for d in documents]), "MB/cpu-s")
    report("filters", megabytes / cpu_s(lambda: [judge(d, params) for d in cleaned]), "MB/cpu-s")
    texts = [d.text for d in cleaned if d.text]
    ours = megabytes / cpu_s(lambda: dedup.signatures(texts, dedup.DedupParams()))
    sample = texts[:: max(1, len(texts) // 20)]
    sample_mb = sum(len(t.encode()) for t in sample) / 1e6
    plain = sample_mb / cpu_s(lambda: [plain_signature(t) for t in sample], repeats=1)
    report("minhash_signatures", ours, "MB/cpu-s", plain)


def measure_loader(directory: Path) -> None:
    """Measure batches, and a seek to the middle of an epoch of ten million rows."""
    loader = Loader(directory, "train", SEQ_LEN, seed=0)
    num_steps = 500
    taken = cpu_s(lambda: [loader.batch(step, 0, 2, MICRO_BATCH) for step in range(num_steps)])
    report("loader", num_steps * MICRO_BATCH * SEQ_LEN / taken / 1e6, "Mtok/cpu-s")
    positions = np.arange(NUM_ROWS_SHUFFLED // 2, NUM_ROWS_SHUFFLED // 2 + MICRO_BATCH)
    seek_s = cpu_s(lambda: [permute(positions, NUM_ROWS_SHUFFLED, 0, 3) for _ in range(100)]) / 100
    shuffle_s = cpu_s(lambda: np.random.default_rng(0).permutation(NUM_ROWS_SHUFFLED), repeats=1)
    report("loader_seek_in_10M_rows", seek_s * 1e6, "us", shuffle_s * 1e6, less=True)


def main() -> None:
    """Measure everything in a directory of its own."""
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        before = os.environ.get("TIDECELL_HOME")
        stack.callback(lambda: os.environ.update({"TIDECELL_HOME": before}) if before else None)
        os.environ["TIDECELL_HOME"] = home
        done = measure_prepare()
        measure_steps()
        measure_loader(done.directory)


if __name__ == "__main__":
    main()
