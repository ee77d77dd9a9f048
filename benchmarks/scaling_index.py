"""Index and plan of many cases, for `scaling.py`: what the driver and each reader hold before the first batch.

Cases are records without files: what is read of an unlabelled case before its first crop. Driver, worker and reader
are processes of their own, so that their memory is theirs. Ray is not started; its own start comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

ROLES = ("driver", "worker", "reader")
Made = TypeVar("Made")


def main() -> None:
    """Play one role, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("data")
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    print(json.dumps(played(arguments.role, arguments.data, arguments.workers)))


def simulated(cases: int, readers: int) -> dict[str, Any]:
    """Write the index of `cases` cases; measure a driver, a worker and a reader of `readers` workers of one reader."""
    with tempfile.TemporaryDirectory() as folder:
        write_cases(folder, cases)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        roles = {role: child(role, folder, readers) for role in ROLES}
    return {
        "cases": cases,
        "readers": readers,
        "index_mb": size / 1e6,
        **roles,
        "seconds_to_first_plan": sum(found["seconds"] for found in roles.values()),
    }


def child(role: str, folder: str, workers: int) -> dict[str, float]:
    """Play a role in a process of its own."""
    command = [sys.executable, __file__, role, folder, "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{role}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_cases(folder: str, count: int) -> None:
    """Write the index of `count` unlabelled CTs at 1.5 mm, of which all but 100 are for training."""
    from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint
    from anatomask.data.index import write_index
    from anatomask.data.records import CaseRecord, ChannelRecord, DatasetInfo, affine_rows

    rng, spacing = np.random.default_rng(0), (1.5, 1.5, 1.5)
    info = DatasetInfo("many", "nifti", ("CT",), ("ct",), {}, {}, spacing, 64, "none")

    def record(number: int) -> CaseRecord:
        d, h, w = (int(extent) for extent in rng.integers(184, 304, 3))
        affine = affine_rows(np.diag([*spacing, 1.0]) + rng.random((4, 4)))
        channel = ChannelRecord("int16", -1024.0, float(rng.normal()), float(rng.normal(300, 50)))
        name = f"s{number:06d}"
        return CaseRecord(name, name, (d, h, w), spacing, affine, (d, h, w), affine, False, 64, "none", {}, (channel,))

    records = [record(number) for number in range(count)]
    names = [one.case for one in records]
    splits = {"train": [], "val": names[:50], "test": names[50:100], "unlabeled": names[100:], "unlabeled_test": []}
    fingerprint = Fingerprint((ChannelFingerprint("CT", "ct", -1000.0, 1000.0, 0.0, 300.0),))
    write_index(folder, info, records, splits, fingerprint)


def played(role: str, data: str, workers: int) -> dict[str, float]:
    """Measure the seconds of what a role does before the first batch, and the memory that this takes."""
    import ray.cloudpickle

    from anatomask.cluster_settings import ClusterConfig
    from anatomask.config import PretrainConfig
    from anatomask.data import stream
    from anatomask.data.samples import random_origin, worker_samples
    from anatomask.recipes import RECIPES
    from anatomask.stages.pretrain import build_job

    recipe: PretrainConfig = RECIPES["paper-b"].settings("pretrain")
    training = replace(recipe.training, batch_size=4 * workers)
    config = replace(recipe, data=data, training=training, cluster=ClusterConfig(workers=workers))
    sent = Path(data) / "job"
    before = resident_mb()

    def took(work: Callable[[], Made]) -> tuple[Made, dict[str, float]]:
        began, cpu = time.perf_counter(), time.process_time()
        made = work()
        return made, {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "mb": resident_mb() - before,
            "mb_with_imports": resident_mb(),
        }

    if role == "driver":
        job, found = took(lambda: build_job(config))
        sent.write_bytes(ray.cloudpickle.dumps(job))
        return {**found, "job_mb": sent.stat().st_size / 1e6, "updates": job.total_steps}
    job = ray.cloudpickle.loads(sent.read_bytes())
    before = resident_mb()
    if role == "worker":

        def plan() -> Any:
            samples = worker_samples(0, job.total_steps, training.batch_size, workers - 1, workers)
            return samples, stream.planned(samples[: stream.SAMPLES_PER_EXECUTION], 4)

        (samples, tables), found = took(plan)
        return {**found, "samples": len(samples), "tables": len(tables)}

    def first_task() -> Mapping[str, Any]:
        reader = stream.SampleReader(job.data, job.sequence, job.draw)
        size = job.loader.patch_size
        return {
            case: random_origin(reader.dataset.records[case].shape, size, job.sequence.rng(k))
            for k in range(stream.SAMPLES_PER_TASK)
            for case in [job.sequence.case(k)]
        }

    return took(first_task)[1]


def resident_mb() -> float:
    """Return the MB of main memory that this process takes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
