from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from anatomask.data.datasets import read_dataset
from anatomask.data.datasets.base import RawCase, nifti_image
from anatomask.data.preprocess import Grid, grid_of, planned_spacing, prepare_case, readable_grids, to_stored_type
from anatomask.data.settings import PreprocessConfig
from anatomask.errors import UserError

Ct = Callable[..., tuple[np.ndarray, np.ndarray]]
MakeRaw = Callable[..., RawCase]
SPACING = (2.0, 2.0, 3.0)


def turned(voxels: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same scan with its axes in another order and direction."""
    transform = orientations.ornt_transform(nib.io_orientation(affine), orientations.axcodes2ornt(axes))
    return orientations.apply_orientation(voxels, transform), affine @ orientations.inv_ornt_aff(
        transform, voxels.shape
    )


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ILA"])
def test_the_same_scan_is_prepared_alike_however_it_is_stored(axes: str, ct: Ct, raw_case: MakeRaw) -> None:
    image, label = ct()
    affine = nib.affines.from_matvec(np.diag(SPACING), [-10, 20, 5])
    reference = prepare_case(raw_case(image, label, affine), ("ct",), {1, 2}, (3.0, 1.5, 2.0))
    (image, stored), (label, _) = turned(image, affine, axes), turned(label, affine, axes)
    result = prepare_case(raw_case(image, label, stored), ("ct",), {1, 2}, (3.0, 1.5, 2.0))
    np.testing.assert_allclose(result.images[0], reference.images[0], atol=1)
    np.testing.assert_array_equal(result.label, reference.label)
    np.testing.assert_allclose(result.affine, reference.affine, atol=1e-6)
    np.testing.assert_array_equal(result.original_label, label)
    assert result.original_shape == image.shape


def test_an_organ_stays_where_it_is_in_mm(raw_case: MakeRaw) -> None:
    image = np.full((40, 36, 30), -1000, np.int16)
    image[10:18, 20:30, 8:14] = 300
    label = (image > 0).astype(np.uint8)
    oblique = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.05) @ np.diag([-1, 1.2, 2]), [30, -20, 4])
    result = prepare_case(raw_case(image, label, oblique), ("ct",), {1}, (0.8, 0.8, 0.8))
    assert result.label is not None
    before = nib.affines.apply_affine(oblique, np.argwhere(label)).mean(0)
    after = nib.affines.apply_affine(result.affine, np.argwhere(result.label)).mean(0)
    np.testing.assert_allclose(after, before, atol=0.05)
    assert nib.aff2axcodes(result.affine) == ("R", "A", "S")
    assert result.images[0][result.label == 1].mean() > 200


def test_ct_is_rounded_hu_and_all_else_half_precision(ct: Ct, raw_case: MakeRaw) -> None:
    image, _ = ct()
    assert prepare_case(raw_case(image), ("ct",), (), SPACING).images[0].dtype == np.int16
    np.testing.assert_array_equal(prepare_case(raw_case(image), ("ct",), (), SPACING).images[0], image)
    assert prepare_case(raw_case(image), ("zscore",), (), SPACING).images[0].dtype == np.float16
    np.testing.assert_array_equal(
        to_stored_type(np.array([-40000.0, -0.6, 1.4, 40000.0]), "ct"), np.array([-32768, -1, 1, 32767])
    )


def test_large_values_keep_their_z_scores() -> None:
    volume = np.linspace(0, 3e6, 1000).reshape(10, 10, 10)
    stored = to_stored_type(volume, "zscore").astype(np.float64)
    assert np.isfinite(stored).all()
    np.testing.assert_allclose(
        (stored - stored.mean()) / stored.std(), (volume - volume.mean()) / volume.std(), atol=2e-3
    )


@pytest.mark.parametrize("unit", [1e-9, 1e-30, 1.0, 3e7])
def test_the_unit_costs_no_precision(unit: float) -> None:
    volume = np.linspace(0.1, 1, 1000).reshape(10, 10, 10)
    stored = to_stored_type((volume * unit).astype(np.float32), "zscore").astype(np.float64)
    assert 16384 <= stored.max() < 32768
    np.testing.assert_allclose(stored / stored.max(), volume, rtol=2e-3)
    factor = np.log2(stored[-1, -1, -1] / unit)
    assert abs(factor - round(factor)) < 1e-2
    assert not to_stored_type(np.zeros((2, 2, 2)), "zscore").any()


@pytest.mark.parametrize("spacing", [(1.3, 1.3, 1.7), (3.0, 3.0, 4.0)])
def test_background_stays_zero_and_out_of_the_statistics(spacing: tuple[float, float, float], tmp_path: Path) -> None:
    """Splines ring around the edge of the head; what they leave in the air is no body."""
    rng = np.random.default_rng(0)
    image = np.zeros((32, 30, 28), np.float32)
    image[8:24, 8:22, 8:20] = rng.normal(1000, 50, (16, 14, 12))
    image[12:15, 12:15, 12:15] = 0  # a hole that is no background
    path = tmp_path / "mr.nii.gz"
    nib.save(nib.Nifti1Image(image, np.diag([*SPACING, 1.0])), path)
    prepared = (
        prepare_case(RawCase("mr", "mr", (nifti_image(path),)), ("zscore",), (), spacing).images[0].astype(np.float64)
    )
    body = prepared[prepared != 0]
    assert body.size / prepared.size == pytest.approx(16 * 14 * 12 / image.size, rel=0.15)
    assert body.mean() > 0.9 * np.median(body)
    same = (
        prepare_case(RawCase("mr", "mr", (nifti_image(path),)), ("zscore",), (), SPACING).images[0].astype(np.float64)
    )
    np.testing.assert_allclose(same / same.max(), image / image.max(), atol=1e-3)


HEADERS = {
    "dtype code": (70, np.int16(999)),
    "no dtype": (70, np.int16(0)),
    "vox_offset": (108, np.float32(1e9)),
    "vox_offset NaN": (108, np.float32(np.nan)),
    "huge shape": (42, np.array([32767, 32767, 32767], np.int16)),
    "negative shape": (42, np.int16(-4)),
    "dimensions": (40, np.int16(99)),
    "sform NaN": (280, np.float32(np.nan)),
    "magic": (344, np.frombuffer(b"xxxx", np.int32)[0]),
}


@pytest.mark.parametrize("defect", HEADERS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_damaged_header_is_named(defect: str, ending: str, ct: Ct, tmp_path: Path) -> None:
    offset, value = HEADERS[defect]
    content = bytearray(nib.Nifti1Image(ct()[0], np.diag([*SPACING, 1.0])).to_bytes())
    content[offset : offset + value.nbytes] = value.tobytes()
    path = tmp_path / f"bad{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    raw = RawCase("bad", "bad", (nifti_image(path),))
    with pytest.raises(UserError, match=rf"bad\{ending} "):
        prepare_case(raw, ("ct",), (), SPACING)
    assert len(readable_grids([raw])) <= 1
    nib.save(nib.Nifti1Image(ct()[0], np.eye(4)), tmp_path / "good.nii.gz")
    assert read_dataset(tmp_path, "folder").schemes == ("ct",)


def test_a_scan_of_one_slice_goes_through(raw_case: MakeRaw) -> None:
    image = np.arange(72, dtype=np.int16).reshape(9, 8, 1)
    assert prepare_case(raw_case(image), ("ct",), (), (1.0, 1.0, 3.0)).images[0].shape == (18, 16, 1)


def test_a_trailing_axis_of_one_is_dropped(ct: Ct, raw_case: MakeRaw) -> None:
    image, _ = ct()
    assert prepare_case(raw_case(image[..., None]), ("ct",), (), SPACING).images[0].shape == image.shape


def nan(image: np.ndarray) -> np.ndarray:
    bad = image.astype(np.float32)
    bad[0, 0, :3] = np.nan
    return bad


@pytest.mark.parametrize(
    ("spoil_image", "spoil_label", "message"),
    [
        (nan, lambda label: label, r"_0000\.nii\.gz has 3 voxels that are NaN"),
        (lambda image: np.stack([image] * 2, -1), lambda label: label, r"_0000\.nii\.gz has shape \(16, 14, 12, 2\)"),
        (lambda image: image, lambda label: label[1:], r"case\.nii\.gz has shape \(15, 14, 12\), but"),
        (lambda image: image, lambda label: label * 3, r"case\.nii\.gz holds 3, 6, which"),
        (lambda image: image, lambda label: label + np.float32(0.5), r"case\.nii\.gz holds 0\.5, 1\.5, 2\.5"),
        (lambda image: image, lambda label: nan(label), r"case\.nii\.gz has 3 voxels that are NaN"),
    ],
)
def test_bad_voxels_are_refused_and_the_file_named(
    spoil_image: Callable[[np.ndarray], np.ndarray],
    spoil_label: Callable[[np.ndarray], np.ndarray],
    message: str,
    ct: Ct,
    raw_case: MakeRaw,
) -> None:
    image, label = ct()
    with pytest.raises(UserError, match=message):
        prepare_case(raw_case(spoil_image(image), spoil_label(label)), ("ct",), {1, 2}, SPACING)


def test_a_label_map_in_place_of_a_scan_is_refused(raw_case: MakeRaw) -> None:
    """Where its numbers are stored as whole ones: a scan of fractions that are all whole may be anything."""
    organs = np.zeros((16, 14, 12), np.uint8)
    organs[2:7, 3:9, 4:9], organs[9:14, 5:11, 3:9] = 1, 2
    with pytest.raises(UserError, match=r"case_0000\.nii\.gz is a label map, not a scan \(its 3 values"):
        prepare_case(raw_case(organs), ("zscore",), (), SPACING)
    assert prepare_case(raw_case(organs.astype(np.float32)), ("zscore",), (), SPACING).images[0].any()
    assert prepare_case(raw_case(organs), ("none",), (), SPACING).images[0].any()


@pytest.mark.parametrize("scale", [(1e-3, 1e-3, 1e-3), (1, 1, 1e-3)])
def test_a_scan_that_is_smaller_than_a_voxel_is_refused(
    scale: tuple[float, float, float], ct: Ct, raw_case: MakeRaw
) -> None:
    raw = raw_case(ct()[0], affine=np.diag([*np.multiply(SPACING, scale), 1.0]))
    with pytest.raises(UserError, match=r"case_0000\.nii\.gz has 16 × 14 × 12 voxels of .*correct the voxel size"):
        prepare_case(raw, ("ct",), (), SPACING)


def test_a_label_elsewhere_is_refused(ct: Ct, raw_case: MakeRaw) -> None:
    image, label = ct()
    affine = np.diag([*SPACING, 1.0])
    shifted = affine.copy()
    shifted[0, 3] = 50
    with pytest.raises(UserError, match=r"50\.0 mm apart"):
        prepare_case(raw_case(image, label, affine, shifted), ("ct",), {1, 2}, SPACING)
    shifted[0, 3] = 0.5
    prepare_case(raw_case(image, label, affine, shifted), ("ct",), {1, 2}, SPACING)


@pytest.mark.parametrize("size", [200, 3000])
def test_a_truncated_file_is_named(size: int, ct: Ct, raw_case: MakeRaw) -> None:
    raw = raw_case(*ct((40, 40, 40)))
    path = raw.images[0].path
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"_0000\.nii\.gz is damaged or cut off"):
        prepare_case(raw, ("ct",), {1, 2}, SPACING)


def test_files_that_are_missing_or_no_nifti_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    with pytest.raises(UserError, match=r"x\.nii\.gz is missing"):
        prepare_case(RawCase("x", "x", (nifti_image(path),)), ("ct",), (), SPACING)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"x\.nii\.gz cannot be read"):
        prepare_case(RawCase("x", "x", (nifti_image(path),)), ("ct",), (), SPACING)


def test_an_affine_without_inverse_is_refused(ct: Ct, raw_case: MakeRaw) -> None:
    image, _ = ct()
    raw = raw_case(image)
    broken = nib.Nifti1Image.from_filename(raw.images[0].path)
    header = broken.header.copy()
    header["sform_code"], header["srow_x"] = 1, 0
    nib.save(nib.Nifti1Image(image, None, header), raw.images[0].path)
    with pytest.raises(UserError, match="affine without inverse"):
        prepare_case(raw, ("ct",), (), SPACING)


def test_channels_on_two_grids_are_refused(ct: Ct, raw_case: MakeRaw) -> None:
    first, second = raw_case(ct()[0], name="a"), raw_case(ct((16, 14, 13))[0], name="b")
    raw = RawCase("both", "both", (*first.images, *second.images))
    with pytest.raises(UserError, match=r"b_0000\.nii\.gz has shape"):
        prepare_case(raw, ("ct", "ct"), (), SPACING)


def test_grids_are_in_ras_order(raw_case: MakeRaw) -> None:
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])  # axes A, I, L
    grid = grid_of(raw_case(np.zeros((4, 5, 6), np.int16), affine=affine).images[0])
    assert grid.shape == (6, 4, 5)
    assert grid.spacing == (3.0, 1.0, 2.0)
    assert planned_spacing([grid, grid]) == ((3.0, 1.0, 2.0), None)


PLANNED: list[tuple[list[tuple[float, float, float]], list[tuple[int, int, int]], tuple[float, float, float]]] = [
    (
        [(0.8, 0.8, 5), (0.7, 0.7, 3), (0.9, 0.9, 5), (0.75, 0.75, 4)],
        [(512, 512, 60), (512, 512, 100), (512, 512, 55), (512, 512, 80)],
        (0.775, 0.775, 3.3),
    ),
    (  # thick slices, but many
        [(0.8, 0.8, 5), (0.7, 0.7, 3), (0.9, 0.9, 5)],
        [(512, 512, 300), (512, 512, 400), (512, 512, 255)],
        (0.8, 0.8, 5.0),
    ),
    (
        [(1.4, 1.4, 10), (1.5, 1.5, 1.2), (1.6, 1.6, 10)],
        [(220, 220, 10), (220, 240, 12), (200, 220, 9)],
        (1.5, 1.5, 2.96),
    ),
    ([(4.5, 4.5, 2.5), (4.0, 4.0, 3.0)], [(110, 65, 128), (100, 60, 120)], (4.25, 4.25, 2.75)),
    (
        [(6, 0.5, 0.6), (5, 0.55, 0.5), (7.5, 0.5, 0.5), (5.5, 0.4, 0.5), (3.3, 0.5, 0.5)],
        [(24, 400, 400), (30, 384, 400), (20, 512, 512), (26, 300, 320), (40, 320, 320)],
        (3.98, 0.5, 0.5),
    ),
]
"""Voxel sizes and shapes of scans, and what nnU-Net 2.8.1's `determine_fullres_target_spacing` plans for them."""


@pytest.mark.parametrize(("spacings", "shapes", "planned"), PLANNED)
def test_a_voxel_size_is_planned_as_nnunet_plans_it(
    spacings: list[tuple[float, float, float]],
    shapes: list[tuple[int, int, int]],
    planned: tuple[float, float, float],
) -> None:
    spacing, thick = planned_spacing([Grid(*pair) for pair in zip(shapes, spacings, strict=True)])
    assert spacing == pytest.approx(planned, abs=1e-3)
    assert (thick is None) == (planned == pytest.approx(np.median(spacings, axis=0).tolist()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spacing", (1.0, 0.0, 1.0)),
        ("spacing", (1.0, float("nan"), 1.0)),
        ("default_spacing", (1.0, -1.0, 1.0)),
        ("classes", ("liver", "spleen", "liver")),
        ("brick", 4),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PreprocessConfig(**{field: value})  # type: ignore[arg-type]


def test_what_has_a_unit_keeps_it_and_what_is_normalised_stays(tmp_path: Path) -> None:
    image = np.linspace(-3, 40, 1000).reshape(10, 10, 10).astype(np.float32)
    np.testing.assert_array_equal(to_stored_type(image, "quantitative"), image.astype(np.float16))
    np.testing.assert_array_equal(to_stored_type(image, "none"), image.astype(np.float16))
    image[0, 0, 0] = 1e6
    path = tmp_path / "pet.nii.gz"
    nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    raw = RawCase("pet", "pet", (nifti_image(path),))
    for scheme in ("quantitative", "none"):
        with pytest.raises(UserError, match=rf"pet\.nii\.gz has values beyond ±65504, which normalisation {scheme}"):
            prepare_case(raw, (scheme,), (), (1, 1, 1))
    prepare_case(raw, ("zscore",), (), (1, 1, 1))


@pytest.mark.parametrize(
    ("scheme", "value", "message"),
    [
        ("zscore", -1.797e308, "values up to 1.8e"),
        ("zscore", 3.3e38, "which no scanner measures"),
        ("zscore", 1e12, "which no scanner measures"),
        ("ct", 1e300, "which no scanner measures"),
        ("ct", 2e6, "values beyond ±1e"),
        ("quantitative", float(np.iinfo(np.int32).min), "which no scanner measures"),
    ],
)
def test_marks_for_missing_data_are_refused(scheme: str, value: float, message: str, tmp_path: Path) -> None:
    """One voxel of them would make all others of the scan NaN, or the same."""
    image = np.random.default_rng(0).normal(size=(8, 8, 8)) * 100
    image[2, 3, 4] = value
    path = tmp_path / "mr.nii.gz"
    kind = np.int32 if value == np.iinfo(np.int32).min else np.float64
    nib.save(nib.Nifti1Image(image.astype(kind), np.eye(4), dtype=kind), path)
    raw = RawCase("mr", "mr", (nifti_image(path),))
    with pytest.raises(UserError, match=message):
        prepare_case(raw, (scheme,), (), (1.5, 1.5, 1.5))  # type: ignore[arg-type]
    image[2, 3, 4] = 5e5
    nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    for kept in ("ct", "zscore"):
        (stored,) = prepare_case(raw, (kept,), (), (1.5, 1.5, 1.5)).images
        assert np.isfinite(stored).all() and len(np.unique(stored.astype(np.float32))) > 50


@pytest.mark.parametrize("cut", ["checksum", "end"])
def test_a_compressed_file_is_read_to_its_checksum(cut: str, ct: Ct, raw_case: MakeRaw) -> None:
    raw = raw_case(ct((40, 40, 40))[0])
    path = raw.images[0].path
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content if cut == "checksum" else content[:-4])
    with pytest.raises(UserError, match=r"_0000\.nii\.gz is damaged or cut off"):
        prepare_case(raw, ("ct",), (), SPACING)
