"""The tables and the pictures of a survey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from anatomask.data.datasets import RawDataset, read_dataset
from anatomask.data.overview import class_rows
from anatomask.data.survey import survey_case
from anatomask.data.suspicions import Suspicion, suspicions
from anatomask.reports.survey_pictures import chosen_cases, tile_of
from anatomask.reports.survey_tables import show_survey


@pytest.fixture
def totalsegmentator(real_data: Path) -> RawDataset:
    return read_dataset(real_data / "totalsegmentator")


def test_what_is_printed_fits_80_columns(totalsegmentator: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    raw = totalsegmentator
    facts = [survey_case(case, raw.schemes, raw.class_names) for case in raw.cases]
    found = [
        *suspicions(raw, facts),
        Suspicion("s0001" * 9, "image refused", "/long/" * 40 + "ct.nii.gz is missing", "get it again"),
    ]
    show_survey(Console(width=80), "/data/" * 20, "out", raw, facts, class_rows(raw, facts), found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("liver" in line and "1123" in line for line in lines)


def test_a_tile_shows_the_body_and_its_organs(totalsegmentator: RawDataset) -> None:
    tile = tile_of(totalsegmentator.cases[0])
    coronal, axial = tile.planes
    assert coronal.spacing == axial.spacing == (3.0, 3.0)
    for plane in (coronal, axial):
        assert plane.label is not None and plane.label.shape == plane.image.shape
        assert len(np.unique(plane.label)) > 10


def test_suspicious_cases_come_first_and_the_others_are_spread(real_data: Path) -> None:
    cases = read_dataset(real_data / "openkbp").cases[:50]
    found = [Suspicion(cases[index].case, "", "", "") for index in (7, 31)]
    chosen = [cases.index(case) for case in chosen_cases(cases, found, 6)]
    assert chosen[:2] == [7, 31]
    assert chosen[2:] == sorted(chosen[2:]) and chosen[2] == 0 and chosen[-1] == 49 and len(chosen) == 6
    assert len(chosen_cases(cases, found, 1)) == 1 and len(chosen_cases(cases, found, 99)) == 50
