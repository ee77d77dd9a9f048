"""Memory: what a case would take is known from its headers, and what would not fit is skipped before it is read."""

from __future__ import annotations

import gzip
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest

from anatomask.data import memory
from anatomask.data.arrays import read_b2nd, read_npz
from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.base import RawCase, nifti_image, nifti_label
from anatomask.data.fingerprint import Scheme
from anatomask.data.memory import TooLarge, available_memory, bytes_to_prepare, bytes_to_read, in_units
from anatomask.data.nifti import nifti_grid, read_nifti
from anatomask.data.preparation import dataset_info, prepare_and_write
from anatomask.data.preprocess import prepare_case
from anatomask.data.resampling import target_shape
from anatomask.data.survey import survey_case
from anatomask.errors import UserError

MakeCase = Callable[..., RawCase]
CT = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16)).astype(np.int16)
LARGE = (1500, 1500, 1500)
GIB = 2**30


@contextmanager
def peak_below(most: float) -> Iterator[None]:
    """Fail where more than `most` bytes were allocated inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def zeros(path: Path, shape: tuple[int, ...] = LARGE) -> Path:
    """An honest NIfTI of int16 zeros, which gzip makes a thousandth of its size; one block of it is compressed."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    blocks, rest = divmod(2 * int(np.prod(shape, dtype=np.int64)), 2**24)
    content = gzip.compress(header.binaryblock + bytes(4)) + blocks * gzip.compress(bytes(2**24))
    path.write_bytes(content + gzip.compress(bytes(rest)))
    return path


def test_a_voxel_size_without_sense_is_skipped_with_the_arithmetic(raw_case: MakeCase, tmp_path: Path) -> None:
    raw = raw_case(CT, affine=np.diag([1e6, 1e6, 1e6, 1.0]))
    expected = (
        r"case_0000\.nii\.gz has 16 × 16 × 16 voxels of 1e\+06 × 1e\+06 × 1e\+06 mm, which become 10,666,667 × "
        r"10,666,667 × 10,666,667 of 1\.5 × 1\.5 × 1\.5 mm: that takes 30\.8 ZiB of memory, and .* are there; correct "
        r"the voxel size in its header, leave it out, choose a larger --preprocess\.spacing, or take a machine with"
    )
    with peak_below(5e6), pytest.raises(TooLarge, match=expected):
        prepare_case(raw, ("ct",), (), (1.5, 1.5, 1.5))
    whole = read_dataset(raw.images[0].path.parent)
    info = dataset_info(whole, "huge", (1.5, 1.5, 1.5), 16, "none")
    outcome = prepare_and_write(tmp_path / "out", info, whole.cases[0])
    assert "correct the voxel size" in outcome.reason and outcome.refused is None
    with pytest.raises(TooLarge):
        prepare_and_write(tmp_path / "out", info, whole.cases[0], memory=GIB)


def test_a_small_file_that_stands_for_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = zeros(tmp_path / "zeros.nii.gz")
    assert path.stat().st_size < 8e6
    raw = RawCase("zeros", "zeros", (nifti_image(path),))
    with peak_below(5e6):
        with pytest.raises(TooLarge, match=r"zeros\.nii\.gz has 1,500 × 1,500 × 1,500 voxels of 1 × 1 × 1 mm, which"):
            prepare_case(raw, ("ct",), (), (1.5, 1.5, 1.5), memory=8 * GIB)
        with pytest.raises(TooLarge, match=r"zeros\.nii\.gz has 1,500 × 1,500 × 1,500 voxels: that takes"):
            survey_case(raw, ("ct",), {}, memory=8 * GIB)


def test_a_label_on_another_grid_is_not_read(raw_case: MakeCase, tmp_path: Path) -> None:
    raw = replace(raw_case(CT), label=nifti_label(zeros(tmp_path / "label.nii.gz")))
    with peak_below(5e6):
        with pytest.raises(UserError, match=r"label\.nii\.gz has shape \(1500, 1500, 1500\), but .* \(16, 16, 16\)"):
            prepare_case(raw, ("ct",), (1,), (2.0, 2.0, 3.0))
        facts = survey_case(raw, ("ct",), {1: "one"})
    assert facts.images is not None and "has shape (1500, 1500, 1500)" in facts.label_error


def test_channels_on_other_grids_are_not_read(raw_case: MakeCase, tmp_path: Path) -> None:
    raw = raw_case(CT)
    raw = replace(raw, images=(*raw.images, nifti_image(zeros(tmp_path / "other.nii.gz"))))
    with peak_below(5e6), pytest.raises(UserError, match=r"other\.nii\.gz has shape \(1500, 1500, 1500\), but"):
        prepare_case(raw, ("ct", "ct"), (), (2.0, 2.0, 3.0))


def test_a_header_that_tells_of_more_than_the_file_can_hold(tmp_path: Path) -> None:
    for ending, most in ((".nii", "8.34 KiB"), (".nii.gz", "MiB")):
        path = tmp_path / f"scan{ending}"
        nib.save(nib.Nifti1Image(CT, np.eye(4)), path)
        content = bytearray(path.read_bytes() if ending == ".nii" else gzip.decompress(path.read_bytes()))
        content[42:48] = np.array([30_000] * 3, "<i2").tobytes()
        path.write_bytes(content if ending == ".nii" else gzip.compress(content))
        for read in (nifti_grid, read_nifti):
            with pytest.raises(UserError, match=rf"scan{ending} is damaged or cut off \(its header .*49.1 TiB.*{most}"):
                read(path)


def test_the_header_of_a_scan_with_one_time_is_read_without_its_voxels(tmp_path: Path) -> None:
    path = zeros(tmp_path / "zeros.nii.gz", (*LARGE, 1, 1))
    with peak_below(5e6):
        assert nifti_grid(path)[0] == LARGE
    nib.save(nib.Nifti1Image(CT[..., None], np.eye(4)), tmp_path / "small.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "small.nii.gz")[0], CT)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("scheme", ["ct", "zscore"])
@pytest.mark.parametrize(
    ("shape", "spacing", "channels"),
    [((48, 48, 48), 1.0, 1), ((32, 32, 32), 0.5, 1), ((80, 80, 80), 2.0, 2), ((96, 96, 20), 1.4, 3)],
)
def test_no_case_takes_more_than_the_bound_nor_much_less(
    labelled: bool, scheme: Scheme, shape: tuple[int, int, int], spacing: float, channels: int, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(0).integers(-900, 900, shape).astype(np.float64) * 1.5
    voxels[: shape[0] // 3] = 0
    images = []
    for c in range(channels):
        nib.save(nib.Nifti1Image(voxels.astype(np.int16) if c else voxels, np.eye(4)), tmp_path / f"{c}.nii.gz")
        images.append(nifti_image(tmp_path / f"{c}.nii.gz"))
    nib.save(nib.Nifti1Image((voxels > 0).astype(np.uint8), np.eye(4)), tmp_path / "label.nii.gz")
    raw = RawCase("a", "a", tuple(images), nifti_label(tmp_path / "label.nii.gz") if labelled else None)
    bound = bytes_to_prepare(shape, target_shape(shape, (1.0,) * 3, (spacing,) * 3), channels)
    del voxels
    prepare_case(raw, (scheme,) * channels, (1,), (spacing,) * 3)  # what libraries keep is allocated
    with peak_below(bound):
        prepare_case(raw, (scheme,) * channels, (1,), (spacing,) * 3, memory=bound)
        assert tracemalloc.get_traced_memory()[1] > bound / 4
    with peak_below(bytes_to_read(shape, channels)):
        assert survey_case(raw, (scheme,) * channels, {1: "one"}, memory=bytes_to_read(shape, channels)).images
    with pytest.raises(TooLarge):
        prepare_case(raw, (scheme,) * channels, (1,), (spacing,) * 3, memory=bound - 1)


def test_arrays_that_stand_for_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blosc2.zeros((2, 500, 500, 500), np.float32, urlpath=str(tmp_path / "a.b2nd"), mode="w")
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((500, 500, 100), np.uint8), spacing=np.ones(10**6))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1e6
    monkeypatch.setattr(memory, "available_memory", lambda: 10**7)
    with peak_below(5e6):
        with pytest.raises(TooLarge, match=r"a\.b2nd holds 500 × 500 × 500 voxels of 4 bytes: that takes 477 MiB"):
            read_b2nd(tmp_path / "a.b2nd", 0)
        with pytest.raises(TooLarge, match=r"a\.npz holds 500 × 500 × 100 voxels of 1 bytes: .* and 9\.54 MiB are"):
            read_npz(tmp_path / "a.npz", "image")
        raw = read_dataset(tmp_path, "npz")
        with pytest.raises(UserError, match="spacing must be three positive numbers in mm; its shape is"):
            prepare_case(raw.cases[0], raw.schemes, (), (1.0, 1.0, 1.0))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  24000000 kB\nMemFree:  9000 kB\nMemAvailable:   16000000 kB\n"}
JOB = "sys/fs/cgroup/system.slice/job/"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 16_384_000_000),
        ({**MEMINFO, "proc/self/cgroup": "0::/\n"}, 16_384_000_000),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "0::/system.slice/job/step\n",
                f"{JOB}memory.max": "8000\n",
                f"{JOB}memory.current": "5000\n",
                f"{JOB}memory.stat": "anon 3000\ninactive_file 1500\n",
                f"{JOB}step/memory.max": "max\n",
                f"{JOB}step/memory.current": "10\n",
                f"{JOB}step/memory.stat": "inactive_file 0\n",
            },
            4500,
        ),
        (
            {
                **MEMINFO,
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/docker/a\n0::/\n",
                "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": "7000\n",
                "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/docker/a/memory.stat": "total_inactive_file 100\n",
            },
            0,
        ),
    ],
)
def test_available_memory_is_that_of_the_machine_and_of_its_control_groups(
    files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    assert available_memory(write(tmp_path, files)) == expected


def test_available_memory_of_this_machine() -> None:
    assert 10**6 < available_memory() < 10**15
    assert available_memory(Path("/nowhere")) > 10**6


def test_an_excess_survives_a_pickle_and_meets_another_limit() -> None:
    error = TooLarge("a.nii has 2 × 2 × 2 voxels", 3 * GIB, GIB)
    again = pickle.loads(pickle.dumps(error)).at(2 * GIB)
    assert str(error).startswith("a.nii has 2 × 2 × 2 voxels: that takes 3 GiB of memory, and 1 GiB are there; ")
    assert again.needs == 3 * GIB and "and 2 GiB are there" in str(again)


def test_bytes_as_people_say_them() -> None:
    assert [in_units(size) for size in (0, 1023, 1024, 1_500_000, 888 * 2**40, 2**95)] == [
        "0 bytes", "1,023 bytes", "1 KiB", "1.43 MiB", "888 TiB", "32,768 YiB"
    ]  # fmt: skip
