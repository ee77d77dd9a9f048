"""Speed of reading random crops from disk: `python benchmarks/loader.py --nnunet-python VENV/bin/python [--quick]`.

Real CT scans, resampled to the size of TotalSegmentator's volumes at 1.5 mm, are written for each way of loading: our
shards, nnU-Net's Blosc2 arrays (by nnU-Net in its own environment, as it installs torchvision), MONAI's persistent and
in-memory caches, a memory-mapped array. Each way runs in its own process, in turn, on one thread, from a warm page
cache. nnU-Net always reads labels, so ours is shown both ways. The last line is JSON: its ratios are of crops/s of CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # nnU-Net's interpreter runs this file too
    from monai.data import CacheDataset, PersistentDataset

    from anatomask.data.settings import Codec

SIZE = (112, 112, 128)
CROP_BYTES = 2 * SIZE[0] * SIZE[1] * SIZE[2]
SAMPLES_OF_A_RUN = 843_000
"""Number of samples that our stream is opened for: TotalSegmentator's training cases, 1000 epochs."""
READ_AHEAD = 200
"""Number of crops taken before the stream is measured: those that it reads ahead, and a few more."""
LOADERS = ("shards", "shards+labels", "stream", "nnunet", "monai-persistent", "monai-cache", "memory-map")


def main() -> None:
    """Prepare, measure each way in turn, and print."""
    arguments = parse()
    if arguments.loader:
        found = measured(arguments.loader, arguments.folder, arguments.crops, arguments.restarts)
        print(json.dumps(found), flush=True)
        os._exit(0)  # Ray Data may wait for ever where a stream is left before its end
    from measure import machine, report

    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        save_volumes(Path(arguments.scans), folder, arguments.volumes, arguments.edge)
        write_shards(folder, arguments.codec, arguments.brick)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LOADERS}
        if arguments.nnunet_python:
            child(arguments.nnunet_python, "nnunet-write", folder, 0)
        else:
            del runs["nnunet"]
        for _ in range(arguments.rounds):
            for name, of_loader in runs.items():
                python = arguments.nnunet_python if name == "nnunet" else sys.executable
                of_loader.append(child(python, name, folder, arguments.crops))
        memory = child(sys.executable, "shards", folder, 0, restarts=arguments.restarts)
        space = {name: folder_bytes(folder / name) / arguments.volumes / 2**20 for name in ("shards", "nnunet", "raw")}
    medians = {name: {key: median(found, key) for key in found[0]} for name, found in runs.items()}
    result = summary(medians) | {
        "memory_growth_mib": memory["memory_growth_mib"],
        "loaders": medians,
        "mib_per_volume": space,
        "arguments": vars(arguments),
        "machine": machine("cpu"),
    }
    report(
        f"Random crops of {'x'.join(map(str, SIZE))} from {arguments.volumes} volumes of {arguments.edge}³, "
        f"bricks of {arguments.brick}³, codec {arguments.codec}",
        ["", "crops/s", "crops/s of CPU", "read / crop", "first s", "peak GiB"],
        [
            [
                name,
                f"{found['crops_per_second']:.0f}",
                f"{found['crops_per_core_second']:.0f}",
                f"{found['read_over_crop']:.2f}" if found["read_over_crop"] else "-",
                f"{found['first_batch_s']:.2f}",
                f"{found['peak_memory_gib']:.2f}",
            ]
            for name, found in medians.items()
        ],
        result,
    )


def summary(medians: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Compute the figures that the project aims at."""
    ours = medians["shards"]
    result = {
        "bytes_read_over_crop": ours["read_over_crop"],
        "first_batch_s": medians["stream"]["first_batch_s"],
        "peak_memory_gib": medians["stream"]["peak_memory_gib"],
    }
    if "nnunet" in medians:
        theirs = medians["nnunet"]["crops_per_core_second"]
        result["crops_per_core_over_nnunet"] = ours["crops_per_core_second"] / theirs
        result["crops_per_core_over_nnunet_with_labels"] = medians["shards+labels"]["crops_per_core_second"] / theirs
    return result


def median(found: list[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in found if run[key] is not None]
    return statistics.median(values) if values else None


def child(python: str, loader: str, folder: Path, crops: int, restarts: int = 0) -> dict[str, Any]:
    """Run one way of loading in its own process, and return its figures."""
    command = [python, __file__, "--loader", loader, "--folder", str(folder)]
    command += ["--crops", str(crops), "--restarts", str(restarts)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{loader} failed:\n{done.stderr[-3000:]}")
    found = [line for line in done.stdout.splitlines() if line.startswith("{")][-1]
    return dict(json.JSONDecoder().raw_decode(found)[0])  # Ray may print more, on that line too


def measured(loader: str, folder: Path, crops: int, restarts: int) -> dict[str, Any]:
    """Measure one way of loading for `crops` crops, after some that warm it up."""
    if loader == "nnunet-write":
        write_nnunet(folder)
        return {}
    if restarts:
        return {"memory_growth_mib": memory_growth(folder, restarts)}
    began = time.perf_counter()
    stream, bytes_read = OPENERS[loader](folder)
    next(stream)
    first = time.perf_counter() - began
    for _ in range(READ_AHEAD if loader == "stream" else 1):
        next(stream)
    before = bytes_read()
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(crops):
        next(stream)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    after = bytes_read()
    return {
        "crops_per_second": crops / wall,
        "crops_per_core_second": crops / cpu,
        "read_over_crop": None if after is None or before is None else (after - before) / crops / CROP_BYTES,
        "first_batch_s": first,
        "peak_memory_gib": peak_bytes() / 2**30,
    }


def cpu_seconds() -> float:
    """Return user and system seconds of this process and of all living descendants."""
    clock = os.sysconf("SC_CLK_TCK")
    total = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for pid in descendants(os.getpid()):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / clock
    return total


def descendants(pid: int) -> list[int]:
    """List the processes below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for below in map(int, task.read_text(encoding="utf-8").split()):
            found += [below, *descendants(below)]
    return found


def peak_bytes() -> float:
    """Return the peak resident memory of this process, plus that of its living descendants now."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return own + sum(proportional_bytes(pid) for pid in descendants(os.getpid()))


def proportional_bytes(pid: int | str) -> int:
    """Return the resident memory of a process; shared memory is divided among the processes that share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def folder_bytes(folder: Path) -> int:
    """Count the bytes of all files in a folder, 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---- data


def save_volumes(scans: Path, folder: Path, count: int, edge: int) -> None:
    """Save `count` int16 volumes of edge³ voxels from the real CT scans, mirrored where they are used again."""
    import nibabel as nib
    from scipy.ndimage import zoom

    sources = [*sorted((scans / "scans").glob("*.nii.gz")), *sorted((scans / "totalsegmentator").rglob("ct.nii.gz"))]
    volumes = []
    for path in sources:
        voxels = np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj).astype(np.float32)
        if np.mean(voxels < -500) > 1e-3:  # CT: there is air
            volumes.append(np.rint(zoom(voxels, [edge / n for n in voxels.shape], order=1)).astype(np.int16))
    if not volumes:
        raise SystemExit(f"{scans} holds no CT: give --scans the folder of the real scans")
    (folder / "raw").mkdir()
    for index in range(count):
        axes = tuple(axis for axis in range(3) if (index // len(volumes)) >> axis & 1)
        np.save(folder / "raw" / f"v{index:03}.npy", np.ascontiguousarray(np.flip(volumes[index % len(volumes)], axes)))


def label_of(volume: np.ndarray) -> np.ndarray:
    """Label body and bone, which have the structure of anatomy."""
    return (volume > -300).astype(np.uint8) + (volume > 200)


def write_shards(folder: Path, codec: Codec, brick: int) -> None:
    """Write our shards of all volumes."""
    from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint
    from anatomask.data.index import write_index
    from anatomask.data.records import DatasetInfo, PreparedCase
    from anatomask.data.shards import write_case

    root, affine = str(folder / "shards"), np.diag([1.5, 1.5, 1.5, 1])
    records = []
    for path in sorted((folder / "raw").glob("*.npy")):
        volume = np.load(path)
        case = PreparedCase(
            path.stem, path.stem, (volume,), ("ct",), label_of(volume), affine, volume.shape, affine, None
        )
        records.append(write_case(root, case, brick, codec))
    classes, tolerance, spacing = {1: "body", 2: "bone"}, {1: 3.0, 2: 3.0}, (1.5, 1.5, 1.5)
    info = DatasetInfo("bench", "folder", ("CT",), ("ct",), classes, tolerance, spacing, brick, codec)
    fingerprint = Fingerprint((ChannelFingerprint("CT", "ct", -1000, 1000, 0, 300),))
    write_index(root, info, records, {"train": tuple(r.case for r in records)}, fingerprint)


def write_nnunet(folder: Path) -> None:
    """Write nnU-Net's Blosc2 arrays of all volumes: z-scored float32, and labels."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2 as Dataset

    (folder / "nnunet").mkdir()
    for path in sorted((folder / "raw").glob("*.npy")):
        volume = np.load(path)
        data = ((np.clip(volume, -1000, 1000) - np.float32(0)) / np.float32(300))[None]
        seg = label_of(volume)[None].astype(np.int8)
        blocks, chunks = comp_blosc2_params(data.shape, SIZE, data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, SIZE, seg.itemsize)
        where = {c: np.argwhere(seg == c)[:1000] for c in (1, 2)}
        Dataset.save_case(
            data,
            seg,
            {"class_locations": where},
            str(folder / "nnunet" / path.stem),
            chunks,
            blocks,
            chunks_seg,
            blocks_seg,
        )


# ---- ways of loading: an endless iterator of crops, and a function that says how many bytes were read so far

Opened = tuple[Iterator[Any], Callable[[], int | None]]


def open_shards(folder: Path, labels: bool) -> Opened:
    """Read as a reading process of ours does."""
    from anatomask.data.samples import SampleSequence, random_origin
    from anatomask.data.shards import PreparedDataset

    dataset = PreparedDataset.open(str(folder / "shards"))
    sequence = SampleSequence(tuple(dataset.records), 0)
    drawn: list[tuple[str, tuple[int, int, int]]] = []

    def crops() -> Iterator[Any]:
        while True:
            k = len(drawn)
            case, rng = sequence.case(k), sequence.rng(k)
            drawn.append((case, random_origin(dataset.records[case].shape, SIZE, rng)))
            yield dataset.read_crop(*drawn[-1], SIZE, label=labels, pad=False)

    return crops(), lambda: sum(dataset.bytes_touched(*box, SIZE, label=labels) for box in drawn)


def open_stream(folder: Path) -> Opened:
    """Open our stream by Ray Data for a whole run, as a training worker reads it, batch 4."""
    import ray

    from anatomask.data.masked_draw import MaskedDraw
    from anatomask.data.samples import LoaderConfig, SampleSequence
    from anatomask.data.shards import PreparedDataset
    from anatomask.data.stream import stream_batches

    ray.init(address="local", num_cpus=2, object_store_memory=2**30, logging_level=logging.ERROR, log_to_driver=False)
    path = str(folder / "shards")
    sequence = SampleSequence(tuple(PreparedDataset.open(path).records), 0)
    draw = MaskedDraw(LoaderConfig(patch_size=SIZE))
    options: dict[str, Any] = {"read_ahead": 2, "readers": 1, "reader_cpus": 1}
    batches = stream_batches(path, sequence, draw, np.arange(SAMPLES_OF_A_RUN), 4, **options)
    return (crop for batch in batches for crop in batch["image"]), lambda: None


def open_nnunet(folder: Path) -> Opened:
    """Open nnU-Net's loader without its augmentation, batch 2."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = LabelManager({"background": 0, "body": 1, "bone": 2}, None)
    loader = nnUNetDataLoader(nnUNetDatasetBlosc2(str(folder / "nnunet")), 2, SIZE, SIZE, labels)
    batches = iter(loader.generate_train_batch, None)
    return (crop for batch in batches for crop in batch["data"]), lambda: None


def open_monai(folder: Path, persistent: bool) -> Opened:
    """Open MONAI's caches with a DataLoader of one process."""
    from monai.data import CacheDataset, DataLoader, PersistentDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropd

    items = [{"image": str(path)} for path in sorted((folder / "raw").glob("*.npy"))]
    load = LoadImaged("image", reader="NumpyReader")
    channel = EnsureChannelFirstd("image", channel_dim="no_channel")
    crop = RandSpatialCropd("image", SIZE, random_size=False)
    dataset: PersistentDataset | CacheDataset
    if persistent:
        dataset = PersistentDataset(items, Compose([load, channel, crop]), cache_dir=folder / "monai")
    else:
        dataset = CacheDataset(items, Compose([load, channel, crop]), progress=False)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=0)

    def crops() -> Iterator[Any]:
        while True:
            for batch in loader:
                yield from batch["image"]

    return crops(), lambda: None


def open_memory_map(folder: Path) -> Opened:
    """Open memory-mapped int16 arrays, the least work that is possible."""
    arrays = [np.load(path, mmap_mode="r") for path in sorted((folder / "raw").glob("*.npy"))]
    rng = np.random.default_rng(0)

    def crops() -> Iterator[np.ndarray]:
        while True:
            array = arrays[rng.integers(len(arrays))]
            d, h, w = (int(rng.integers(0, n - s + 1)) for n, s in zip(array.shape, SIZE, strict=True))
            yield np.ascontiguousarray(array[d : d + SIZE[0], h : h + SIZE[1], w : w + SIZE[2]])

    return crops(), lambda: None


OPENERS: dict[str, Callable[[Path], Opened]] = {
    "shards": partial(open_shards, labels=False),
    "shards+labels": partial(open_shards, labels=True),
    "stream": open_stream,
    "nnunet": open_nnunet,
    "monai-persistent": partial(open_monai, persistent=True),
    "monai-cache": partial(open_monai, persistent=False),
    "memory-map": open_memory_map,
}


def memory_growth(folder: Path, restarts: int) -> float:
    """Measure the MiB by which memory grows while shards are reopened `restarts` times, after the first tenth."""
    start = 0
    for turn in range(restarts):
        stream, _ = open_shards(folder, labels=False)
        next(stream)
        if turn == restarts // 10:
            start = proportional_bytes("self")
    return (proportional_bytes("self") - start) / 2**20


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few volumes and crops: within a minute")
    parser.add_argument("--nnunet-python", default="", help="Python that has nnunetv2. Default: no nnU-Net")
    parser.add_argument("--scans", default="../shared/data", help="folder of the real scans")
    parser.add_argument("--scratch", help="folder for the data sets; default: the system's temporary one")
    parser.add_argument("--volumes", type=int, default=16)
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--crops", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--codec", default="none")
    parser.add_argument("--brick", type=int, default=32)
    parser.add_argument("--loader", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.volumes, arguments.crops, arguments.rounds, arguments.restarts = 4, 60, 1, 100
    return arguments


if __name__ == "__main__":
    main()
