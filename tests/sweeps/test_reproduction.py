"""Reproduction of the paper's tables: which sweeps make them, at each scale, and with what data."""

from __future__ import annotations

import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.recipes import RECIPES
from anatomask.recipes.paper import RECIPE_OF
from anatomask.reports.paper import COMPARISONS, published
from anatomask.reports.paper_tables import paper_tables
from anatomask.stages import reproduce
from anatomask.stages.reproduce import unique_stages
from anatomask.sweeps.chain import build_chain
from anatomask.sweeps.graph import Stage
from anatomask.sweeps.reproduction import plan_reproduction
from anatomask.sweeps.settings import ReproduceConfig, SweepConfig
from anatomask.sweeps.space import Table


def settings(*argv: str) -> ReproduceConfig:
    config: ReproduceConfig = parse("reproduce", argv, RECIPES).config
    return config


def test_every_row_of_the_methods_tables_has_a_recipe() -> None:
    rows = {(score.method, score.network) for score in published(COMPARISONS)}
    assert rows == RECIPE_OF.keys()
    assert set(RECIPE_OF.values()) <= RECIPES.keys()


def test_the_papers_path_and_its_sizes(labelled: PreparedDataset, tmp_path: Path) -> None:
    """TotalSegmentator first, the others from its network; variants on TotalSegmentator alone; L and H, too."""
    amos = str(shutil.copytree(labelled.path, tmp_path / "amos"))
    data = ("--data", f"totalsegmentator={labelled.path}", f"amos22={amos}", "--split", "auto")
    found = plan_reproduction(settings(*data))
    assert [part.config.name for part in found.parts] == [
        f"reproduction-{name}" for name in ("table1", "table2", "table3", *RECIPE_OF.values())
    ]
    assert [text.partition(":")[0] for text in found.missing] == [
        "Table 5 is left out for flare22", "Table 6 is left out for autopet2"
    ]  # fmt: skip
    for part in found.parts:
        if part.tables[0] in COMPARISONS:
            assert part.tables == ("4", "5") and part.config.start_from == "first"
            assert part.config.finetune_data == (labelled.path, amos)
        else:
            assert part.config.finetune_data == (labelled.path,) and len(part.space.rows) > 2
    turned = plan_reproduction(settings("--data", data[2], data[1], *data[3:]))
    assert [part.config for part in turned.parts] == [part.config for part in found.parts]
    of = {part.config.name.removeprefix("reproduction-"): part for part in found.parts}
    assert of["paper-l"].config.pretrain == RECIPES["paper-l"].settings("sweep").pretrain
    chain = build_chain(of["byol"].config)
    trial, scratch = (chain.stages(point) for point in of["byol"].space.rows.values())
    assert trial["finetune-amos-seed0"].needs["init"] is trial[f"finetune-{Path(labelled.path).name}-seed0"]
    assert "pretrain-seed0" not in scratch and not scratch["finetune-amos-seed0"].needs


def test_what_is_missing_is_made_by_the_same_command(labelled: PreparedDataset) -> None:
    data = ("--data", f"totalsegmentator={labelled.path}", "--tables", "3", "4", "--seeds", "1", "2", "--split", "auto")
    config = settings(*data, "--name", "mine", "--pretrain-data", labelled.path)
    makers = reproduce.makers(config, plan_reproduction(config))
    (command,) = set(makers.values())
    assert makers.keys() == {("3", "TotalSegmentator"), ("4", "TotalSegmentator")}
    again = settings(*shlex.split(command)[2:])
    assert (again.data, again.tables, again.seeds, again.name) == (config.data, config.tables, (1, 2), "mine")
    assert again.pretrain_data == config.pretrain_data != ()
    missing = {number: paper_tables([], [number], makers)[0].rows for number in ("3", "4", "5")}
    for number, rows in missing.items():
        commands = {tuple(lines) for row in rows for lines in row.commands.values()}
        assert (commands == {(command,)}) == (number != "5")
    small = settings("--scale", "openkbp", "--data", f"kbp={labelled.path}", "--split", "auto")
    assert reproduce.makers(small, plan_reproduction(small)) == {}


def test_rows_and_tables_share_their_stages(labelled: PreparedDataset) -> None:
    """At a small scale: 12 variants, of which SparK and AnatoMask are two, and five methods on four networks."""
    found = plan_reproduction(settings("--scale", "openkbp", "--data", f"kbp={labelled.path}", "--split", "auto"))
    assert Counter(stage.verb for stage in unique_stages(found)) == {"pretrain": 14, "finetune": 18, "evaluate": 18}
    assert sum("one size of a network" in text for text in found.missing) == 2


class ImaginedRunner:
    """Makes the stages of a sweep that the store lacks, as a sweep does, and trains nothing."""

    def __init__(self) -> None:
        self.made: list[Stage] = []

    def __call__(self, config: SweepConfig, space: Table, *, overwrite: bool) -> int:
        chain = build_chain(config)
        for number, point in enumerate(space.examples()):
            trial = chain.folder / f"{number:03}-x"
            trial.mkdir(parents=True, exist_ok=True)
            for link, stage in chain.stages(point).items():
                folder = chain.store.path(stage.name)
                if not folder.exists():
                    assert all(chain.store.path(needed.name).is_dir() for needed in stage.needs.values())
                    folder.mkdir(parents=True)
                    self.made.append(stage)
                    if stage.verb == "evaluate":
                        (folder / "summary.json").write_text("{}")
                (trial / link).unlink(missing_ok=True)
                (trial / link).symlink_to(folder)
        return 0


def test_all_tables_on_two_data_sets_make_a_shared_stage_once(
    labelled_folder: Callable[[str, int], PreparedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """12 variants are 9 pretrainings, finetuned on the first data set; 7 methods and 4 networks from scratch on both.

    Of the methods, SparK and AnatoMask are variants, so that the first data set has 9 + 5 + 4 finetunings.
    """
    run, reported = ImaginedRunner(), list[Mapping[str, Any]]()
    monkeypatch.setattr("anatomask.stages.sweep.run_space", run)
    monkeypatch.setattr("anatomask.stages.sweep.check", lambda chain, space: None)  # it computes what all would cost
    monkeypatch.setattr("anatomask.stages.report.stage", lambda config, makers: reported.append(vars(config)))
    monkeypatch.setattr("anatomask.stages.reproduce.running", nullcontext)
    data = [f"{name}={labelled_folder(name, seed).path}" for seed, name in enumerate(("first", "second"))]
    config = settings("--scale", "phantom", "--data", *data, "--split", "auto", "--runs", str(tmp_path / "runs"))
    for _ in range(2):  # the same command once more makes nothing
        assert reproduce.stage(config, overwrite=False) == 0
        assert Counter(stage.verb for stage in run.made) == {"pretrain": 14, "finetune": 29, "evaluate": 29}
    finetuned = Counter(Path(stage.config.data).name for stage in run.made if stage.verb == "finetune")
    assert finetuned == {"first": 18, "second": 11}
    assert all(len(report["runs"]) == 29 and report["tables"] == config.tables for report in reported)
    said = " ".join(capsys.readouterr().err.split())
    for size in "LH":
        assert f"AnatoMask on STU-Net-{size} is left out: at scale phantom there is one size of a network" in said


def test_data_sets_that_are_not_given_are_left_out_and_said(labelled: PreparedDataset, tmp_path: Path) -> None:
    """All six tables, of the other data sets than the first: variants and Table 4 are TotalSegmentator's alone."""
    amos = str(shutil.copytree(labelled.path, tmp_path / "amos"))
    found = plan_reproduction(settings("--data", f"flare22={labelled.path}", f"amos22={amos}", "--split", "auto"))
    needed = {"Table 4": "totalsegmentator", "Table 6": "autopet2"}
    assert list(found.missing) == [
        *(f"Table {table} is left out: it needs --data totalsegmentator=FOLDER" for table in "123"),
        *(f"{table} is left out for {name}: it needs --data {name}=FOLDER" for table, name in needed.items()),
    ]
    assert {part.tables for part in found.parts} == {("5",)}
    assert {part.config.finetune_data for part in found.parts} == {(labelled.path, amos)}


def test_the_phantoms_scale_makes_two_updates_of_each_training(labelled: PreparedDataset) -> None:
    argv = ("--scale", "phantom", "--data", f"phantoms={labelled.path}", "--split", "auto", "--tables", "3", "4")
    for part in plan_reproduction(settings(*argv, "--seeds", "3")).parts:
        for stage in (part.config.pretrain, part.config.finetune):
            assert (stage.training.epochs, stage.training.steps_per_epoch, stage.optimiser.warmup_epochs) == (1, 2, 0)
        assert part.config.seeds == (3,)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--data", "x"), 2, "data must be NAME=FOLDER"),
        (("--data", "a=x", "a=y"), 2, "data names a twice"),
        (("--data", "a=x", "--tables", "7"), 2, "7"),
        (("--data", "a=x"), 1, "the paper has no such data set; there are totalsegmentator, flare22"),
        (("--data", "amos22=x", "--tables", "1", "6"), 1, "there is no data for any of these tables. Table 1 is left"),
        (("--data", "amos22=/nowhere/x", "--tables", "5"), 1, "/nowhere/x"),
    ],
)
def test_bad_input_is_one_message(
    argv: tuple[str, ...], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        result = main(["reproduce", *argv])
    except SystemExit as exit_:
        result = int(str(exit_.code))
    assert result == code
    assert message in " ".join(capfd.readouterr().err.replace("│", " ").split())


def test_a_part_that_fails_does_not_stop_the_others(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run_space(config: Any, space: Any, *, overwrite: bool) -> int:
        ran.append(config.name)
        if config.name.endswith("moco"):
            raise UserError("out of luck")
        scored = tmp_path / config.name / "000-x" / "evaluate-prepared"
        scored.mkdir(parents=True)
        (scored / "summary.json").write_text("{}")
        return int(config.name.endswith("byol"))

    reported: list[Mapping[str, Any]] = []
    monkeypatch.setattr("anatomask.stages.sweep.run_space", run_space)
    monkeypatch.setattr("anatomask.stages.report.stage", lambda config, makers: reported.append(vars(config)))
    monkeypatch.setattr("anatomask.stages.reproduce.running", nullcontext)
    argv = ("--scale", "phantom", "--data", f"p={labelled.path}", "--split", "auto", "--runs", str(tmp_path))
    assert reproduce.stage(settings(*argv, "--tables", "3", "4"), overwrite=False) == 1
    assert len(ran) == 8
    said = " ".join(capsys.readouterr().err.split())
    assert "reproduction-moco: out of luck" in said and "reproduction-byol: some of its trials failed" in said
    assert len(reported[0]["runs"]) == 7 and reported[0]["out"] == str(tmp_path / "reproduction")
