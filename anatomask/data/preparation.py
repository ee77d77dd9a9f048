"""Preparation of a data set case by case: its settings, one case's outcome, and the files written once all cases are.

Nothing here knows how the cases are spread over machines; see `anatomask/stages/prepare.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from anatomask.data.claims import Writer, require_same
from anatomask.data.datasets.base import RawCase, RawDataset
from anatomask.data.fingerprint import Fingerprint, Histogram, Scheme, case_histograms
from anatomask.data.index import FORMAT, FORMAT_WITHOUT_DIGESTS, write_index
from anatomask.data.memory import TooLarge
from anatomask.data.preprocess import prepare_case
from anatomask.data.records import CaseRecord, DatasetInfo
from anatomask.data.settings import Codec, ReaderConfig
from anatomask.data.shards import PreparedDataset, read_record, write_case
from anatomask.data.splits import SplitConfig, Splits, continued, keep, meaningful
from anatomask.data.storage import Root, Storage
from anatomask.errors import UserError, unexpected
from anatomask.names import component, shown
from anatomask.parsing import from_json

SETTINGS = "prepare.json"
VERSION = "format"
"""Key of the settings that holds the version of the layout, `index.FORMAT`, which the folder keeps."""
SCANS = "scans"
"""Key of the settings that holds a digest of the source's cases."""
UNRECORDED = {
    "split.seed": 0,
    "split.fractions": [0.7, 0.1, 0.2],
    "split.fold": 0,
    "split.val_as": "test",
    "split.folds": None,
    **{f"reader.{name}": "" for name in ("image", "label", "label_names", "patient", "plans")},
}
"""Values of settings that a folder does not record: its version had them not, or they meant nothing for its source."""
SPLITS, CASES = "splits.json", "cases.jsonl"
INDEX = ("dataset.json", CASES, "fingerprint.json", SPLITS, "skipped.json")
FOLDERS = {"cases": r".+\.parquet", "originals": r".+\.nii\.gz"}
"""Folders of a prepared data set -> pattern of the names of the files written there."""
PREPARATION = Writer("preparation", SETTINGS, (*INDEX, *FOLDERS), ("source", "dataset"), "choose another --out")

FOOTERS_AT_ONCE = 16
"""Number of footers read at once; from remote storage each takes a few round trips."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of preparing one case."""

    case: str
    reason: str = ""
    """Reason why it was skipped; empty when it was written."""
    refused: OSError | UserError | None = None
    """Error with which the output folder refused it; every other case would fail too."""
    voxels: int = 0
    seconds: float = 0.0


def prepare_and_write(root: Root, info: DatasetInfo, raw: RawCase, memory: int | None = None) -> Outcome:
    """Prepare one case and write it to `root`; the outcome reports any fault.

    Args:
        root: output folder.
        info: what all cases share.
        raw: the case's files.
        memory: bytes that it may take at its peak. Default: what the machine has free.

    Raises:
        TooLarge: the case would take more than `memory`, if that is given.
    """
    start = time.perf_counter()
    try:
        component(raw.case)
        prepared = prepare_case(raw, info.schemes, info.class_names, info.spacing, memory)
    except TooLarge as error:
        if memory is not None:
            raise
        return Outcome(raw.case, str(error))
    except UserError as error:
        return Outcome(raw.case, str(error))
    except Exception as error:  # whatever else a broken file makes its library do: the other cases go on
        return Outcome(raw.case, unexpected(raw.images[0].path, error))
    try:
        record = write_case(root, prepared, info.brick, info.codec)
    except (OSError, UserError) as error:
        return Outcome(raw.case, str(error), refused=error)
    a, b, c = record.shape
    return Outcome(raw.case, voxels=a * b * c * len(record.channels), seconds=time.perf_counter() - start)


def claim(root: Root, settings: Mapping[str, Any], overwrite: bool) -> list[str]:
    """Make `root` the folder of a preparation with these settings, whether new or resumed.

    Args:
        root: output folder.
        settings: everything that decides what is written, by field.
        overwrite: delete what an earlier preparation wrote there; delete nothing in a folder without one.

    Returns:
        Paths that `overwrite` found among these files and kept, because no preparation wrote them.

    Raises:
        UserError: the folder holds a preparation with other settings (the fields are named) or of other scans, or
            files of the same names that no preparation wrote, or it is not a folder.
        OSError: the folder cannot be written.
    """
    storage = Storage.of(root)
    version = FORMAT
    left: list[str] = []
    before = PREPARATION.earlier(storage)
    if before is not None and overwrite:
        for name in INDEX:
            storage.clear(name)
        left = [path for folder, own in FOLDERS.items() for path in storage.clear_files(folder, own)]
        storage.clear(SETTINGS)  # last: they say that the rest may be deleted
    elif before is not None:
        version = _same_settings(storage, before, _as_json(settings))
    try:
        storage.write_json(SETTINGS, _as_json(settings) | {VERSION: version})
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{storage.show()} cannot be made a folder ({error.strerror}); choose another --out") from error
    return left


def _same_settings(storage: Storage, before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """Return the version of the layout with which the folder was begun.

    Raises:
        UserError: as `claim`.
    """
    remedy = "choose another --out, or --overwrite"
    fields = [name for name in now if name != SCANS]
    there, here = ({name: settings.get(name, UNRECORDED.get(name)) for name in fields} for settings in (before, now))
    require_same(storage.show(), "a preparation", there, here, remedy)
    if before.get(SCANS) != now.get(SCANS):
        raise UserError(
            f"{storage.show()}: the scans of the source, or the split that comes with them or by --split.file, changed "
            f"since, and cases of training and test would mix; {remedy}"
        )
    return _version(storage, before)


def _version(storage: Storage, settings: Mapping[str, Any]) -> int:
    version = settings.get(VERSION, FORMAT_WITHOUT_DIGESTS)
    if not isinstance(version, int):
        raise UserError(f"{storage.show(SETTINGS)} is damaged ({VERSION} is {shown(version)}); {PREPARATION.remedy}")
    return version


def finished_cases(root: Root) -> set[str]:
    """List the cases whose files are written."""
    return set(Storage.of(root).names("cases", ".parquet"))


def complete(
    root: Root,
    info: DatasetInfo,
    records: Sequence[CaseRecord],
    splits: Splits,
    histograms: Iterable[Sequence[Histogram]],
    outcomes: Sequence[Outcome],
) -> None:
    """Write the files beside the cases: fingerprint, splits, the index, and the list of skipped cases.

    Args:
        root: output folder.
        info: what all cases share.
        records: of all cases that are written.
        splits: of these cases.
        histograms: per case that counts for the fingerprint, per channel; in any order, merged as they come.
        outcomes: of this run.
    """
    merged: Sequence[Histogram] = [Histogram.merge(()) for _ in info.schemes]
    for case in histograms:
        merged = [Histogram.merge(pair) for pair in zip(merged, case, strict=True)]
    fingerprint = Fingerprint.from_histograms(info.channel_names, info.schemes, merged)
    skipped = sorted(
        ({"case": outcome.case, "reason": outcome.reason} for outcome in outcomes if outcome.reason),
        key=lambda row: row["case"],
    )
    storage = Storage.of(root)
    storage.clear_unfinished((".", "cases", "originals"))
    write_index(storage, info, records, splits, fingerprint, skipped, storage.read_json(SETTINGS)[VERSION])


def records_of(root: Root, raw: RawDataset) -> dict[str, CaseRecord]:
    """Read the records of those cases of the data set that are written."""
    written = finished_cases(root)
    cases = [one.case for one in raw.cases if one.case in written]
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as readers:
        return dict(zip(cases, readers.map(partial(read_record, root), cases), strict=True))


def doubts(info: DatasetInfo, records: Iterable[CaseRecord]) -> list[str]:
    """Report written cases from which there is little to learn: labels without any class, channels without contrast.

    In some data sets this is right (scans without lesions), so these cases stay.
    """
    known = list(records)
    empty = [record.case for record in known if record.labelled and not record.class_bricks]
    notes = [f"{_some(empty)} without any labelled class"] if empty else []
    for c, name in enumerate(info.channel_names):
        if flat := [record.case for record in known if not record.channels[c].std]:
            notes.append(f"{_some(flat)} in which channel {name} has no contrast")
    return notes


def _some(cases: Sequence[str]) -> str:
    return f"{len(cases)} case{'s' if len(cases) > 1 else ''} ({', '.join(cases[:3])}{', …' if len(cases) > 3 else ''})"


def kept_splits(root: Root, planned: Splits, cases: set[str]) -> Splits:
    """Return the splits of a folder that is prepared again: those that it has, for a written split is never redrawn.

    Cases that are new go where `planned` has them. To edit `splits.json` by hand is thus allowed.

    Args:
        root: output folder.
        planned: splits as the settings give them.
        cases: cases that are written.

    Raises:
        UserError: the folder's `splits.json` is damaged.
    """
    storage = Storage.of(root)
    if not storage.exists(SPLITS):
        return keep(planned, cases)
    remedy = "put it back, or delete it to have the split made anew by the same command"
    before = storage.read_json(SPLITS, remedy)
    if not isinstance(before, dict) or not all(
        isinstance(members, list) and all(isinstance(case, str) for case in members) for members in before.values()
    ):
        raise UserError(f"{storage.show(SPLITS)} is damaged (it must map names to lists of cases); {remedy}")
    return continued(before, _indexed_cases(storage), planned, cases)


def _indexed_cases(storage: Storage) -> set[str]:
    """List the cases in the index of a folder; none where it is damaged, for the index is written anew."""
    if not storage.exists(CASES):
        return set()
    try:
        return {from_json(line)["case"] for line in storage.read(CASES).splitlines()}
    except (ValueError, KeyError, TypeError):
        return set()


def unfinished_dataset(
    root: Root, info: DatasetInfo, records: Mapping[str, CaseRecord], splits: Splits
) -> PreparedDataset:
    """Open the written cases as a data set that has no fingerprint yet."""
    return PreparedDataset(root, info, dict(records), keep(splits, set(records)), Fingerprint(()))


def fingerprint_cases(dataset: PreparedDataset) -> tuple[str, ...]:
    """Choose the cases for the fingerprint: those for training, else pretraining, and of these the labelled ones."""
    cases = dataset.splits.get("train") or dataset.splits.get("unlabeled") or tuple(dataset.records)
    return tuple(case for case in cases if dataset.records[case].class_bricks) or cases


def bytes_for_histograms(record: CaseRecord) -> int:
    """Return an upper bound of the memory of `histograms_of` for a case: its voxels, and sorted copies of a channel."""
    return math.prod(record.shape) * (4 * len(record.channels) + 16)


def histograms_of(dataset: PreparedDataset, case: str) -> list[Histogram]:
    """Compute one case's share of the fingerprint per channel: of its foreground or, if unlabelled, of its body."""
    images, label = dataset.read_volume(case, label=bool(dataset.records[case].class_bricks))
    return case_histograms(images, label, dataset.info.schemes)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def dataset_info(
    raw: RawDataset, name: str, spacing: tuple[float, float, float], brick: int, codec: Codec
) -> DatasetInfo:
    """Collect what all prepared cases of a raw data set share."""
    return DatasetInfo(
        name=name,
        reader=raw.reader,
        channel_names=raw.channel_names,
        schemes=raw.schemes,
        class_names=dict(raw.class_names),
        nsd_tolerance=dict(raw.nsd_tolerance),
        spacing=spacing,
        brick=brick,
        codec=codec,
    )


def choose_schemes(raw: RawDataset, schemes: Sequence[Scheme]) -> RawDataset:
    """Replace the reader's normalisation schemes by these, one per channel; keep the reader's if `schemes` is empty.

    Raises:
        UserError: there are not as many as channels, or "ct" is chosen for a channel that rounding to whole HU
            would destroy.
    """
    if not schemes:
        return raw
    if len(schemes) != len(raw.channel_names):
        channels = ", ".join(raw.channel_names)
        raise UserError(
            f"--preprocess.normalisation names {len(schemes)} schemes, but {raw.reader} has {len(raw.channel_names)} "
            f"channels ({channels}); name one per channel"
        )
    for channel, own, chosen in zip(raw.channel_names, raw.schemes, schemes, strict=True):
        if chosen == "ct" and own in ("quantitative", "none"):
            raise UserError(
                f"--preprocess.normalisation ct rounds channel {channel} of {raw.reader} to whole HU, which it is not "
                "in; choose quantitative, zscore or none"
            )
    return replace(raw, schemes=tuple(schemes))


def settings_of(
    source: str, raw: RawDataset, info: DatasetInfo, split: SplitConfig, reader: ReaderConfig | None = None
) -> dict[str, Any]:
    """Collect everything that decides what is written, by the user's field names, and a digest of the cases."""
    cases = sorted((case.case, case.patient, case.label is not None, case.case in raw.held_back) for case in raw.cases)
    given = {name: sorted(members) for name, members in (raw.splits or {}).items()}
    return {
        "source": source,
        SCANS: hashlib.sha256(json.dumps([cases, given], sort_keys=True).encode()).hexdigest(),
        "dataset": info.reader,
        "name": info.name,
        "channels": list(info.channel_names),
        "preprocess.spacing": list(info.spacing),
        "preprocess.normalisation": list(info.schemes),
        "preprocess.classes": list(info.class_names.values()),
        "preprocess.brick": info.brick,
        "preprocess.codec": info.codec,
        **{f"split.{name}": getattr(split.resolved(), name) for name in sorted(meaningful(raw, split))},
        **{f"reader.{field}": value for field, value in asdict(reader or ReaderConfig()).items()},
    }
