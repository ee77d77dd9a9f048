"""Two of the paper's tables in one command, as far as that it runs: two updates of each training, on phantoms."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from anatomask.cli.main import main
from anatomask.recipes.paper import VARIANTS


def stages(runs: Path) -> dict[str, int]:
    """Time at which each run in the store last changed its weights or scores, by the run's name."""
    made = [*runs.glob("store/*/checkpoints/index.json"), *runs.glob("store/*/summary.json")]
    return {path.relative_to(runs / "store").parts[0]: path.stat().st_mtime_ns for path in made}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_tables_on_two_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables 3 and 4 share AnatoMask itself, which is made once; the same command again makes nothing anew.

    Table 4 has its row of AnatoMask and that from scratch alone, on both data sets: the other methods' rows are made
    alike, and each of them goes through its chain in test_chain.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anatomask.sweeps.reproduction.RECIPE_OF", {("AnatoMask", "STU-Net-B"): VARIANTS})
    for seed, name in enumerate(("first", "second")):
        phantom = ["phantom", "--out", f"scans-{name}", "--cases", "4", "--size", "48", "--spacing", "6"]
        assert main([*phantom, "--seed", str(seed)]) == 0
        prepare = ["--preprocess.spacing", "8", "8", "8", "--preprocess.classes", "liver", "spleen"]
        assert main(["prepare", "--recipe", "tiny", "--source", f"scans-{name}", "--out", name, *prepare]) == 0
    command = ["reproduce", "--scale", "phantom", "--tables", "3", "4", "--runs", "runs", "--split", "test"]
    command += ["--data", "totalsegmentator=first", "flare22=second"]
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "3 pretrain, 6 finetune, 6 evaluate" in " ".join(capsys.readouterr().out.split())
    assert main(command) == 0
    made = stages(Path("runs"))
    assert Counter(name.partition("-")[0] for name in made) == {"pretrain": 3, "finetune": 6, "evaluate": 6}
    rows = list(csv.DictReader(Path("runs/reproduction/table.csv").read_text().splitlines()))
    assert {row["dataset"] for row in rows} == {"scans-first", "scans-second"}
    paper = Path("runs/reproduction/paper.md").read_text()
    assert "Table 3" in paper and "Table 4" in paper
    assert (Path("runs/reproduction") / "report.html").is_file()
    assert main(command) == 0
    assert stages(Path("runs")) == made
