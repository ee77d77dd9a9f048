"""Bad folders of raw scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.bad_input.kinds import FRESH, GO_ON, PREPARE, SURVEY, Kind, Spoil
from tests.bad_input.spoiling import (
    DEEP,
    cut,
    directory,
    duplicate,
    every,
    flip,
    header,
    link,
    move,
    of_json,
    pipe,
    remove,
    text,
    volume,
)

DESCRIPTION, SPLITS = "scans/dataset.json", "scans/splits_final.json"
IMAGE, LABEL = "scans/imagesTr/anna_0000.nii.gz", "scans/labelsTr/anna.nii.gz"
FILE, LABEL_FILE = r"imagesTr/anna_0000\.nii\.gz", r"labelsTr/anna\.nii\.gz"
MORE = "scans/imagesUnlabeled"


FOLDER = f"{FRESH} --dataset folder"
ONE = '[{"train": ["anna"], "val": ["bert"]}]'
PARTIAL = '[{"train": ["anna"], "val": ["bert", "cora"]}, {"train": ["bert"], "val": ["anna"]}]'


def set_entry(name: str, value: object) -> Spoil:
    """Set an entry of `dataset.json`."""
    return of_json(DESCRIPTION, lambda content: content | {name: value})


def split(content: str) -> Spoil:
    """Write `splits_final.json`."""
    return text(SPLITS, content)


def bad_scan(name: str, spoil: Spoil, says: str, **more: bool) -> Kind:
    """Return the kind of a scan that is skipped, while the others go through."""
    return Kind(name, FRESH, says, spoil, skips=True, **more)


def one_more(case: str) -> Spoil:
    """Add a scan without label, of this name."""
    return duplicate(IMAGE, f"{MORE}/{case}_0000.nii.gz")


def nan_corner(voxels: np.ndarray) -> np.ndarray:
    """Return them as floats with two that are NaN."""
    changed = voxels.astype(np.float32)
    changed[0, 0, :2] = np.nan
    return changed


def huge_grid(folder: Path) -> None:
    """Let a header ask for 1e13 voxels."""
    header(IMAGE, dim=[3, 32767, 32767, 10000, 1, 1, 1, 1])(folder)


def shifted(affine: np.ndarray) -> np.ndarray:
    """Return an affine 50 mm away."""
    affine[0, 3] += 50
    return affine


def unreadable(folder: Path) -> None:
    """Let no scan be one."""
    for path in folder.glob("scans/images*/*.nii.gz"):
        path.write_text("x")


def enlarged(affine: np.ndarray) -> np.ndarray:
    """Return an affine whose voxels are half a million times as large."""
    return affine @ np.diag([5e5, 5e5, 5e5, 1])


KINDS = [
    # The folder
    Kind(
        "a source that is not there", "prepare --source nowhere --out out", "nowhere: there is no such file or folder"
    ),
    Kind(
        "a source that is a file",
        "prepare --source scans/dataset.json --out out",
        "dataset.json is not a folder",
    ),
    Kind("an empty source", "prepare --source new --out out", "new holds no scans", directory("new")),
    Kind("an empty folder to survey", "survey new", "new holds no scans", directory("new")),
    Kind("shards inside the source", f"{PREPARE} scans/out", "lies inside the source scans; choose a folder beside it"),
    Kind("shards in the source itself", f"{PREPARE} scans", "lies inside the source"),
    Kind("shards around the source", f"{PREPARE} .", r"lies inside --out \.; choose a folder beside it"),
    Kind("a layout that is unknown", f"{FRESH} --dataset brats", "--dataset brats is unknown; it may be auto"),
    Kind("a layout that it has not", f"{FRESH} --dataset dicom", "does not have the layout dicom; it looks like nnun"),
    Kind("a target of another layout", f"{FRESH} --target amos22", "not have the layout amos22; it looks like nnunet"),
    Kind("an option of another layout", f"{FRESH} --reader.modality ct", "--reader.modality does not apply to nnunet"),
    Kind("a pattern of scans that none has", f"{FOLDER} --reader.image *_mr.nii", "matches none of the NIfTI.*correct"),
    Kind("a pattern of labels alone", f"{FOLDER} --reader.label *.nii.gz", "needs --reader.image: give the pattern"),
    Kind(
        "patterns that do not fit together",
        f"{FOLDER} --reader.image imagesTr/*_0000.nii.gz --reader.label labelsTr/a*.nii.gz",
        "must be the same in both, but it is like 'anna' in scans and like 'nna' in labels",
    ),
    Kind("a patient that is no expression", f"{FOLDER} --reader.patient (", "is no regular expression.*correct it"),
    Kind("a patient that no path has", f"{FOLDER} --reader.patient P[0-9]", "finds no patient in .*; correct it"),
    Kind("names of labels that are missing", f"{FOLDER} --reader.label-names x", "x is no file; give a JSON file"),
    Kind(
        "names of labels that are a list",
        f"{FOLDER} --reader.label-names names.json",
        "names.json: labels must map names to ids",
        text("names.json", '["liver"]'),
    ),
    Kind("a list of cases that is missing", f"{FRESH} --reader.cases no.txt", "--reader.cases no.txt.*text"),
    Kind("a list of cases that is a pipe", f"{FRESH} --reader.cases c", "--reader.cases c", pipe("c")),
    Kind("a list of cases that is empty", f"{FRESH} --reader.cases c", "names no case; write one", text("c", "\n")),
    Kind("a list of unknown cases", f"{FRESH} --reader.cases c", "'gina'; the cases are like", text("c", "gina\n")),
    Kind(
        "a list that is no text",
        f"{FRESH} --reader.cases c",
        "cannot be read as text",
        text("c", b"\xff\xfe"),
    ),
    Kind("a class that is not there", f"{FRESH} --preprocess.classes heart", "heart: no such class; there are liver"),
    Kind("two schemes for one channel", f"{FRESH} --preprocess.normalisation ct ct", "names 2 schemes.*name one per"),
    Kind("two scans of one name", FRESH, "anna", duplicate(IMAGE, f"{MORE}/anna_0000.nii.gz")),
    # dataset.json
    Kind("a description that is no JSON", FRESH, "dataset.json is not valid JSON", text(DESCRIPTION, "{")),
    Kind("a description that is a list", FRESH, "dataset.json must hold a JSON object", text(DESCRIPTION, "[]")),
    Kind("a description of many levels", FRESH, "dataset.json", text(DESCRIPTION, DEEP)),
    Kind("a description in Latin 1", FRESH, "dataset.json", text(DESCRIPTION, b'{"caf\xe9": 1}')),
    Kind(
        "no labels in the description",
        FRESH,
        "dataset.json lacks 'labels'",
        of_json(DESCRIPTION, lambda c: c.pop("labels") and None),
    ),
    Kind("channels that are a list", FRESH, "channel_names must map", set_entry("channel_names", ["CT"])),
    Kind("channels that begin with 1", FRESH, "channel_names must map", set_entry("channel_names", {"1": "CT"})),
    Kind("no channel", FRESH, "channel_names is empty; name one", set_entry("channel_names", {})),
    Kind("labels that are a list", FRESH, "labels must map names to ids", set_entry("labels", ["liver"])),
    Kind("a label that is a region", FRESH, "'whole'.*not supported; merge it", set_entry("labels", {"whole": [1, 2]})),
    Kind("a label's id of 300", FRESH, "id 300; ids must be different", set_entry("labels", {"liver": 300})),
    Kind("two labels of one id", FRESH, "ids must be different", set_entry("labels", {"liver": 1, "spleen": 1})),
    Kind("a label's id that is a word", FRESH, "labels must map names to ids", set_entry("labels", {"liver": "one"})),
    Kind("scans in another format", FRESH, "file_ending .mha is not read; convert", set_entry("file_ending", ".mha")),
    # splits_final.json
    Kind("a split that is no JSON", FRESH, "splits_final.json is not valid JSON", split("[{")),
    Kind("a split without folds", FRESH, "splits_final.json must hold a list of folds.*remove it", split("[]")),
    Kind(
        "a fold that is not there",
        f"{FRESH} --split.fold 1",
        "has 1 folds; --split.fold 1 must be below",
        split('[{"train": ["anna"], "val": ["bert"]}]'),
    ),
    Kind("shares beside folds", f"{FRESH} --split.fractions 0.5 0 0.5", "fractions has no.*leave it out", split(ONE)),
    Kind("a seed beside folds", f"{FRESH} --split.seed 1", "seed has no meaning here.*leave it out", split(ONE)),
    Kind("drawn folds beside folds", f"{FRESH} --split.folds 2", "folds has no meaning.*--split.fold all", split(ONE)),
    Kind("all folds of which one is partial", f"{FRESH} --split.fold all", "fold 1.*--split.fold 1", split(PARTIAL)),
    Kind("a fold without folds", f"{FRESH} --split.fold 0", "fold has no meaning here: no splits_final.*--split.file"),
    Kind("val cases without folds", f"{FRESH} --split.val-as val", "val-as has no meaning here: no splits_final"),
    Kind("more folds than patients", f"{FRESH} --split.folds 9", "only 5 patients with labels; choose fewer folds"),
    Kind("a split of unknown cases", FRESH, "names case gina", split('[{"train": ["gina"], "val": []}]')),
    Kind(
        "a case in train and test",
        FRESH,
        "case anna is in train and in val",
        split('[{"train": ["anna"], "val": ["anna"]}]'),
    ),
    Kind(
        "the layout of the Decathlon",
        FRESH,
        "of the Medical Segmentation Decathlon .*; set --dataset folder",
        of_json(DESCRIPTION, lambda c: c.update(modality=c.pop("channel_names"))),
    ),
    Kind("a case twice in a split", FRESH, "anna", split('[{"train": ["anna", "anna"], "val": ["bert"]}]')),
    Kind("a split that is a word", FRESH, "'train' must be a list", split('[{"train": "anna", "val": []}]')),
    Kind("a fold without its test cases", FRESH, "splits_final.json lacks 'val'", split('[{"train": []}]')),
    # Another command's folder
    Kind("shards of other settings", f"{GO_ON} --preprocess.brick 16", "brick is 32 there, 16 here.*--overwrite"),
    Kind(
        "shards of scans that changed",
        GO_ON,
        "scans of the source.*changed since.*another --out",
        every(duplicate(IMAGE, "scans/imagesTr/gina_0000.nii.gz"), duplicate(LABEL, "scans/labelsTr/gina.nii.gz")),
    ),
    Kind(
        "a folder that no prepare wrote",
        FRESH,
        "dataset.json is there, but no preparation wrote it; choose",
        text("out/dataset.json", "{}"),
    ),
    Kind(
        "settings of shards that are damaged",
        GO_ON,
        "prepare.json is damaged.*choose another --out",
        text("data/prepare.json", "{"),
    ),
    Kind(
        "settings of shards that are a number",
        GO_ON,
        "prepare.json is damaged.*choose another --out",
        text("data/prepare.json", "5"),
    ),
    # Scans
    bad_scan("a scan that is cut off", cut(IMAGE, 2000), rf"{FILE} is damaged or cut off.*get it again"),
    bad_scan("a scan with a flipped byte", flip(IMAGE), rf"{FILE} is damaged"),
    bad_scan("an empty scan", text(IMAGE, ""), FILE),
    bad_scan("a scan that is text", text(IMAGE, "hello"), rf"{FILE} cannot be read.*get it again or leave it out"),
    bad_scan("a scan of two dimensions", volume(IMAGE, lambda v: v[:, :, 0]), rf"{FILE} has shape.*one 3-D volume"),
    bad_scan("a scan of four dimensions", volume(IMAGE, lambda v: np.stack([v, v], -1)), rf"{FILE} has shape"),
    bad_scan("a scan of complex numbers", volume(IMAGE, lambda v: v.astype(np.complex64)), rf"{FILE} holds complex64"),
    bad_scan("a scan of colours", volume(IMAGE, lambda v: np.zeros(v.shape, [(c, "u1") for c in "RGB"])), FILE),
    bad_scan("a scan with NaN", volume(IMAGE, nan_corner), rf"{FILE} has 2 voxels that are NaN.*repair it or leave"),
    bad_scan(
        "a scan with a mark for missing data", volume(IMAGE, lambda v: v + np.float64(1e30)), rf"{FILE} has values"
    ),
    bad_scan("a scan beyond HU", volume(IMAGE, lambda v: v.astype(np.int32) * 10_000), rf"{FILE} has values beyond"),
    bad_scan("a scan without extent", header(IMAGE, srow_x=0, sform_code=1), rf"{FILE} has an affine"),
    bad_scan(
        "a scan to prepare with voxels of 0 mm",
        header(IMAGE, qform_code=0, sform_code=0, pixdim=[1, 0, 2, 2, 0, 0, 0, 0]),
        rf"{FILE} has no spacing",
    ),
    bad_scan(
        "a scan to prepare without spacing",
        header(IMAGE, qform_code=0, sform_code=0, pixdim=[1] * 8),
        rf"{FILE} has no spacing .*write the voxel size",
    ),
    bad_scan("a scan placed by NaN", header(IMAGE, srow_x=np.nan, sform_code=1), "anna_0000"),
    bad_scan("a slope of NaN", header(IMAGE, scl_slope=np.nan, scl_inter=np.inf), "anna_0000"),
    bad_scan("an infinite slope", header(IMAGE, scl_slope=np.inf), "anna_0000"),
    bad_scan("a header that asks for 10**13 voxels", huge_grid, rf"{FILE} is damaged or cut off \(its header promises"),
    bad_scan(
        "voxels of 10**6 mm",
        every(volume(IMAGE, affine=enlarged), volume(LABEL, affine=enlarged)),
        rf"{FILE} has 20 × .* voxels of 1e.06 .*that takes .*iB of memory.*correct the voxel size in its header",
    ),
    bad_scan("a scan that is missing", remove(IMAGE), rf"{FILE} is missing"),
    bad_scan("a scan that is a folder", directory(IMAGE), FILE),
    bad_scan("a scan that is a pipe", pipe(IMAGE), FILE),
    bad_scan("a scan that is a dangling link", link(IMAGE, "nowhere"), FILE),
    bad_scan("a scan that links to itself", link(IMAGE, "anna_0000.nii.gz"), FILE),
    bad_scan("a constant scan", volume(IMAGE, lambda v: v * 0 + 7), FILE),
    bad_scan("a scan whose name is not UTF-8", one_more(b"caf\xe9".decode(errors="surrogateescape")), "caf"),
    bad_scan("a scan whose name is too long", one_more("x" * 238), "x{20}"),
    # Labels
    bad_scan(
        "a label that is cut off",
        cut(LABEL, 100),
        rf"{LABEL_FILE} (cannot be read|is damaged or cut off).*get it again",
    ),
    bad_scan("a label of another shape", volume(LABEL, lambda v: v[1:]), rf"{LABEL_FILE} has shape"),
    bad_scan("a label in another place", volume(LABEL, affine=shifted), rf"{LABEL_FILE} and .*{FILE} lie 50"),
    bad_scan("a label with an unknown class", volume(LABEL, lambda v: v * 9), rf"{LABEL_FILE} holds"),
    bad_scan("a label of fractions", volume(LABEL, lambda v: v * 0.5), rf"{LABEL_FILE} holds 0\.5"),
    bad_scan("a negative label", volume(LABEL, lambda v: -v.astype(np.int16)), rf"{LABEL_FILE} holds -"),
    bad_scan(
        "a label without its scan",
        every(
            remove(IMAGE),
            duplicate(LABEL, "scans/labelsTr/gina.nii.gz"),
            move("scans/labelsTr/anna.nii.gz", "scans/anna"),
        ),
        "gina_0000",
    ),
    Kind("no scan that can be surveyed", SURVEY, "none of the", unreadable),
]
