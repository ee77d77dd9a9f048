"""Sweeps: the command, the arithmetic of resources, and the chain of a trial."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from anatomask.cli.arguments import parse
from anatomask.cli.main import main
from anatomask.cluster_settings import AtOnce, ClusterConfig
from anatomask.cluster_shares import TrainingResources, TrialResources
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.results import CaseScore, summarise, to_csv
from anatomask.files import exclusive_lock
from anatomask.recipes import RECIPES
from anatomask.runs.belongings import ENVIRONMENT, claim_folder
from anatomask.runs.store import Store
from anatomask.stages import pretrain
from anatomask.stages.sweep import check, report, run_stage
from anatomask.sweeps.chain import build_chain
from anatomask.sweeps.graph import Stage, unique
from anatomask.sweeps.space import grid, space_names
from anatomask.sweeps.study import ERROR, METRIC, TRIAL, StudySearch, latest_trials, open_study
from anatomask.sweeps.trials import run_trial
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.job import TrainingJob
from anatomask.training.journal import JOURNAL
from tests.bad_input.world import OF_TRIAL, RESOURCES, train_here, without_ray
from tests.sweeps.test_space import table_of

REPOSITORY = Path(__file__).parents[2]
RATIOS = grid({"method.mask_ratio": (0.6, 0.8, 0.9)})
SETTINGS = ["--recipe", "tiny", "--space", "table3_mask_ratio", "--pretrain-data", "x", "--finetune-data", "y", "z"]


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (
            [*SETTINGS, "--space", "table9", "--pretrain-data", ".", "--finetune-data", "."],
            1,
            "--space table9: no such space; there are search, table1",
        ),
        ([*SETTINGS, "--pretrain.data", "x"], 2, "pretrain.data is set by the sweep"),
        ([*SETTINGS, "--finetune.init", "scratch2"], 2, "finetune.init is set by the sweep"),
        ([*SETTINGS, "--pretrain.method.mask-ratio", "2"], 2, "mask_ratio must lie"),
        ([*SETTINGS, "--concurrent", "0"], 2, "concurrent must be at least 1"),
        ([*SETTINGS, "--finetunings-at-once", "0"], 2, "finetunings_at_once must be at least 1"),
        ([*SETTINGS, "--seeds", "1", "1"], 2, "seeds names 1 twice"),
        ([*SETTINGS, "--seeds", "1", "2", "--finetune.seed", "4"], 2, "finetune.seed is set by the sweep"),
        ([*SETTINGS, "--cluster.gpu", "False", "--finetune-gpu-type", "L4"], 2, "finetune_gpu_type L4 needs GPUs"),
        ([*SETTINGS, "--cluster.workers", "3"], 2, "training.batch_size 2 must be at least"),
        (SETTINGS[:-3], 2, "--finetune-data"),
        (SETTINGS, 1, "x: there is no such file or folder"),
    ],
)
def test_the_command_refuses_by_name(argv: list[str], code: int, named: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        result = main(["sweep", *argv])
    except SystemExit as exit_:
        result = int(str(exit_.code))
    assert result == code
    assert named in " ".join(capfd.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if recipe.method is not None])
def test_every_recipe_sweeps_its_own_stages(recipe: str) -> None:
    argv = ["--recipe", recipe, *SETTINGS[2:], "--pretrain.training.epochs", "777"]
    config = parse("sweep", argv, RECIPES).config
    pretrain, finetune = RECIPES[recipe].settings("pretrain"), RECIPES[recipe].settings("finetune")
    assert config.pretrain == replace(pretrain, data="", training=replace(pretrain.training, epochs=777))
    assert config.finetune == replace(finetune, data="")
    assert config.finetune_data == ("y", "z")


# The chain


def test_trials_are_scored_on_val_and_on_test_only_where_there_is_none(
    labelled: PreparedDataset, tmp_path: Path
) -> None:
    splits = Path(labelled.path) / "splits.json"
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path]
    for text, expected in [('{"val": ["one"], "test": ["two"]}', "val"), ('{"val": [], "test": ["one"]}', "test")]:
        splits.write_text(text)
        assert build_chain(parse("sweep", argv, RECIPES).config).splits == {labelled.path: expected}
    with pytest.raises(UserError, match="--split val"):
        build_chain(parse("sweep", [*argv, "--split", "val"], RECIPES).config)
    with pytest.raises(UserError, match="two folders are named prepared"):
        other = shutil.copytree(labelled.path, tmp_path / "elsewhere" / Path(labelled.path).name)
        build_chain(parse("sweep", [*argv, str(other)], RECIPES).config)


def test_a_field_that_a_space_misnames_is_refused_before_anything_starts(labelled: PreparedDataset) -> None:
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path]
    for stage, epochs, steps in (("pretrain", 3, 5), ("finetune", 4, 2)):
        argv += [f"--{stage}.training.epochs", str(epochs), f"--{stage}.training.steps-per-epoch", str(steps)]
    config = parse("sweep", argv, RECIPES).config
    work = check(build_chain(config), RATIOS)
    assert (work.trainings, work.done, work.updates) == (6, 0, 3 * 5 + 4 * 2)
    assert sorted(one.updates for one in work.left.values()) == [4 * 2] * 3 + [3 * 5] * 3
    with pytest.raises(UserError, match=r"--space table3_mask_ratio: method.mask_rato: no such field"):
        check(build_chain(config), grid({"method.mask_rato": (0.6,)}))


def test_what_trials_and_tables_have_in_common_is_one_stage(labelled: PreparedDataset) -> None:
    """The 12 rows of Tables 1 to 3 are 9 pretrainings (at the published settings, to which the rows are added)."""
    argv = ["--recipe", "paper-b", *SETTINGS[2:5], labelled.path, "--finetune-data", labelled.path]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    rows = [row for name in space_names() if name.startswith("table") for row in table_of(name).rows.values()]
    stages = unique(stage for row in rows for stage in chain.stages(row).values())
    assert len(rows) == 12
    assert [len([one for one in stages if one.verb == verb]) for verb in ("pretrain", "finetune", "evaluate")] == [
        9
    ] * 3
    for number, one in enumerate(stages):
        assert all(need.name in {earlier.name for earlier in stages[:number]} for need in one.needs.values())


def test_the_papers_path_starts_from_the_network_of_the_first_data_set(
    labelled: PreparedDataset, tmp_path: Path
) -> None:
    other = shutil.copytree(labelled.path, tmp_path / "elsewhere" / "second")
    (other / "splits.json").write_text('{"train": ["one"], "val": [], "test": ["two"]}')
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, str(other)]
    for start, expected in (("pretrained", "pretrain"), ("first", f"finetune-{Path(labelled.path).name}")):
        stages = build_chain(parse("sweep", [*argv, "--start-from", start], RECIPES).config).stages({})
        assert stages["finetune-second"].needs["init"] is stages[expected]
        assert stages["evaluate-second"].needs["run"] is stages["finetune-second"]


def test_finetuning_may_take_other_gpus_than_the_pretraining(labelled: PreparedDataset) -> None:
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--cluster.address", "auto"]

    def stages(*more: str) -> list[Stage]:
        return list(build_chain(parse("sweep", [*argv, *more], RECIPES).config).stages({}).values())

    mixed = stages("--cluster.gpu-type", "H100", "--finetune-gpu-type", "A10G")
    assert [one.config.cluster.gpu_type for one in mixed] == ["H100", "A10G", "A10G"]
    assert [one.config.cluster.gpu_type for one in stages("--cluster.gpu-type", "H100")] == ["H100"] * 3
    assert [one.key for one in mixed] == [one.key for one in stages()]


def test_fields_of_any_stage_vary_each_where_it_belongs(labelled: PreparedDataset) -> None:
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    point = {"method.mask_ratio": 0.7, "pretrain.seed": 5, "finetune.optimiser.lr": 0.5, "inference.overlap": 0.25}
    pretrained, finetuned, evaluated = chain.stages(point).values()
    assert (pretrained.config.method.mask_ratio, pretrained.config.seed) == (0.7, 5)
    assert (finetuned.config.optimiser.lr, finetuned.config.seed) == (0.5, 0)
    assert evaluated.config.inference.overlap == 0.25
    usual = list(chain.stages({"finetune.optimiser.lr": 0.5}).values())
    assert usual[0].key == chain.stages({})["pretrain"].key  # a field of finetuning leaves the pretraining as it is
    for wrong in ("finetune.optimiser.rate", "inference.lap", "finetuning.seed"):
        with pytest.raises(UserError, match="no such field"):
            chain.stages({wrong: 1})


def test_a_trial_from_scratch_needs_no_pretraining(labelled: PreparedDataset) -> None:
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--start-from", "first"]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    scratch = chain.stages({"finetune.init": "scratch", "method.mask_ratio": 0.7})
    data = Path(labelled.path).name
    assert [*scratch] == [f"finetune-{data}", f"evaluate-{data}"]
    assert scratch[f"finetune-{data}"].config.init == "scratch" and not scratch[f"finetune-{data}"].needs
    usual = chain.stages({"method.mask_ratio": 0.7})
    named = chain.stages({"finetune.init": "pretrained", "method.mask_ratio": 0.7})
    assert [one.key for one in usual.values()] == [one.key for one in named.values()]
    assert scratch[f"finetune-{data}"].key != usual[f"finetune-{data}"].key
    with pytest.raises(UserError, match="must be pretrained or scratch, not runs/x"):
        chain.stages({"finetune.init": "runs/x"})


def test_seeds_are_chains_of_one_trial(labelled: PreparedDataset) -> None:
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--seeds", "3", "7"]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    stages = chain.stages({"method.mask_ratio": 0.7})
    data = Path(labelled.path).name
    assert [*stages] == [
        f"{link}-seed{seed}" for seed in (3, 7) for link in ("pretrain", f"finetune-{data}", f"evaluate-{data}")
    ]
    seeds = [stage.config.seed for name, stage in stages.items() if not name.startswith("evaluate")]
    assert seeds == [3, 3, 7, 7]
    for seed in (3, 7):
        assert stages[f"finetune-{data}-seed{seed}"].needs["init"] is stages[f"pretrain-seed{seed}"]
    for field in ("seed", "finetune.seed"):
        with pytest.raises(UserError, match="--seeds sets it too"):
            chain.stages({field: 1})
    assert check(chain, RATIOS).trainings == 3 * 2 * 2


def test_a_pretraining_on_several_folders_is_that_of_the_verb(
    labelled: PreparedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = str(shutil.copytree(labelled.path, tmp_path / "elsewhere" / "second"))
    argv = [*SETTINGS[:5], labelled.path, other, "--finetune-data", other]
    argv += ["--pretrain.splits", "train", "val"]
    stage = build_chain(parse("sweep", argv, RECIPES).config).stages({})["pretrain"]
    assert stage.config.data == (labelled.path, other)
    job = pretrain.build_job(stage.config)
    assert job.inputs["data"] == stage.digest and len(job.sequence.cases) == 4
    with pytest.raises(SystemExit):
        parse("sweep", [*argv[:5], f"{other}/", other, "--finetune-data", other], RECIPES)
    assert "pretrain_data names" in (said := capfd.readouterr().err.replace("\n", " ")) and "twice" in said


def test_a_data_set_of_two_channels_is_finetuned_beside_others(
    labelled: PreparedDataset, prepared: Callable[..., PreparedDataset]
) -> None:
    image = np.arange(20**3, dtype=np.int16).reshape(20, 20, 20)
    petct = prepared(image, image, label=(image > 9).astype(np.uint8), root="petct")
    (Path(petct.path) / "splits.json").write_text('{"train": [], "val": ["one"], "test": []}')
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, petct.path, "--start-from", "first"]
    stages = build_chain(parse("sweep", argv, RECIPES).config).stages({})
    channels = {name: stage.config.network.in_channels for name, stage in stages.items() if name[0] != "e"}
    assert channels == {"pretrain": 1, f"finetune-{Path(labelled.path).name}": 1, "finetune-petct": 2}


def test_what_was_trained_is_not_trained_again_by_this_sweep_or_another(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials in this process, without Ray; "two", the case that is scored, is a copy of "one"."""
    for path in [path for path in Path(labelled.path).rglob("one*") if path.is_file()]:
        shutil.copy(path, path.with_name(path.name.replace("one", "two")))
    trained: list[str] = []

    def fit(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
        if Checkpoints(job.run).step() < job.total_steps:
            trained.append(job.run.name)
        train_here(job, resources, max_failures)

    without_ray(monkeypatch, fit)
    monkeypatch.setattr("anatomask.stages.sweep.fit", fit)
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--runs", str(tmp_path / "runs")]
    argv += ["--pretrain.splits", "train", "--pretrain.method.decoder-width", "16"]
    for stage in ("pretrain", "finetune"):
        argv += [f"--{stage}.network.base", "2", f"--{stage}.loader.patch-size", "32", "32", "32"]
        argv += [f"--{stage}.training.epochs", "1", f"--{stage}.training.steps-per-epoch", "1"]
        argv += [f"--{stage}.optimiser.warmup-epochs", "0", f"--{stage}.training.batch-size", "1"]
    points = [{"method.mask_ratio": ratio} for ratio in (0.6, 0.8, 0.6)]
    found, run = [], partial(run_stage, resources=OF_TRIAL, store=Store(tmp_path / "runs"))
    for name in ("one", "other"):
        chain = build_chain(parse("sweep", [*argv, "--name", name], RECIPES).config)
        found.append([run_trial(chain, f"00{k}", point, run) for k, point in enumerate(points)])
        links = sorted(path.name for path in (chain.folder / "002").iterdir())
        data = Path(labelled.path).name
        assert links == [f"evaluate-{data}", f"finetune-{data}", "pretrain"]
        assert (chain.folder / "002/pretrain").resolve() == (chain.folder / "000/pretrain").resolve()
        assert check(chain, RATIOS).done == 4  # of the rows 0.6, 0.8 and 0.9
    assert found[0] == found[1] and found[0][0] == found[0][2]
    assert sorted(name.partition("-")[0] for name in trained) == ["finetune", "finetune", "pretrain", "pretrain"]
    assert len({path.name for path in (tmp_path / "runs/store").glob("[!.]*")} - set(trained)) == 2  # the evaluations


def test_a_trials_trainings_tell_their_workers(
    labelled: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports count hours by them, and another number of them may change the last digits."""
    monkeypatch.setattr("anatomask.stages.sweep.fit", lambda *given: None)
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--runs", str(tmp_path)]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    stages = chain.stages({}) | chain.stages({"finetune.init": "scratch"})
    for workers in (4, 3, 2):
        resources = TrialResources(replace(RESOURCES, workers=workers), RESOURCES, side_by_side=1)
        for one in (stage for stage in stages.values() if stage.verb != "evaluate"):
            run_stage(one, tmp_path / one.verb, {}, resources, chain.store)
        if workers == 3:  # and it came to its end
            (tmp_path / "pretrain/checkpoints").mkdir()
            (tmp_path / "pretrain/checkpoints/index.json").write_text(json.dumps({"step": 1_000_000}))
    told = {verb: json.loads((tmp_path / verb / ENVIRONMENT).read_text()) for verb in ("pretrain", "finetune")}
    assert told["pretrain"]["resources"] == asdict(replace(RESOURCES, workers=3))
    assert told["finetune"]["resources"] == asdict(RESOURCES)
    (line,) = (tmp_path / "pretrain" / JOURNAL).read_text().splitlines()
    assert line.endswith("resources.workers is 4 there, 3 here")


OTHER = {"CPU": 64.0, "memory": 1e10}


@pytest.mark.parametrize(("again", "threads"), [(False, None), (True, None), (False, "5"), (True, "5")])
def test_a_sweep_that_the_cluster_refuses_writes_and_removes_nothing(
    again: bool,
    threads: str | None,
    labelled: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A training is too large, or the scoring of a case takes more CPUs than a node of its GPUs has."""

    def refuse(config: ClusterConfig, at_once: AtOnce, finetuning: ClusterConfig) -> TrialResources:
        if threads is None:
            raise UserError("too small")
        return OF_TRIAL

    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--runs", str(tmp_path), "--name", "it"]
    folder = tmp_path / "it"
    if again:
        claim_folder(folder)
        open_study(folder, RATIOS)
    before = {path: path.read_bytes() for path in folder.glob("*")}
    monkeypatch.setattr("anatomask.stages.sweep.running", nullcontext)
    monkeypatch.setattr("anatomask.stages.sweep.trial_resources", refuse)
    monkeypatch.setattr(
        "anatomask.stages.sweep.node_resources", lambda: [OTHER, {"CPU": 4.0, "GPU": 1.0, "memory": 1e10}]
    )
    argv += ["--cluster.threads", threads] if threads else []
    assert main(["sweep", *argv, *(["--overwrite"] if again else [])]) == 1
    assert ("no node has 5 CPUs, the largest has 4" if threads else "too small") in capsys.readouterr().err
    assert folder.exists() == again and {path: path.read_bytes() for path in folder.glob("*")} == before


def test_a_sweep_ends_with_the_tables_of_a_report(
    labelled: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three trials one failed, and the results of another were removed; a run from scratch lies beside them."""
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--runs", str(tmp_path), "--name", "it"]
    chain = build_chain(parse("sweep", argv, RECIPES).config)
    chain.folder.mkdir()
    data = Path(labelled.path).name

    def write(folder: Path, level: float, method: str, seeds: str) -> None:
        folder.mkdir(parents=True)
        scores = [CaseScore("x", data, f"case{k}", 1, "class1", level + k / 100, level, 9) for k in range(6)]
        (folder / "cases.csv").write_text(to_csv(scores))
        kin = {"seed": 0, "seeds": seeds, "starts": "all alike"}
        of = {"run": seeds, "method": method, "initialisation": seeds, "dataset": data, "data": labelled.path}
        (folder / "summary.json").write_text(json.dumps({**of, "split": "val", **summarise(scores), "training": kin}))

    study = open_study(chain.folder, RATIOS)
    search = StudySearch(study, RATIOS, seed=0)
    for number, level in enumerate((0.5, 0.8, 0.6)):
        trial = search.suggest(f"t{number}")[TRIAL]
        if number < 2:
            write(chain.folder / trial / f"evaluate-{data}", level, "AnatoMask", trial)
            search.on_trial_complete(f"t{number}", {METRIC: level, f"scores/{data}": level})
        else:
            search.prunes(f"t{number}", {METRIC: 0.0, ERROR: "no memory, again"})
            search.on_trial_complete(f"t{number}", error=True)
    write(tmp_path / "from-scratch", 0.4, "scratch", "from-scratch")
    report(chain, study, RATIOS)
    shown = capsys.readouterr().out
    table = (chain.folder / "table.md").read_text()
    assert f"| mask_ratio=0.8 | trial 1 | {data} | 1 | **82.5 ± 1.9** | **80.0 ± 0.0** | 6 |" in table
    assert "| mask_ratio=0.8 – mask_ratio=0.6, DSC | 1 | +30.0 [+30.0, +30.0] |" in table
    assert "| mask_ratio=0.6 – scratch, DSC |" in table and "have no run from scratch" not in table
    assert "Without a score: mask_ratio=0.9 (failed: no memory, again)." in table
    assert all(word in shown for word in ("82.5 ± 1.9", "Verdict", "better", "table.csv", "sweep.csv", "study.png"))
    assert (chain.folder / "study.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(chain.folder / "000-mask_ratio=0.6")
    (tmp_path / "from-scratch/cases.csv").unlink()
    report(chain, study, RATIOS)
    said = capsys.readouterr()
    assert "mask_ratio=0.6 is left out of the tables" in said.err + said.out
    assert "--split val`, and repeat the command" in (chain.folder / "table.md").read_text()
    assert '"no memory, again"' in (chain.folder / "sweep.csv").read_text()
    again = latest_trials(open_study(chain.folder, RATIOS))[2]
    assert again.state == TrialState.WAITING and ERROR not in again.user_attrs
    assert "mask_ratio=0.6,000-mask_ratio=0.6,complete,0.6,0.5,0.5," in (chain.folder / "sweep.csv").read_text()


def test_two_processes_never_work_on_one_sweep(
    labelled: PreparedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [*SETTINGS[:5], labelled.path, "--finetune-data", labelled.path, "--runs", str(tmp_path), "--name", "it"]
    with exclusive_lock(tmp_path / ".it.lock"):
        assert main(["sweep", *argv, "--overwrite"]) == 1
    assert "it is in use by another process" in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "it").exists()
