from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from anatomask.errors import UserError
from anatomask.runs.folder import open_run, run_folder

SETTINGS = {"data": "shards", "seed": 0, "method": {"mask_ratio": 0.6}, "name": "a", "runs": "r", "cluster": {"w": 1}}


def test_the_same_settings_go_on_wherever_they_run(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS, overwrite=False)
    open_run(tmp_path / "a", SETTINGS | {"cluster": {"w": 8}}, overwrite=False)
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["method"] == {"mask_ratio": 0.6}
    assert json.loads((tmp_path / "a" / "environment.json").read_text())["packages"]["torch"]


def test_another_environment_is_told_and_the_same_is_not(tmp_path: Path) -> None:
    for threads in (1, 1, 2):
        open_run(tmp_path / "a", SETTINGS, overwrite=False, resources={"workers": 1, "threads": threads})
    (line,) = (tmp_path / "a" / "log.txt").read_text().splitlines()
    assert line.endswith("in their last digits: resources.threads is 1 there, 2 here")
    assert json.loads((tmp_path / "a" / "environment.json").read_text())["resources"]["threads"] == 2


def test_other_settings_are_refused_and_the_field_is_named(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS, overwrite=False)
    with pytest.raises(UserError, match=r"method\.mask_ratio is 0\.6 there, 0\.8 here"):
        open_run(tmp_path / "a", SETTINGS | {"method": {"mask_ratio": 0.8}}, overwrite=False)


def test_a_longer_training_is_refused_with_the_reason(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS | {"training": {"epochs": 4}}, overwrite=False)
    with pytest.raises(UserError, match=r"training\.epochs is 4 there, 5 here; other epochs mean other learning rates"):
        open_run(tmp_path / "a", SETTINGS | {"training": {"epochs": 5}}, overwrite=False)


def test_a_run_that_began_before_networks_had_names_goes_on(tmp_path: Path) -> None:
    before, now = (SETTINGS | {"network": {"base": 8, **name}} for name in ({}, {"name": "stunet"}))
    assert run_folder("r", "", "pretrain", "shards", before) == run_folder("r", "", "pretrain", "shards", now)
    open_run(tmp_path / "a", before, overwrite=False)
    open_run(tmp_path / "a", now, overwrite=False)
    sweeps = ({"finetune": settings} for settings in (before, now))
    assert len({run_folder("r", "", "sweep", "shards", settings) for settings in sweeps}) == 1
    other = SETTINGS | {"network": {"base": 8, "name": "other"}}
    assert run_folder("r", "", "pretrain", "shards", other) != run_folder("r", "", "pretrain", "shards", now)
    with pytest.raises(UserError, match=r"network\.name is .*, other here"):
        open_run(tmp_path / "a", other, overwrite=False)


def test_the_same_content_elsewhere_is_the_same_run_and_another_is_not(tmp_path: Path) -> None:
    run = tmp_path / "a"
    open_run(run, SETTINGS, overwrite=False, inputs={"data": "digest"})
    open_run(run, SETTINGS | {"data": "/elsewhere/shards"}, overwrite=False, inputs={"data": "digest"})
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == "/elsewhere/shards"
    with pytest.raises(UserError, match=r"--data /elsewhere/shards changed since .*a began"):
        open_run(run, SETTINGS | {"data": "/elsewhere/shards"}, overwrite=False, inputs={"data": "other"})
    with pytest.raises(UserError, match="--data shards is not /elsewhere/shards, or that has changed, since"):
        open_run(run, SETTINGS, overwrite=False, inputs={"data": "other"})


def test_the_inputs_of_an_older_version_are_known(tmp_path: Path) -> None:
    run = tmp_path / "a"
    open_run(run, SETTINGS, overwrite=False, inputs={"--data shards": "digest"})
    open_run(run, SETTINGS | {"data": "/elsewhere/shards"}, overwrite=False, inputs={"data": "digest"})
    with pytest.raises(UserError, match="--data shards"):
        open_run(run, SETTINGS, overwrite=False, inputs={"data": "other"})


def test_overwriting_a_sweep_leaves_the_store(tmp_path: Path) -> None:
    sweep, stored = tmp_path / "s", tmp_path / "store" / "pretrain-0"
    open_run(sweep, SETTINGS, overwrite=False)
    open_run(stored, SETTINGS, overwrite=False)
    (sweep / "000-a").mkdir()
    (sweep / "000-a" / "pretrain").symlink_to("../../store/pretrain-0")
    (sweep / "study.db").write_text("")
    open_run(sweep, SETTINGS, overwrite=True)
    assert not (sweep / "000-a").exists() and (stored / "config.yaml").exists()


def test_overwrite_begins_anew_but_never_empties_a_folder_that_is_no_run(tmp_path: Path) -> None:
    open_run(tmp_path / "a", SETTINGS, overwrite=False)
    (tmp_path / "a" / "metrics.jsonl").write_text("old")
    open_run(tmp_path / "a", SETTINGS | {"seed": 1}, overwrite=True)
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("dear")
    with pytest.raises(UserError, match="not a run's folder"):
        open_run(tmp_path / "thesis", SETTINGS, overwrite=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "dear"


def test_overwrite_leaves_the_files_of_others_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "a"
    open_run(run, SETTINGS, overwrite=False)
    ours = ["metrics.jsonl", "checkpoints/index.json", "checkpoints/step_00000001/model.safetensors", "ray/a/b.pkl"]
    ours += ["checkpoints/.step_00000002/.model.json.77", "pictures/reconstruction/case.png", "exported/nnunet.pth"]
    ours += ["exported/huggingface/README.md", "exported/monai-bundle/LICENSE"]
    ours += ["exported/monai-bundle/models/model.json"]
    ours += ["events.out.tfevents.1.host", "evaluation.json", "predictions/a.csv", "predictions/a.nii.gz", "cases.csv"]
    theirs = ["notes.md", "checkpoints/mine/model.safetensors", "predictions/corrected.nii.gz", "pictures/figure.svg"]
    for name in (*ours, *theirs):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    open_run(run, SETTINGS | {"seed": 1}, overwrite=True)
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    written = {"anatomask-run.txt", "config.yaml", "inputs.json", "environment.json", "log.txt"}
    assert kept == {*theirs, *written}
    assert not (run / "ray").exists() and not (run / "checkpoints" / "step_00000001").exists()
    (line,) = (run / "log.txt").read_text().splitlines()
    assert "did not write: checkpoints/mine/model.safetensors, notes.md, pictures/figure.svg and 1 more" in line


def test_overwriting_a_run_with_checkpoints_elsewhere_leaves_the_link_and_the_files_of_others(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "scratch"
    open_run(run, {"seed": 0}, overwrite=False)
    for name, content in (("checkpoints", "step_00000004/model.safetensors"), ("exported", "mine.pth")):
        (elsewhere / name / content).parent.mkdir(parents=True)
        (elsewhere / name / content).write_text("x")
        (run / name).symlink_to(elsewhere / name)
    (run / "checkpoints" / "index.json").write_text("{}")
    open_run(run, {"seed": 1}, overwrite=True)
    assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["mine.pth"]
    assert (run / "checkpoints").is_symlink() and not list((run / "checkpoints").iterdir())
    open_run(run, {"seed": 2}, overwrite=True)


def test_overwriting_a_sweep_takes_the_runs_of_its_trials_with_it(tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    open_run(sweep, SETTINGS, overwrite=False)
    for trial in ("000-a", "001-b"):
        open_run(sweep / trial / "pretrain", SETTINGS, overwrite=False)
    (sweep / "study.db").write_text("")
    (sweep / "001-b" / "pretrain" / "mine.txt").write_text("mine")
    (sweep / "002-c" / "photos").mkdir(parents=True)
    (sweep / "002-c" / "photos" / "config.yaml").write_text("")
    open_run(sweep, SETTINGS, overwrite=True)
    left = {str(path.relative_to(sweep)) for path in sweep.glob("0*/**/*") if path.is_file()}
    assert left == {"001-b/pretrain/mine.txt", "001-b/pretrain/anatomask-run.txt", "002-c/photos/config.yaml"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "data: shards\nseed: 0\n"},
        {"config.yaml": "", "environment.json": "[1]"},
        {"config.yaml": "", "environment.json": '{"packages": ["anatomask"], "python": "3"}', "inputs.json": "{}"},
        {"config.yaml": "", "environment.json": "[" * 100_000},
        {"notes.md": "dear"},
    ],
)
def test_a_folder_that_is_no_run_is_neither_emptied_nor_written_into(
    files: dict[str, str], overwrite: bool, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="is not a run's folder: choose another --name"):
        open_run(tmp_path, SETTINGS, overwrite=overwrite)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_run_of_an_older_version_goes_on_and_is_overwritten(tmp_path: Path) -> None:
    for overwrite in (False, True):
        open_run(tmp_path, SETTINGS, overwrite=False)
        (tmp_path / "anatomask-run.txt").unlink()
        (tmp_path / "metrics.jsonl").write_text("{}")
        open_run(tmp_path, SETTINGS, overwrite=overwrite)
        assert (tmp_path / "metrics.jsonl").exists() is not overwrite
        assert (tmp_path / "anatomask-run.txt").exists()


@pytest.mark.parametrize("file", ["config.yaml", "inputs.json", "environment.json"])
@pytest.mark.parametrize("text", ["5", "[1, 2]", "{", "[" * 100_000, "\0"])
def test_a_damaged_file_of_a_run_is_named_and_overwrite_helps(file: str, text: str, tmp_path: Path) -> None:
    run = tmp_path / "a"
    open_run(run, SETTINGS, overwrite=False)
    (run / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file} is damaged .*--overwrite"):
        open_run(run, SETTINGS, overwrite=False)
    open_run(run, SETTINGS, overwrite=True)


def test_settings_of_any_length_are_told_in_a_few_words(tmp_path: Path) -> None:
    open_run(tmp_path, SETTINGS, overwrite=False)
    with pytest.raises(UserError) as raised:
        open_run(tmp_path, SETTINGS | {"data": "x" * 10**6, "method": list(range(10**5))}, overwrite=False)
    assert len(str(raised.value)) < 800


def test_a_name_is_derived_from_what_the_run_is() -> None:
    base = run_folder("r", "", "pretrain", "x/kbp", SETTINGS)
    assert base.name.startswith("pretrain-kbp-")
    assert base == run_folder("r", "", "pretrain", "x/kbp", SETTINGS | {"cluster": {"w": 2}})
    assert base != run_folder("r", "", "pretrain", "x/kbp", SETTINGS | {"seed": 1})
    assert run_folder("r", "", "pretrain", "x/my data\n", SETTINGS).name.startswith("pretrain-my-data--")
    assert run_folder("r", "mine", "pretrain", "x", SETTINGS).name == "mine"
