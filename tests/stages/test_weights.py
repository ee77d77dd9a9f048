"""`anatomask export-weights` and `anatomask import-weights` as a user runs them, and the snippets of their guide."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from anatomask.cli.main import main
from anatomask.data.fingerprint import ChannelFingerprint, Fingerprint
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.network import read_network
from anatomask.evaluation.results import CaseScore, to_csv
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNet, STUNetConfig
from anatomask.nn.backbones.swin_unetr import SwinUNETRConfig
from anatomask.stages.finetune import FinetuneConfig, initialisation
from anatomask.weights.axes import turned
from anatomask.weights.files import (
    describe_architecture,
    find_weights,
    initialise,
    read_header,
    read_weights,
    weights_digest,
    write_weights,
)

NETWORK = STUNetConfig(base=8)
PREDICTS = {
    "fingerprint": Fingerprint((ChannelFingerprint("CT", "ct", -900.0, 900.0, 0.0, 400.0),)).to_dict(),
    "class_names": {"1": "liver", "2": "spleen"},
    "patch_size": [32, 32, 32],
    "mirror_axes": [0],
    "spacing": [2.0, 2.0, 2.0],
    "initialisation": {"method": "scratch", "run": None},
}
"""Entries of a header without which a network predicts nothing."""
GUIDE = Path(__file__).parents[2] / "docs" / "weights.md"


def write_checkpoints(run: Path, kind: str) -> Path:
    """A run with a `last` and a `best` checkpoint that differ, untrained."""
    names = {"best": "step_00000001", "last": "step_00000002"}
    for seed, name in enumerate(names.values()):
        torch.manual_seed(seed)
        header = {"format": 1, "kind": kind, "dataset": "phantoms", "architecture": describe_architecture(NETWORK)}
        if kind == "pretraining":
            header["method"] = {"name": "AnatoMask"}
            tensors = AnatoMask(AnatoMaskConfig(decoder_width=16), NETWORK).state_dict()
        else:
            header |= PREDICTS | {"architecture": describe_architecture(NETWORK, 2)}
            tensors = STUNet(NETWORK, 2).state_dict()
        write_weights(run / "checkpoints" / name, tensors, header)
    (run / "checkpoints" / "index.json").write_text(json.dumps({**names, "step": 2}))
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/ts-anatomask` and `runs/ts-finetuned` in the current folder."""
    write_checkpoints(tmp_path / "runs/ts-anatomask", "pretraining")
    write_checkpoints(tmp_path / "runs/ts-finetuned", "segmentation")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("format", ["nnunet", "stunet", "monai", "safetensors"])
@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize("run", ["ts-anatomask", "ts-finetuned"])
def test_out_and_in_again(
    runs: Path, run: str, checkpoint: str, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-weights", f"runs/{run}", "--format", format, "--checkpoint", checkpoint]) == 0
    shown = capsys.readouterr().out
    file = Path(shown.splitlines()[0])
    assert file.parent == runs / run / "exported"
    assert ("student.decoder.* (" in shown) == ("teacher.encoder.* (" in shown) == (run == "ts-anatomask")
    assert main(["import-weights", str(file), "--output", "weights/again"]) == 0
    again, source = read_weights(Path("weights/again")), read_weights(find_weights(runs / run, checkpoint))
    encoder = run == "ts-anatomask"
    assert same(again.tensors, {n: t for n, t in source.tensors.items() if not encoder or "student.encoder." in n})
    assert again.header["architecture"] == source.header["architecture"]
    in_their_axes = format in ("nnunet", "stunet")
    assert ("\naxes: z, y, x\n" in shown) == in_their_axes
    assert ("axes: turned from z, y, x to x, y, z" in capsys.readouterr().out) == in_their_axes


def test_imported_weights_start_a_finetuning(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = golden / "b1_depth1_checkpoint.pt", tmp_path / "w"
    assert main(["import-weights", str(file), "--output", str(folder), "--dataset", "random"]) == 0
    shown = capsys.readouterr().out
    assert "module.mask_tokens.4 (read by nothing)" in shown and "axes: turned from z, y, x to x, y, z" in shown
    published = turned(torch.load(file, weights_only=True)["network_weights"])
    widths = (8, 16, 32, 64, 64, 64)
    stunet = STUNetConfig(2, 8, widths=widths)
    config = FinetuneConfig(data="", init=str(folder), network=stunet)
    assert initialisation(config, find_weights(folder)) == {
        "method": "AnatoMask", "run": str(folder), "dataset": "random"
    }  # fmt: skip
    network = STUNet(stunet, 4)
    left_out = initialise(network, read_weights(folder))
    assert {name.split(".")[0] for name in left_out if not name.startswith("encoder.stages.5.")} == {
        "upsample", "decoder", "heads"
    }  # fmt: skip
    stem = published["module.sparse_encoder.sp_cnn.conv_blocks_context.0.0.conv1.weight"]
    assert torch.equal(network.state_dict()["encoder.stages.0.0.conv1.weight"], torch.cat((stem, stem), 1))
    deep = published["module.sparse_encoder.sp_cnn.conv_blocks_context.4.0.conv2.weight"]
    assert torch.equal(network.state_dict()["encoder.stages.4.0.conv2.weight"], deep)


def test_the_command_warns_of_how_published_swin_transformers_merge_patches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`model_swinvit.pt` is of MONAI before 1.5: said on a line, and written into the header."""
    network = SwinUNETRConfig(feature_size=6, depths=(1, 1, 1, 1), window=3)
    names = {
        name: name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc") for name in network.encoder().state_dict()
    }
    state = {f"module.{names[name]}": tensor for name, tensor in network.encoder().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "model_swinvit.pt")
    assert main(["import-weights", str(tmp_path / "model_swinvit.pt"), "--output", str(tmp_path / "w")]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "model_swinvit.pt" in line]
    assert "its patches were merged as in MONAI before 1.5 (its issue 8285): patch_merging is repeated" in line
    assert "--network.patch-merging repeated" in said.out
    assert read_header(tmp_path / "w")["architecture"]["patch_merging"] == "repeated"


def test_an_imported_network_starts_another_but_is_not_evaluated(runs: Path) -> None:
    main(["export-weights", "runs/ts-finetuned", "--format", "stunet", "--output", "s.model"])
    assert main(["import-weights", "s.model", "--output", "w"]) == 0
    network, source = STUNet(NETWORK, 9), read_weights(find_weights(runs / "ts-finetuned", "best"))
    left_out = initialise(network, read_weights(Path("w")))
    assert set(left_out) == {name for name in network.state_dict() if name.startswith("heads.")}
    assert all(torch.equal(t, source.tensors[n]) for n, t in network.state_dict().items() if n not in left_out)
    config = FinetuneConfig(data="", init="w", network=NETWORK)
    assert initialisation(config, Path("w"))["method"] == "finetuned on unknown data"
    with pytest.raises(UserError, match="finetune from it"):
        read_network(Path("w"))


def test_a_tensor_that_was_allowed_to_be_missing_starts_fresh(runs: Path) -> None:
    main(["export-weights", "runs/ts-finetuned", "--format", "nnunet", "--output", "s.pth"])
    content = torch.load("s.pth")
    name, ours = "conv_blocks_localization.2.0.conv3.weight", "decoder.2.0.shortcut.weight"
    del content["network_weights"][name]
    torch.save(content, "s.pth")
    assert main(["import-weights", "s.pth", "--output", "w"]) == 1
    assert main(["import-weights", "s.pth", "--output", "w", "--allow-missing", name, "--dry-run"]) == 0
    assert not Path("w").exists()
    assert main(["import-weights", "s.pth", "--output", "w", "--allow-missing", name]) == 0
    assert read_header(Path("w"))["missing"] == [ours]
    assert ours in initialise(STUNet(NETWORK, 2), read_weights(Path("w")))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["export-weights", "nowhere", "--format", "nnunet"], "nowhere: there is no such file or folder"),
        (["export-weights", "runs/ts-anatomask", "--format", "stunet", "--output", "x.pth"], "ends in .model"),
        (["export-weights", "runs/ts-anatomask", "--format", "monai", "--in-channels", "0"], "in_channels must be"),
        (["export-weights", "runs/ts-anatomask", "--format", "onnx"], "--format"),
        (["export-weights", "runs/ts-anatomask"], "--format"),
        (["export-weights", "--format", "nnunet"], "RUN"),
        (["import-weights", "nowhere.pt", "--output", "w"], "nowhere.pt: there is no such file or folder"),
        (
            ["import-weights", "nowhere.safetensors", "--output", "w"],
            "nowhere.safetensors: there is no such file or folder",
        ),
        (["import-weights", "nowhere.pt"], "--output"),
        (["import-weights", "--output", "w"], "FILE"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    runs: Path, arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = int(str(exit_.code))
    assert code in (1, 2)
    assert named in " ".join(capfd.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("{}", "describes no architecture"),
        ("[1]", "it holds no fields"),
        ("{", "is damaged"),
        (None, "has no header"),
    ],
)
def test_a_safetensors_file_of_somebody_else_is_refused(
    tmp_path: Path, header: str | None, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "x.safetensors", tmp_path / "w"
    save_file({"a": torch.zeros(1)}, file, metadata=None if header is None else {"header": header})
    assert main(["import-weights", str(file), "--output", str(folder)]) == 1
    assert named in " ".join(capsys.readouterr().err.split()) and not folder.exists()


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "place", ["w.pt", "w.safetensors", "w/model.safetensors", "run/checkpoints/step_00000001/model.safetensors"]
)
@pytest.mark.parametrize("command", ["import-weights", "finetune", "evaluate"])
def test_a_malicious_file_is_refused_by_its_name_and_runs_nothing(
    command: str,
    place: str,
    tmp_path: Path,
    prepared: Callable[..., PreparedDataset],
    capfd: pytest.CaptureFixture[str],
) -> None:
    file, marker = tmp_path / place, tmp_path / "it-ran"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": STUNet(NETWORK, 2).state_dict(), "best": Malicious(marker)}, file)
    given = file if file.parent == tmp_path else tmp_path / Path(place).parts[0]
    (file.parent.parent / "index.json").write_text(json.dumps({"last": file.parent.name, "step": 1}))
    if command == "import-weights":
        arguments = [str(file), "--output", str(tmp_path / "out")]
    elif command == "evaluate":
        arguments = ["--run", str(given)]
    else:
        scan = np.random.default_rng(0).integers(-900, 900, (32, 32, 32)).astype(np.int16)
        data = prepared(scan, label=(scan > 0).astype(np.uint8)).path
        runs = ["--runs", str(tmp_path / "runs"), "--loader.patch-size", "32", "32", "32"]
        arguments = ["--data", data, "--init", str(given), "--network.base", "8", *runs]
    assert main([command, *arguments]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("anatomask") and str(given) in line
    assert not marker.exists()
    with suppress(TypeError):
        torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    assert marker.exists()  # so there was something to refuse


def test_nothing_is_replaced_unasked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export-weights", "runs/ts-finetuned", "--format", "nnunet", "--output", "w.pth"]
    imports = ["import-weights", "w.pth", "--output", "w"]
    assert main([*export, "--dry-run"]) == 0 and not Path("w.pth").exists()
    for command in (export, imports):
        assert main(command) == 0
        capsys.readouterr()
        assert main(command) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0
    assert main(["import-weights", "w.pth", "--output", "runs/ts-finetuned", "--overwrite"]) == 1
    assert "is a run's folder" in capsys.readouterr().err


def test_a_folder_is_given_the_usual_file(runs: Path) -> None:
    for format, name in {"nnunet": "nnunet.pth", "safetensors": "model.safetensors"}.items():
        assert main(["export-weights", "runs/ts-anatomask", "--format", format, "--output", "weights"]) == 0
        assert (Path("weights") / name).is_file()
    assert find_weights("weights") == Path("weights").absolute()  # what `finetune --init weights` reads


EVALUATED = {"run": "ts-finetuned", "method": "scratch", "initialisation": "random", "dataset": "phantoms"}


def evaluate(run: Path, checkpoint: str, split: str = "test") -> None:
    """What an evaluation of a checkpoint leaves in the run's folder: one case, one class."""
    digest = weights_digest(find_weights(run, checkpoint))
    (run / "evaluation.json").write_text(json.dumps({"split": split, "checkpoint": checkpoint, "weights": digest}))
    scores = {"dsc": {"mean": 0.5, "sd": None}, "nsd": {"mean": 0.25, "sd": None}}
    kin = {"training": {"seed": 0, "seeds": "a", "starts": "b"}}
    summary = EVALUATED | {"data": "x", "split": split, "cases": 1, "failed": {}} | scores | kin
    (run / "summary.json").write_text(json.dumps(summary))
    row = CaseScore("ts-finetuned", "phantoms", "one", 1, "liver", 0.5, 0.25, 9)
    (run / "cases.csv").write_text(to_csv([row]))


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The fields of a model card, and its text."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize("run", ["ts-anatomask", "ts-finetuned"])
def test_a_folder_for_the_hugging_face_hub(run: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read back strictly, and its card's snippets run, but for those that need scans."""
    export = ["export-weights", f"runs/{run}", "--format", "huggingface", "--output", "weights"]
    assert main([*export, "--license", "cc-by-4.0", "--dry-run"]) == 0 and not Path("weights").exists()
    assert main([*export, "--license", "cc-by-4.0"]) == 0
    assert sorted(path.name for path in Path("weights").iterdir()) == ["README.md", "model.json", "model.safetensors"]
    read, source = read_weights(Path("weights")), read_weights(find_weights(runs / run, "best"))
    encoder = run == "ts-anatomask"
    assert same(read.tensors, {n: t for n, t in source.tensors.items() if not encoder or "student.encoder." in n})
    assert read.header == source.header
    fields, text = card_of(Path("weights"))
    assert (fields["license"], fields["library_name"]) == ("cc-by-4.0", "anatomask")
    assert {"medical", "3d", "stunet", "self-supervised" if encoder else "segmentation"} == set(fields["tags"])
    assert ("pretrained without labels by AnatoMask on phantoms" in text) == encoder
    assert "model-index" not in fields and "these weights were not evaluated" in text
    scope: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, scope)
    loaded = scope["encoder" if encoder else "network"].state_dict()
    prefix = "student.encoder." if encoder else ""
    assert same(loaded, {name.removeprefix(prefix): tensor for name, tensor in read.tensors.items()})
    assert main(export) == 1 and "holds weights already" in capsys.readouterr().err
    assert main([*export, "--overwrite"]) == 0
    assert card_of(Path("weights"))[0]["license"] == "unknown"


def test_the_card_names_the_scores_of_these_very_weights(runs: Path) -> None:
    run = runs / "ts-finetuned"
    export = ["export-weights", str(run), "--format", "huggingface"]
    evaluate(run, "best", split="train")
    assert main(export) == 0
    fields, text = card_of(run / "exported/huggingface")
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"] == {"type": "phantoms", "name": "phantoms", "split": "train"}
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("dsc", 0.5), ("nsd", 0.25)]
    assert "They were trained on, so the scores say nothing of new scans" in text and "| DSC | 50.0 | – |" in text
    for flags in (["--checkpoint", "last"], ["--in-channels", "2"]):
        assert main([*export, *flags, "--overwrite"]) == 0
        assert "model-index" not in card_of(run / "exported/huggingface")[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--format", "huggingface", "--output", "runs/ts-finetuned"], "is a run's folder: choose another"),
        (["--format", "huggingface", "--output", "file"], "file is a file: choose a folder"),
        (["--format", "huggingface", "--output", "mine"], r"mine holds a README\.md already: choose another folder"),
        (
            ["--format", "huggingface", "--output", "mine", "--overwrite"],
            r"mine holds a README\.md already: choose another folder$",
        ),
        (["--format", "monai", "--output", "s3://bucket/x.pt"], "output must be a folder"),
        (["--format", "monai", "--license", "mit"], "license is written by huggingface and monai-bundle alone"),
        (["--format", "huggingface", "--license", "a b"], "license must be a name as cc-by-4.0"),
    ],
)
def test_a_folder_that_is_not_for_weights_is_refused(
    flags: list[str], says: str, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    with suppress(SystemExit):
        assert main(["export-weights", "runs/ts-finetuned", *flags]) == 1
    assert re.search(says, " ".join(re.sub("[│]", " ", capfd.readouterr().err).split()))
    assert Path("mine/README.md").read_text() == "mine" and len(list(Path("mine").iterdir())) == 1


def test_the_snippets_of_the_guide_run(
    runs: Path, golden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["export-weights", "runs/ts-finetuned", "--format", "stunet", "--output", "base_ep4k.model"])
    published = torch.load(golden / "b1_depth1_checkpoint.pt", weights_only=True)
    torch.save(published, "STUNet_B_head_latest.pt")
    del published["network_weights"]["module.dense_decoder.dec.0.up_sample.weight"]
    torch.save(published, "other_decoder.pt")
    snippets = re.findall(r"^```(sh|python)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 7
    for language, text in snippets:
        if language == "python":
            exec(compile(text, str(GUIDE), "exec"), {})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command, *arguments = shlex.split(line)
            assert command == "anatomask" and main(arguments) == 0, line
    assert "50 tensors loaded" in capsys.readouterr().out
    assert read_header(Path("weights/encoder"))["method"] == {"name": "SparK"}
    assert len(read_weights(Path("weights/encoder")).tensors) == 50
