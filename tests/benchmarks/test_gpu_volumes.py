"""Scans on a device give the crops, masks and scores that the project's own readers and metrics give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_pack import LEVELS, encode, pack, read_packed
from gpu_training import dice, logits
from gpu_volumes import PretrainingPlan, Volumes, augmented, finetuning_batch, shuffled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anatomask.data.body import body_bounds, body_shares
from anatomask.data.crops import flip
from anatomask.data.samples import centred_origin, random_origin, stored_crop
from anatomask.data.scans import PreparedScan, prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.metrics import dice_scores
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.settings import InferenceConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig

CPU = torch.device("cpu")
REUSED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def volumes(head: PreparedDataset, tmp_path: Path) -> Volumes:
    pack(head, head.records, tmp_path / "head.gpu")
    return Volumes.on(CPU, read_packed(tmp_path / "head.gpu"))


def test_hu_are_kept_within_a_unit_in_soft_tissue_and_air_stays_air() -> None:
    voxels = np.arange(-1024, 3072)
    kept = LEVELS[encode(voxels)].astype(int)
    assert len(LEVELS) <= 256
    soft = (voxels >= -200) & (voxels <= 250)
    assert np.abs(kept - voxels)[soft].max() == 1
    assert np.abs(kept - voxels).max() <= 32
    assert np.array_equal(kept > -500, voxels > -500)
    assert np.array_equal(encode(kept), encode(voxels))


def test_what_was_packed_is_read_back(head: PreparedDataset, tmp_path: Path) -> None:
    found = pack(head, head.records, tmp_path / "head.gpu")
    packed = read_packed(tmp_path / "head.gpu")
    image, label = head.read_volume("one", label=True)
    assert label is not None
    assert np.array_equal(packed.codes["one"], encode(image[0])) and np.array_equal(packed.labels["one"], label)
    assert found["soft_largest_error_hu"] == 1 and found["mb"] == (tmp_path / "head.gpu").stat().st_size / 1e6
    assert packed.header["normalisation"] == head.normalisation("one")[0].tolist()


def test_a_file_of_something_else_or_half_of_one_is_refused(head: PreparedDataset, tmp_path: Path) -> None:
    path = tmp_path / "head.gpu"
    with pytest.raises(UserError, match="does not exist"):
        read_packed(path)
    pack(head, head.records, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="complete"):
        read_packed(path)


@REUSED
@given(origin=st.tuples(*[st.integers(-40, 120)] * 3), edge=st.sampled_from([16, 32, 64]))
def test_crops_are_those_of_the_shards(
    head: PreparedDataset, volumes: Volumes, origin: tuple[int, int, int], edge: int
) -> None:
    stored = stored_crop(head, "one", origin, (edge, edge, edge), label=True)
    crop = volumes.crops(torch.tensor([0, 0]), torch.tensor([origin, (0, 0, 0)]), edge, label=True)
    assert np.array_equal(crop["inside"][0], stored["inside"])
    inside = tuple(slice(first, max(first, stop)) for first, stop in stored["inside"].tolist())
    there = LEVELS[encode(stored["image"][0][inside])]
    assert np.array_equal(crop["image"][0, 0][inside], there)
    assert np.array_equal(crop["label"][0], stored["label"])
    assert np.array_equal(crop["minimum"][0], stored["minimum"])
    assert np.array_equal(crop["normalisation"][0], stored["normalisation"])
    for patch, share in ((8, 0.25), (16, 0.5)):
        _, lowest, highest = body_bounds(head, "one", "body")
        shares = body_shares(stored["image"][0], stored["inside"], lowest, highest, patch)
        assert np.array_equal(volumes.body_patches(crop, patch, share)[0], shares >= share)


@pytest.mark.parametrize("edge", [32, 64])
def test_origins_are_drawn_where_the_project_draws_them(volumes: Volumes, edge: int) -> None:
    shape, rng = volumes.shapes[0].tolist(), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    scans = torch.zeros(3000, dtype=torch.long)
    drawn = volumes.random_origins(scans, edge, generator).numpy()
    others = np.array([random_origin(shape, (edge, edge, edge), rng) for _ in range(3000)])
    assert np.array_equal(drawn.min(0), others.min(0)) and np.array_equal(drawn.max(0), others.max(0))
    centred = volumes.centred_origins(scans, edge, generator)
    label = volumes.labels.view(shape).numpy()
    allowed = {centred_origin(voxel, shape, (edge, edge, edge)) for voxel in np.argwhere(label > 0).tolist()}
    assert set(map(tuple, centred.tolist())) <= allowed


def test_every_class_is_as_likely_to_be_the_centre(volumes: Volumes) -> None:
    """Crops of one voxel show which voxel was drawn."""
    scans = torch.zeros(5000, dtype=torch.long)
    origins = volumes.centred_origins(scans, 1, torch.Generator().manual_seed(0))
    crop = volumes.crops(scans, origins, 1, label=True)
    counts = torch.bincount(crop["label"].flatten().long(), minlength=6)
    assert counts[0] == 0 and counts[1:].min() > 850


def test_a_plan_knows_the_body_of_its_mirrored_crops(volumes: Volumes) -> None:
    plan = PretrainingPlan.draw(volumes, ["one"], 4, 3, 32, 8, 0.25, 5)
    assert plan.among.sum(2).min() == plan.fewest > 0
    generator = torch.Generator().manual_seed(0)
    for update in range(4):
        sample = plan.batch(update, generator)
        crop = volumes.crops(plan.scans[update], plan.origins[update], 32, label=False)
        mirrored = {**crop, "image": flip(crop["image"], sample["flip"])}
        edges = torch.where(sample["flip"][:, :, None], 32 - crop["inside"].flip(2), crop["inside"])
        assert torch.equal(sample["among"], volumes.body_patches({**mirrored, "inside": edges}, 8, 0.25))
        assert sample["noise"].shape == (3, 2, 64)
    longer = PretrainingPlan.draw(volumes, ["one"], 4, 3, 32, 8, 0.25, 5)
    assert torch.equal(longer.origins, plan.origins)


def test_a_scan_without_body_is_named(volumes: Volumes) -> None:
    volumes.codes.fill_(0)
    with pytest.raises(UserError, match="one hold no body"):
        PretrainingPlan.draw(volumes, ["one"], 1, 1, 32, 8, 0.25, 0)


def test_every_scan_comes_once_in_a_round() -> None:
    order = shuffled(torch.arange(5), 13, torch.Generator().manual_seed(0))
    assert sorted(order[:5].tolist()) == sorted(order[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert len(order) == 13 and not torch.equal(order[:5], order[5:10])


def test_image_and_label_move_together_or_not_at_all() -> None:
    """The image holds the label's values, without noise where it was not drawn."""
    generator = torch.Generator().manual_seed(3)
    label = torch.zeros(40, 1, 16, 16, 16, dtype=torch.uint8)
    label[:, :, 3:9, 5:14, 2:8] = 1
    image, moved = augmented(label.float(), label, generator)
    still = torch.tensor([torch.equal(a, b) for a, b in zip(moved, label, strict=True)])
    assert 20 < still.sum() < 40
    close = [(i - m.float()).abs().mean() for i, m in zip(image, moved, strict=True)]
    assert max(close) < 0.15
    assert 10 < sum(torch.equal(i, m.float()) for i, m in zip(image[still], moved[still], strict=True)) < still.sum()


def test_finetuning_mirrors_along_the_allowed_axes_alone(volumes: Volumes) -> None:
    def batch(axes: tuple[int, ...]) -> Tensor:
        scans = torch.zeros(12, dtype=torch.long)
        return finetuning_batch(volumes, scans, 32, 1.0, axes, torch.Generator().manual_seed(1))[1]

    plain, other = batch(()), batch((1,))
    mirrored = [not torch.equal(a, b) for a, b in zip(plain, other, strict=True)]
    assert any(mirrored) and not all(mirrored)
    for a, b in zip(plain, other, strict=True):
        assert torch.equal(b, a) or torch.equal(b, a.flip(2))


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_whole_scans_are_predicted_as_by_the_project(head: PreparedDataset, volumes: Volumes, overlap: float) -> None:
    torch.manual_seed(0)
    network = STUNet(STUNetConfig(base=2), 5)
    mine = logits(network, volumes, 0, 64, overlap, "fp32")
    scan = with_packed_levels(prepared_scan(head, "one"))
    theirs = Predictor(network, (64, 64, 64), 5, inference=InferenceConfig(overlap=overlap)).logits(scan.volume)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    _, label = head.read_volume("one", label=True)
    assert label is not None
    predicted = mine.argmax(0)
    scores = dice_scores(predicted.numpy().astype(np.uint8), label, range(1, 6))
    assert dice(predicted, torch.from_numpy(label), 5) == pytest.approx(scores, rel=1e-6)


def with_packed_levels(scan: PreparedScan) -> PreparedScan:
    """The scan with the HU that packing keeps; its minimum, which pads it, is not quantised."""
    lowest = scan.stored == scan.stored.min()
    return replace(scan, stored=np.where(lowest, scan.stored, LEVELS[encode(scan.stored)]))
