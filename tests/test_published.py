"""What a folder of published numbers may leave out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.published import numbers_of


@pytest.mark.parametrize("complete", [False, True])
def test_what_settings_leave_out_is_passed_over_unless_the_folder_has_to_be_complete(
    complete: bool, tmp_path: Path
) -> None:
    settings = {"prefix": "case", "left_out": ["loss", "_checkpoint.pt"]}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    np.savez(tmp_path / "case.npz", logits=np.ones(2))
    with numbers_of(tmp_path, complete) as numbers:
        numbers.agrees("logits", torch.ones(2), 0)
        assert numbers.leaves_out("_checkpoint.pt") != complete
        if complete:
            with pytest.raises(AssertionError, match="holds no array loss"):
                numbers.agrees("loss", 0.5, 0)
        else:
            numbers.agrees("loss", 0.5, 0)
