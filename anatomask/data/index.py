"""The index of a prepared data set: the files beside the cases, written together and checked when they are read."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import xxhash

from anatomask.data.fingerprint import Fingerprint
from anatomask.data.records import CaseRecord, DatasetInfo, triple
from anatomask.data.splits import Splits, shared_case, shared_patients
from anatomask.data.storage import Root, Storage, as_json
from anatomask.errors import Note, UserError
from anatomask.parsing import from_json

FORMAT = 3
FORMAT_WITHOUT_DIGESTS = 2
REMEDY = "write it again with `anatomask prepare --overwrite`"
DIGESTS = "digests"
"""Field of `dataset.json` that holds the checksum (XXH3, 64 bits) of each file that nobody edits by hand."""
DIGESTED = ("cases.jsonl", "fingerprint.json")

T = TypeVar("T")


@dataclass(frozen=True)
class Index:
    """Everything known of a prepared data set without opening a case's file."""

    info: DatasetInfo
    records: dict[str, CaseRecord]
    splits: Splits
    fingerprint: Fingerprint
    format: int
    """Version of the layout; the cases of `FORMAT_WITHOUT_DIGESTS` may lack checksums."""


def write_index(
    root: Root,
    info: DatasetInfo,
    records: Iterable[CaseRecord],
    splits: Mapping[str, Sequence[str]],
    fingerprint: Fingerprint,
    skipped: Sequence[Mapping[str, str]] = (),
    format: int = FORMAT,
) -> None:
    """Write all files beside the cases; `dataset.json` comes last and marks the data set as complete.

    An old index that changes is deleted first: a reader finds the old one, none, or the new one, never a mixture.
    """
    storage = Storage.of(root)
    ordered = sorted(records, key=lambda record: record.case)
    header: dict[str, Any] = {"format": format, **asdict(info)}
    files = {
        "cases.jsonl": "".join(record.to_json() + "\n" for record in ordered).encode(),
        "fingerprint.json": as_json(fingerprint.to_dict()),
        "splits.json": as_json({name: list(cases) for name, cases in splits.items()}),
        "skipped.json": as_json([dict(row) for row in skipped]),
    }
    if format != FORMAT_WITHOUT_DIGESTS:
        header[DIGESTS] = {name: _digest(files[name]) for name in DIGESTED} | {"dataset.json": _own_digest(header)}
    files["dataset.json"] = as_json(header)
    if all(storage.exists(name) and storage.read(name) == content for name, content in files.items()):
        return
    storage.clear("dataset.json")
    for name, content in files.items():
        storage.write(name, content)


def read_index(storage: Storage) -> Index:
    """Read what `write_index` wrote.

    Warns with a `Note` where the data set is of an older version without checksums, or a patient is in two splits.

    Raises:
        UserError: a file is missing, damaged or of another format version; a case is listed twice, or is in two of
            the splits that must not share cases.
    """
    content = {name: _content(storage, name) for name in ("dataset.json", *DIGESTED, "splits.json")}

    def parsed(name: str, parse: Callable[[bytes], T]) -> T:
        try:
            return parse(content[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{storage.show(name)} is damaged ({type(error).__name__}: {error}); {REMEDY}") from error

    header = parsed("dataset.json", partial(from_json, finite=True))
    version = header.get("format") if isinstance(header, dict) else None
    if version not in (FORMAT, FORMAT_WITHOUT_DIGESTS):
        raise UserError(f"{storage.show('dataset.json')} has another format version; run `anatomask prepare` again")
    info = parsed("dataset.json", _info)
    records = parsed("cases.jsonl", lambda text: _records(text, len(info.channel_names)))
    fingerprint = parsed("fingerprint.json", lambda text: _fingerprint(text, info.channel_names))
    splits = parsed("splits.json", lambda text: _splits(text, records))
    if version == FORMAT:
        found = {name: _digest(content[name]) for name in DIGESTED} | {"dataset.json": _own_digest(header)}
        for name, digest in found.items():
            if header.get(DIGESTS, {}).get(name) != digest:
                raise UserError(
                    f"{storage.show(name)} is damaged (it does not match its checksum in dataset.json); {REMEDY}"
                )
    else:
        warnings.warn(
            Note(
                f"{storage.show()} was prepared by an older version and has no checksums, so damage to it goes "
                f"unnoticed; to have them, {REMEDY}"
            ),
            stacklevel=2,
        )
    if patients := shared_patients(splits, {case: record.patient for case, record in records.items()}):
        warnings.warn(
            Note(
                f"{storage.show('splits.json')}: patients with scans both in train and in val or test: {len(patients)}"
                f", the first {min(patients)}; scores are too good where such scans are alike"
            ),
            stacklevel=2,
        )
    return Index(info, records, splits, fingerprint, version)


def data_digest(*storages: Storage, splits: bool) -> str:
    """Hash what prepared data sets hold: their cases and, where it matters which are for training, their splits.

    The digest is the SHA-256 of the index files, which hold every case's checksums; of several data sets, it is that of
    their digests in order.

    Raises:
        OSError, UserError: an index file cannot be read.
    """
    names = ("cases.jsonl", "splits.json") if splits else ("cases.jsonl",)
    digests = [hashlib.sha256(b"".join(map(storage.read, names))).hexdigest() for storage in storages]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _content(storage: Storage, name: str) -> bytes:
    try:
        return storage.read(name)
    except FileNotFoundError:
        if any(map(storage.exists, (*DIGESTED, "splits.json", "prepare.json"))):  # of an unfinished preparation, too
            remedy = f"write it with `anatomask prepare --out {storage.show()}`"
        else:
            remedy = f"{storage.show()} is no prepared folder: name one that `anatomask prepare --out` wrote"
        raise UserError(f"{storage.show(name)} is missing; {remedy}") from None


def _info(text: bytes) -> DatasetInfo:
    data = from_json(text, finite=True)
    for name in ("format", DIGESTS):
        data.pop(name, None)
    for name in ("channel_names", "schemes"):
        data[name] = tuple(data[name])
    data["spacing"] = triple(data["spacing"], float)
    data["class_names"] = {int(c): str(value) for c, value in data["class_names"].items()}
    data["nsd_tolerance"] = {int(c): float(value) for c, value in data["nsd_tolerance"].items()}
    return DatasetInfo(**data)


def _records(text: bytes, channels: int) -> dict[str, CaseRecord]:
    records: dict[str, CaseRecord] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = CaseRecord.from_json(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if record.case in records:
            raise ValueError(f"line {number} lists case {record.case!r} a second time")
        if len(record.channels) != channels:
            raise ValueError(f"case {record.case!r} has {len(record.channels)} channels, the data set {channels}")
        records[record.case] = record
    return records


def _fingerprint(text: bytes, channel_names: Sequence[str]) -> Fingerprint:
    fingerprint = Fingerprint.from_dict(from_json(text, finite=True))
    if len(fingerprint.channels) != len(channel_names):
        raise ValueError(f"it has {len(fingerprint.channels)} channels, the data set {len(channel_names)}")
    for channel in fingerprint.channels:
        for name in ("percentile_00_5", "percentile_99_5", "mean", "std"):
            value = getattr(channel, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} of channel {channel.name!r} is {value!r}; a finite number is expected")
    return fingerprint


def _splits(text: bytes, records: Mapping[str, CaseRecord]) -> Splits:
    splits = {name: tuple(cases) for name, cases in from_json(text, finite=True).items()}
    for name, cases in splits.items():
        for case, count in Counter(cases).items():
            if case not in records:
                raise ValueError(f"{name} names case {case!r}, which was not prepared")
            if count > 1:
                raise ValueError(f"{name} names case {case!r} twice")
    if found := shared_case(splits):
        case, one, other = found
        raise ValueError(f"case {case!r} is in {one} and in {other}")
    return splits


def _digest(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)


def _own_digest(header: Mapping[str, Any]) -> str:
    """Compute the checksum of `dataset.json` without the field of checksums."""
    return _digest(as_json({name: value for name, value in header.items() if name != DIGESTS}))
