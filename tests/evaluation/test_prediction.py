from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from anatomask.evaluation.prediction import probability_file


def test_equal_probabilities_are_equal_bytes_whenever_they_are_written(tmp_path: Path) -> None:
    def written(name: str, seconds: float) -> bytes:
        with probability_file(tmp_path / name, (2, 3, 4, 5)) as array:
            array[:] = np.linspace(0, 1, 120).reshape(2, 3, 4, 5)
            file = next(tmp_path.glob(f".{name}*"))
            os.utime(file, (seconds, seconds))
        return (tmp_path / name).read_bytes()

    assert written("a.npz", 1e9) == written("b.npz", 1.5e9)
    with np.load(tmp_path / "a.npz") as file:
        assert file["probabilities"].shape == (2, 3, 4, 5) and file["probabilities"].dtype == np.float16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
