"""Figures that the predictions of scaling.py rest on: steps on GPUs as other benchmarks have printed them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scaling import CROP, gpu_steps


def of_pretrain_step(seconds: dict[str, float], dtype: str = "bfloat16") -> str:
    return json.dumps(
        {
            "sizes": {"l": {"seconds": seconds}},
            "arguments": {"dtype": dtype, "patch": list(CROP), "batch": 4},
            "machine": {"gpu": "NVIDIA H200"},
        }
    )


def of_gpu_steps(what: str, seconds: float, patch: tuple[int, ...] = CROP) -> str:
    return json.dumps({"part": "c", "what": what, "says": "…", "seconds": seconds, "patch": patch})


def test_the_fastest_of_our_steps_in_bfloat16_is_taken_from_the_most_fitting_file(tmp_path: Path) -> None:
    (tmp_path / "pretrain-step-h200-l.txt").write_text(
        "A table\n" + of_pretrain_step({"published": 0.1, "blocks": 0.8, "blocks compiled": 0.4})
    )
    assert gpu_steps(tmp_path)["l"].seconds_per_crop == pytest.approx(0.1)
    assert gpu_steps(tmp_path)["l"].source == "blocks compiled, NVIDIA H200, pretrain-step-h200-l.txt"
    lines = [
        of_gpu_steps("H published, bf16, batch 2", 0.01),
        of_gpu_steps("H blocks, tf32, batch 2", 0.01),
        of_gpu_steps("H blocks, bf16, batch 2", 0.6),
        of_gpu_steps("B blocks, bf16, batch 4", 0.2),
        of_gpu_steps("B blocks, bf16, compiled, batch 4", 0.12),
        of_gpu_steps("B blocks, bf16, compiled, batch 1", 0.01, (32, 32, 32)),
        json.dumps({"what": "L blocks, bf16, batch 4", "says": "out of memory", "failed": "memory"}),
    ]
    (tmp_path / "gpu-h100.txt").write_text("\n".join(lines))
    found = {size: step.seconds_per_crop for size, step in gpu_steps(tmp_path).items()}
    assert found == pytest.approx({"b": 0.03, "l": 0.1, "h": 0.3})
    (tmp_path / "gpu-h100.txt").write_text(of_pretrain_step({"blocks": 0.6}) + "\n" + of_pretrain_step({}, "float32"))
    assert gpu_steps(tmp_path)["l"].seconds_per_crop == pytest.approx(0.15)
