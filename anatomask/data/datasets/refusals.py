"""Checks of a raw data set that hold for every reader: unusable cases are refused by name, and the good ones stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anatomask.data.datasets.base import RawCase, RawDataset, refused_case
from anatomask.data.listing import faults, is_folder
from anatomask.data.splits import keep
from anatomask.errors import UserError
from anatomask.names import readable
from anatomask.settings import is_text

LONGEST_CASE = 220
"""Number of bytes of a case's name at most: file systems allow 255, and files named after it have suffixes."""


def with_refusals(raw: RawDataset, source: Path) -> RawDataset:
    """Replace the cases that cannot be used by refused cases, and add unreadable folders as refused cases.

    Broken links, FIFOs and the like that no case would read become a remark.

    Raises:
        UserError: the path of the source itself is not text.
    """
    if not is_text(str(source)):
        raise UserError(
            f"the path {readable(str(source))} is not UTF-8 text; rename it, link to it by another name, or set a "
            "locale of UTF-8"
        )
    cases = [_or_refused(one) for one in raw.cases]
    refused = {one.case for one, now in zip(raw.cases, cases, strict=True) if now is not one}
    known = {path for one in raw.cases for path in one.paths}
    known |= {parent for path in known for parent in path.parents}
    remarks = []
    for path, why in faults(source):
        if path in known:
            continue  # its case will report it
        if is_folder(path):
            name = f"{'_'.join(path.relative_to(source).parts) or source.name} (folder)"
            advice = "give this account access to it, or take it out of the source"
            cases.append(refused_case(readable(name), path, readable(f"{path} cannot be listed ({why}); {advice}")))
        else:
            remarks.append(readable(f"{path.relative_to(source)} is left out: {why}"))
    if len(remarks) > 1:
        remarks = [f"{len(remarks)} entries are neither file nor folder; {remarks[0]}"]
    kept = {one.case for one in raw.cases} - refused
    return replace(
        raw,
        cases=tuple(cases),
        splits=raw.splits and keep(raw.splits, kept),
        folds=tuple(keep(fold, kept) for fold in raw.folds),
        held_back=raw.held_back - refused,
        remarks=(*raw.remarks, *remarks),
    )


def _or_refused(raw: RawCase) -> RawCase:
    """Return the case, or a refused one in its place where its name cannot be a file name."""
    path = raw.images[0].path
    if not all(map(is_text, (raw.case, *map(str, raw.paths)))):
        why = "has a name that is not UTF-8 text, or holds control characters"
    elif (length := len(raw.case.encode())) > LONGEST_CASE:
        why = f"makes the name of a case {length} bytes long, more than {LONGEST_CASE}"
    else:
        return raw
    return refused_case(readable(raw.case), path, readable(f"{path} {why}; rename it"))
