"""What `anatomask` exports to Python, and the page and notebook about it, on a real scan with tiny networks."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import anatomask
from anatomask import api
from anatomask.data.datasets.base import RawCase, nifti_image, nifti_label
from anatomask.data.fingerprint import Fingerprint, case_histograms
from anatomask.data.index import write_index
from anatomask.data.preprocess import prepare_case
from anatomask.data.records import DatasetInfo
from anatomask.data.scans import PreparedScan
from anatomask.data.shards import PreparedDataset, write_case
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.case import Evaluation, evaluate_case
from anatomask.evaluation.metrics import score_classes
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.settings import InferenceConfig
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.methods.base import MethodConfig
from anatomask.methods.byol import BYOLConfig
from anatomask.nested import plain
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.weights.files import describe_architecture, read_weights, write_weights

REPOSITORY = Path(__file__).parent.parent
PAGE, NOTEBOOK = REPOSITORY / "docs" / "python.md", REPOSITORY / "docs" / "python.ipynb"
NETWORK = STUNetConfig(base=2)
SPACING = (6.0, 6.0, 6.0)
PATCH = [32, 32, 32]
CLASSES = {1: "one", 2: "two"}

World = SimpleNamespace


def pretraining_header(dataset: PreparedDataset, method: MethodConfig) -> dict[str, Any]:
    """What a pretraining writes."""
    return {
        "kind": "pretraining",
        "architecture": describe_architecture(NETWORK),
        "method": {**plain(method), "label": method.label()},
        "encoder": method.encoder,
        "stages": method.stages(NETWORK),
        "patch_size": PATCH,
        "spacing": list(SPACING),
        "fingerprint": dataset.fingerprint.to_dict(),
        "dataset": "data",
    }


@pytest.fixture(scope="module")
def world(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A real scan with its label map, the same prepared on disk, and untrained networks in the folders of the page."""
    root = tmp_path_factory.mktemp("python")
    files = [root / "scan.nii.gz", root / "label.nii.gz"]
    for source, path in zip(("imagesTr/kbp_001_0000.nii.gz", "labelsTr/kbp_001.nii.gz"), files, strict=True):
        shutil.copy(real_data / "openkbp" / source, path)
    label = nib.Nifti1Image.from_filename(files[1])
    nib.save(nib.Nifti1Image(np.clip(label.dataobj, 0, 2).astype(np.uint8), label.affine), files[1])

    raw = RawCase("one", "one", (nifti_image(files[0]),), nifti_label(files[1]))
    case = prepare_case(raw, ["ct"], list(CLASSES), SPACING)
    record = write_case(str(root / "data"), case, 32, "none")
    tolerance = dict.fromkeys(CLASSES, 3.0)
    info = DatasetInfo("data", "folder", ("CT",), ("ct",), CLASSES, tolerance, SPACING, 32, "none")
    fingerprint = Fingerprint.from_histograms(("CT",), ("ct",), case_histograms(np.stack(case.images), None, ("ct",)))
    write_index(str(root / "data"), info, [record], {"test": ["one"]}, fingerprint)
    dataset = PreparedDataset.open(str(root / "data"))

    torch.manual_seed(0)
    method = AnatoMaskConfig(decoder_width=16, sparse_backend="dense")
    for name, config in (("pretrained", method), ("byol", BYOLConfig())):
        header = pretraining_header(dataset, config)
        write_weights(root / "runs" / name, config.build(NETWORK).state_dict(), header)
    header = pretraining_header(dataset, method) | {
        "kind": "segmentation",
        "architecture": describe_architecture(NETWORK, len(CLASSES)),
        "mirror_axes": [0],
        "class_names": {str(number): name for number, name in CLASSES.items()},
        "initialisation": {"method": "scratch", "run": None},
    }
    write_weights(root / "runs" / "finetuned", STUNet(NETWORK, len(CLASSES)).state_dict(), header)
    return World(root=root, scan=files[0], label=files[1], dataset=dataset, runs=root / "runs")


@pytest.fixture(scope="module")
def prepared_head(world: World) -> PreparedScan:
    return anatomask.prepare_scan(anatomask.read_scan(world.scan), world.runs / "pretrained")


def test_a_prediction_is_that_of_an_evaluation(world: World, tmp_path: Path) -> None:
    """The one reads the raw scan, the other the shards, as each Ray task of `anatomask evaluate` does."""
    made = anatomask.predict(world.runs / "finetuned", anatomask.read_scan(world.scan), device="cpu")
    weights = read_weights(world.runs / "finetuned")
    result = evaluate_case(Predictor.of(weights), world.dataset, "one", "run")
    source = nib.Nifti1Image.from_filename(world.scan)
    assert made.shape == source.shape
    np.testing.assert_array_equal(made.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(result.prediction.dataobj))
    assert len(np.unique(made.dataobj)) > 1

    Evaluation("run", Storage(tmp_path), world.dataset, InferenceConfig()).finish(weights, "one", torch.device("cpu"))
    written = nib.Nifti1Image.from_filename(tmp_path / "predictions" / "one.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(made.dataobj))


def test_an_encoder_is_that_of_its_weights(world: World, prepared_head: PreparedScan) -> None:
    encoder = anatomask.load_encoder(world.runs / "pretrained")
    stored = read_weights(world.runs / "pretrained").tensors
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, stored[f"student.encoder.{name}"])
    assert len(encoder.strides) == 5 and not encoder.training
    whole = anatomask.load_network(world.runs / "finetuned").encoder
    found = anatomask.load_encoder(world.runs / "finetuned").state_dict()
    assert found.keys() == whole.state_dict().keys() and len(whole.strides) == 6

    volume = prepared_head.volume
    maps = anatomask.features(encoder, volume)
    padded = torch.nn.functional.pad(volume, [n for side in reversed(volume.shape[1:]) for n in (0, -side % 16)])
    lowest = float(volume.min())
    a, b, c = volume.shape[1:]
    padded[:, a:], padded[:, :, b:], padded[:, :, :, c:] = lowest, lowest, lowest
    with torch.no_grad():
        expected = encoder(padded[None])
    for made, wanted in zip(maps, expected, strict=True):
        assert torch.equal(made, wanted[0]) and not made.requires_grad
    assert anatomask.features(encoder, volume[:, :5, :5, :5])[-1].shape[1:] == (2, 2, 2)


def test_a_self_mask_is_what_the_teacher_finds_hard(world: World, prepared_head: PreparedScan) -> None:
    seen = anatomask.self_mask(world.runs / "pretrained", prepared_head, masks=3, seed=5)
    again = anatomask.self_mask(world.runs / "pretrained", prepared_head, masks=3, seed=5)
    assert torch.equal(seen.self_mask, again.self_mask)
    grid = [-(-edge // 16) for edge in prepared_head.volume.shape[1:]]
    assert list(seen.self_mask.shape) == list(seen.patch_loss.shape) == grid and seen.patch == 16

    weights = read_weights(world.runs / "pretrained")
    method = AnatoMask(AnatoMaskConfig(decoder_width=16, sparse_backend="dense"), NETWORK)
    method.load_state_dict(weights.tensors)
    assert method.teacher is not None
    patches = int(np.prod(grid))
    noise = torch.from_numpy(np.random.default_rng([5]).random((3, 2, patches), dtype=np.float32))
    kept = round((1 - method.config.mask_ratio) * patches)
    total, times = torch.zeros(patches), torch.zeros(patches)
    for one in noise[:, 0]:
        hidden = torch.zeros(patches, dtype=torch.bool)
        hidden[one.argsort(descending=True)[: patches - kept]] = True
        with torch.no_grad():
            loss = method.teacher(seen.volume[None], ~hidden.view(1, *grid)).patch_loss[0]
        total, times = total + loss, times + hidden
    torch.testing.assert_close(seen.patch_loss.flatten(), total / times, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert int(seen.self_mask.sum()) == patches - kept
    hard = int(max(method.config.r0, method.config.rT) * (patches - kept))
    hardest = (total / times).nan_to_num(-1).topk(hard).indices
    assert seen.self_mask.flatten()[hardest].all()


def test_masks_among_the_body_hide_body(world: World, prepared_head: PreparedScan) -> None:
    config = AnatoMaskConfig(decoder_width=16, patch=8, among="body", body_share=0.5, sparse_backend="dense")
    torch.manual_seed(1)
    folder = world.root / "among"
    write_weights(folder, config.build(NETWORK).state_dict(), pretraining_header(world.dataset, config))
    seen = anatomask.self_mask(folder, prepared_head)
    stored = prepared_head.stored[0]
    body = np.pad(stored > -500, [(0, -side % 8) for side in stored.shape])
    a, b, c = (side // 8 for side in body.shape)
    shares = body.reshape(a, 8, b, 8, c, 8).mean((1, 3, 5))
    assert seen.self_mask.any() and (shares[seen.self_mask.numpy()] >= 0.5).all()
    air = replace(prepared_head, stored=np.full_like(prepared_head.stored, -1000))
    with pytest.raises(UserError, match=r"no patch of it is body"):
        anatomask.self_mask(folder, air)


def test_scores_are_those_of_the_evaluation(world: World) -> None:
    label = np.asarray(nib.Nifti1Image.from_filename(world.label).dataobj)
    shifted = np.roll(label, 1, axis=0)
    spacing = anatomask.read_scan(world.scan).spacing
    assert anatomask.score_case(shifted, label, spacing, [1, 2], 2.0) == score_classes(
        shifted, label, spacing, {1: 2.0, 2: 2.0}
    )
    assert anatomask.score_case(label, label, spacing, [2])[2].nsd == 1
    for labels, tolerance, words in (([], 3.0, "labels"), ([0, 1], 3.0, "labels"), ([1, 2], {1: 3.0}, "label 2")):
        with pytest.raises(ValueError, match=words):
            anatomask.score_case(label, label, spacing, labels, tolerance)
    with pytest.raises(ValueError, match="prediction must hold whole numbers"):
        anatomask.score_case(label / 2, label, spacing, [1])
    with pytest.raises(ValueError, match="different grids"):
        anatomask.score_case(label[1:], label, spacing, [1])
    for edges in ((2.0, 0.0, 2.0), (2.0, 2.0), (2.0, float("nan"), 2.0)):
        with pytest.raises(ValueError, match="spacing_mm must be three lengths above 0"):
            anatomask.score_case(label, label, edges, [1])
    for options in ({"metrics": ["hd95_mm"]}, {"absent": "flair"}, {"tolerance_mm": math.nan}, {"tolerance_mm": -1.0}):
        with pytest.raises(ValueError, match=rf"^{next(iter(options))} must be "):
            anatomask.score_case(label, label, spacing, [1], **options)


def test_absent_labels_score_by_the_rule() -> None:
    reference, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    reference[1:3], prediction[1:4], prediction[5] = 1, 1, 2
    for rule, expected in (("totalsegmentator", (math.nan,) * 2), ("nnunet", (0.0, math.nan)), ("flare", (0.0, 1.0))):
        found = partial(anatomask.score_case, prediction, reference, (1, 1, 1), [1, 2, 3], metrics=("nsd", "nsd_2mm"))
        scores = found(absent=rule)  # type: ignore[arg-type]
        assert (scores[2].dsc, scores[3].dsc) == pytest.approx(expected, nan_ok=True)
        for name in ("nsd", "nsd_2mm"):
            assert [getattr(scores[label], name) for label in (2, 3)] == pytest.approx(expected, nan_ok=True)
        assert math.isnan(scores[3].nsd_1mm)
        assert scores[1].dsc == pytest.approx(0.8)


def test_what_weights_cannot_do_is_said(world: World, prepared_head: PreparedScan, tmp_path: Path) -> None:
    scan = anatomask.read_scan(world.scan)
    with pytest.raises(UserError, match=r"holds pretraining weights, not a segmentation network; run `anatomask fine"):
        anatomask.load_network(world.runs / "pretrained")
    with pytest.raises(UserError, match=r"holds pretraining weights"):
        anatomask.predict(world.runs / "pretrained", scan)
    with pytest.raises(UserError, match=r"byol: BYOL has no self-mask; give a run of AnatoMask or SparK"):
        anatomask.self_mask(world.runs / "byol", prepared_head)
    with pytest.raises(UserError, match=r"finetuned holds no pretraining"):
        anatomask.self_mask(world.runs / "finetuned", prepared_head)
    with pytest.raises(UserError, match=r"lacks fingerprint"):
        anatomask.prepare_scan(scan, {"spacing": [2.0, 2.0, 2.0]})
    with pytest.raises(UserError, match=r"nothing\.nii\.gz"):
        anatomask.read_scan(tmp_path / "nothing.nii.gz")
    with pytest.raises(UserError, match=r"is a file, not a run"):
        anatomask.load_encoder(world.scan)


def test_a_file_of_weights_is_a_source(world: World) -> None:
    file = world.runs / "pretrained" / "model.safetensors"
    here, there = (anatomask.load_encoder(source).state_dict() for source in (file, file.parent))
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_what_is_exported_is_documented_and_named_once() -> None:
    functions = set(anatomask.__all__) - {"__version__"}
    table = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert table == functions and functions <= set(dir(anatomask))
    for name in functions:
        documented = getattr(api, name).__doc__
        assert all(f"{section}:" in documented for section in ("Args", "Returns")), name
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = anatomask.train


def code_of_page() -> list[str]:
    return [block.strip("\n") for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.M)]


def test_the_notebook_is_the_page() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert ["".join(cell["source"]) for cell in code] == code_of_page()
    assert all(not cell["outputs"] for cell in code)
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    prose = re.sub(r"^```python\n.*?^```$", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert text.split() == prose.split()


def test_the_page_runs_without_ray(world: World) -> None:
    """In a process of its own, which has nothing imported; `import anatomask` alone does not load torch."""
    check = ["import sys", "import anatomask", "assert 'torch' not in sys.modules"]
    end = ["assert 'torch' in sys.modules", "assert not [name for name in sys.modules if name.split('.')[0] == 'ray']"]
    program = "\n".join([*check, *code_of_page(), *end])
    settings = {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=world.root, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "stride 16:" in done.stdout and "label 2: DSC" in done.stdout
    assert (world.root / "self-mask.png").stat().st_size > 1000
    prediction, scan = map(nib.Nifti1Image.from_filename, (world.root / "prediction.nii.gz", world.scan))
    assert prediction.shape == scan.shape
