"""100,000 job files and identifiers that nobody means: each is taken, or refused in a sentence, within a second.

    python benchmarks/fuzz.py [--cases 100000] [--seed 0] [--processes 2] [--output benchmarks/results/fuzz.md]

The cases are those of tests/fuzzing.py, whose short form `make test` runs: real job files with something done to their
text or to their values (other types, huge numbers, control characters, 1 MB, aliases that multiply, deep nesting), and
every kind of identifier. Seconds are processor time of the thread, so that other work on the machine makes none slow.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fuzzing import MOST_SECONDS, Found, cases
from machine import footer

PART = 1000
SHOWN = 20


def main() -> None:
    """Tries the cases and writes what came of them; exit code 1 where there is a find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fuzz.md")
    asked = parser.parse_args()
    counts = [min(PART, asked.cases - done) for done in range(0, asked.cases, PART)]
    seeds = [asked.seed * 1_000_000 + part for part in range(len(counts))]
    whole = Found()
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
        for done, part in enumerate(pool.map(tried, seeds, counts), start=1):
            add(whole, part)
            print(f"{done * PART:,} cases", *part.finds, sep="\n", file=sys.stderr, flush=True)
    asked.output.write_text(page(whole, asked.seed))
    print(page(whole, asked.seed))
    raise SystemExit(bool(whole.finds))


def tried(seed: int, count: int) -> Found:
    """What came of the first cases of a seed."""
    found = Found()
    for case in islice(cases(seed), count):
        found.add(case)
    return found


def add(whole: Found, part: Found) -> None:
    """Adds a part's cases to the whole."""
    whole.ends += part.ends
    whole.finds += part.finds
    for subject, slowest in part.slowest.items():
        whole.slowest[subject] = max(whole.slowest.get(subject, (0.0, "")), slowest)


def page(found: Found, seed: int) -> str:
    """The results as Markdown."""
    total, by_end = sum(found.ends.values()), Counter[str]()
    for (_, end), count in found.ends.items():
        by_end[end] += count
    lines = [
        "# Job files and identifiers that nobody means",
        "",
        f"{total:,} cases of seed {seed}: {by_end['taken']:,} taken, {by_end['refused']:,} refused in a sentence. "
        "A find is any other error, a refusal with control characters or of more than 100 kB, a job that reads "
        f"differently the second time, or more than {MOST_SECONDS:g} s. Written by `benchmarks/fuzz.py`.",
        "",
        "| subject | cases | taken | refused | longest, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for subject in sorted(found.slowest):
        taken, refused = found.ends[subject, "taken"], found.ends[subject, "refused"]
        count = sum(number for (name, _), number in found.ends.items() if name == subject)
        lines.append(f"| {subject} | {count:,} | {taken:,} | {refused:,} | {1000 * found.slowest[subject][0]:.1f} |")
    lines += ["", f"{'FAILS' if found.finds else 'holds'}: no finds: {len(found.finds)}"]
    lines += [f"- {find}" for find in found.finds[:SHOWN]]
    return "\n".join([*lines, "", footer(), ""])


if __name__ == "__main__":
    main()
