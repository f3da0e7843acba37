"""Whether memory levels off under a mixed load: `make soak`, and `make soak ARGS=--short` for two minutes.

A real `mcp-image-sidecar serve` beside an instant runtime, with lives so short that as much expires as is made. Growth
is the slope of the resident memory over the generations of the second half; the first half fills caches and pools.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from mixed_load import MixedLoad
from processes import Server, project, runtime

_SETTINGS = {
    "IMAGE_TTL": "30s",
    "JOB_TTL": "2m",
    "CLEANUP_INTERVAL": "5s",
    "QUEUE_LIMIT": "64",
    "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),  # as the container image has it
}


@dataclass(frozen=True)
class Length:
    """How long, how many generations a second of what size, and what growth in kB per generation is taken for none.

    Malloc has some megabytes free that hide growth: the short run makes small pictures, and more of them.
    """

    minutes: float
    rate: float
    image_bytes: int
    bound: float


LONG = Length(minutes=20, rate=10, image_bytes=300_000, bound=0.5)
SHORT = Length(minutes=2, rate=30, image_bytes=20_000, bound=1.5)
SAMPLES = 40


@dataclass(frozen=True)
class Sample:
    generations: int
    memory_mb: float
    descriptors: int
    threads: int


async def soak(server: Server, load: MixedLoad, length: Length) -> list[Sample]:
    """Samples at even intervals while the load runs, printed as they are taken."""
    seconds = length.minutes * 60
    running = asyncio.create_task(load.run(seconds))
    samples: list[Sample] = []
    while not running.done():
        await asyncio.wait({running}, timeout=seconds / SAMPLES)
        samples.append(sample(server, load))
        print(_row(len(samples) * length.minutes / SAMPLES, samples[-1]), flush=True)
    await running
    return samples


def sample(server: Server, load: MixedLoad) -> Sample:
    process = Path(f"/proc/{server.process.pid}")
    descriptors, threads = (len(os.listdir(process / what)) for what in ("fd", "task"))
    return Sample(load.generations, server.memory_mb, descriptors, threads)


def growth(samples: list[Sample]) -> float:
    """kB per generation over the second half."""
    half = samples[len(samples) // 2 :]
    fit = statistics.linear_regression([one.generations for one in half], [one.memory_mb * 1024 for one in half])
    return fit.slope


def _row(minute: float, one: Sample) -> str:
    return f"| {minute:.1f} | {one.generations:,} | {one.memory_mb:.1f} | {one.descriptors} | {one.threads} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help=f"{SHORT.minutes:g} minutes instead of {LONG.minutes:g}")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--rate", type=float, help="generations a second")
    options = parser.parse_args()
    given = SHORT if options.short else LONG
    length = replace(given, minutes=options.minutes or given.minutes, rate=options.rate or given.rate)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {length.rate:g} generations a second\n")
    print("| minute | generations | memory, MB | descriptors | threads |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory, runtime(length.image_bytes) as endpoint:
        with project(endpoint, Path(directory), **_SETTINGS) as server:
            load = MixedLoad(server.url, length.rate)
            samples = asyncio.run(soak(server, load, length))
    sys.exit(_verdict(load, samples, length))


def _verdict(load: MixedLoad, samples: list[Sample], length: Length) -> int:
    """The exit status."""
    slope = growth(samples)
    level = slope <= length.bound
    print("\n" + ", ".join(f"{name} {count:,}" for name, count in sorted(load.done.items())))
    for what, count in load.failed.most_common():
        print(f"failed {count:,} times: {what}")
    print(f"{slope:+.2f} kB per generation in the second half, at most {length.bound:g} is allowed")
    print("memory levels off" if level else "memory does NOT level off")
    return 0 if level and not load.failed else 1


if __name__ == "__main__":
    main()
