"""Names and colours of classes for other programs."""

from __future__ import annotations

import numpy as np

from anatomask.evaluation.label_names import colours, itk_snap, slicer


def test_colours_can_be_told_apart_and_the_first_stay() -> None:
    for count, apart in ((5, 250), (20, 90), (105, 42), (255, 42)):
        chosen = np.array(colours(count), float)
        distances = np.linalg.norm(chosen[:, None] - chosen, axis=-1) + 1000 * np.eye(count)
        assert distances.min() >= apart, count
        assert chosen.sum(1).min() >= 180
    assert colours(105)[:5] == colours(5)
    assert colours(1) == [(255, 0, 0)]


def test_names_that_would_break_a_line_are_mended() -> None:
    names = {3: 'lung "upper"\nlobe', 1: "left kidney"}
    rows = [line for line in itk_snap(names).splitlines() if not line.startswith("#")]
    assert [line.split(maxsplit=7)[0] for line in rows] == ["0", "1", "3"]
    assert rows[2].endswith('1  1  1    "lung upper lobe"')
    assert slicer(names).splitlines()[2:] == [
        "0 background 0 0 0 0",
        "1 left_kidney 255 0 0 255",
        '3 lung_"upper"_lobe 0 255 255 255',
    ]
