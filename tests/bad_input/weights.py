"""Bad weights: of a run, to start from, to export and to import."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from tests.bad_input.kinds import EVALUATE, EXPORT, NEW_FINETUNING, TRANSFER, Kind, Spoil
from tests.bad_input.spoiling import DEEP, RESULTS, cut, directory, every, flip, of_json, pipe, remove, text, weights

FINETUNED = "runs/finetuned"
STEP = f"{FINETUNED}/checkpoints/step_00000004"
INDEX, TENSORS = f"{FINETUNED}/checkpoints/index.json", f"{STEP}/model.safetensors"
IMPORT = "import-weights w.pth --output imported"
BUNDLE = f"export-weights {FINETUNED} --format monai-bundle"
PRETRAINED_BUNDLE = "export-weights runs/pretrained --format monai-bundle"


def entry(name: str, value: object) -> Spoil:
    """Set an entry of the header of the finetuned weights."""
    return weights(TENSORS, lambda tensors, header: header.update({name: value}))


def without(name: str) -> Spoil:
    """Remove an entry of the header of the finetuned weights."""
    return weights(TENSORS, lambda tensors, header: header.pop(name) and None)


def lost(name: str) -> Spoil:
    """Remove a tensor of the finetuned weights."""
    return weights(TENSORS, lambda tensors, header: tensors.pop(name) is None)


def poisoned(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Let a tensor hold NaN."""
    tensors["encoder.stages.0.0.conv1.weight"].fill_(float("nan"))


class Foreign:
    """What makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (Path("it-ran"),)


def torch_file(content: Any) -> Spoil:
    """Write a PyTorch file."""
    return lambda folder: torch.save(content, folder / "w.pth")


def reading(name: str, spoil: Spoil, says: str, command: str = EVALUATE) -> Kind:
    """Return the kind of bad weights that a command reads; they were not evaluated before."""
    return Kind(name, command, says, every(*map(remove, RESULTS), spoil))


KINDS = [
    Kind(
        "initial weights that are not there",
        f"{NEW_FINETUNING} --init nowhere",
        "nowhere is neither a run.*check the path",
    ),
    Kind(
        "initial weights that are a file",
        f"{NEW_FINETUNING} --init w.pth",
        "w.pth is a file, not a run.*import-weights",
        text("w.pth", "x"),
    ),
    Kind(
        "initial weights in an empty folder", f"{NEW_FINETUNING} --init new", "new is neither a run", directory("new")
    ),
    Kind("initial weights of another size", f"{TRANSFER} --network.base 4", "widths.*set network.base"),
    Kind(
        "initial weights of channels that do not repeat",
        f"{NEW_FINETUNING} --init runs/pretrained --network.in-channels 2",
        "set --network.in-channels 1",
    ),
    Kind("a run that is not there", "evaluate --run nowhere", "nowhere: there is no such file or folder"),
    Kind(
        "a pretraining to evaluate",
        "evaluate --run runs/pretrained",
        "pretraining weights, not a segmentation network; run `anatomask finetune`",
    ),
    reading("an index that is no JSON", text(INDEX, "{"), "index.json is damaged.*--overwrite"),
    reading("an index that is a number", text(INDEX, "5"), "index.json"),
    reading("an index that is a list", text(INDEX, "[]"), "index.json"),
    reading("an index of many levels", text(INDEX, DEEP), "index.json"),
    reading(
        "an index that leads outside",
        of_json(INDEX, lambda c: c | {"best": "../../../pretrained/checkpoints/step_00000004"}),
        "index.json",
    ),
    reading("an index of numbers", of_json(INDEX, lambda c: c | {"best": 7}), "index.json"),
    reading("a checkpoint that is missing", remove(STEP), "step_00000004/model.safetensors does not exist: give"),
    reading(
        "weights that are cut off",
        cut(TENSORS, 100_000),
        "model.safetensors is not a complete safetensors file.*copy or train",
    ),
    reading("weights with a flipped byte", flip(TENSORS), "model.safetensors is damaged.*its checksum.*copy or train"),
    reading("weights with a flipped header", flip(TENSORS, 0.0), "model.safetensors is not a complete"),
    reading("weights that are empty", text(TENSORS, ""), "model.safetensors is not a complete"),
    reading("weights that are a folder", directory(TENSORS), "model.safetensors does not exist"),
    reading("weights that are a pipe", pipe(TENSORS), "model.safetensors does not exist"),
    reading("weights that are a pickle", text(TENSORS, pickle.dumps(Foreign())), "model.safetensors is not a complete"),
    reading(
        "weights of NaN",
        weights(TENSORS, poisoned),
        r"step_00000004: encoder\.stages\.0\.0\.conv1\.weight holds values that are not finite",
    ),
    reading("weights that lack a tensor", lost("heads.0.weight"), "heads.0.weight is missing"),
    reading(
        "weights without a description",
        weights(TENSORS, lambda t, h: "{"),
        "the header of .*model.safetensors is damaged",
    ),
    reading("weights described by a list", weights(TENSORS, lambda t, h: "[]"), "is damaged .it holds no fields"),
    reading("weights described in many levels", weights(TENSORS, lambda t, h: DEEP), "model.safetensors"),
    reading("weights of an unknown kind", entry("kind", "magic"), "magic weights, not a segmentation network; run"),
    reading(
        "weights of an unknown architecture",
        entry("architecture", {"name": "unet"}),
        "architecture 'unet' is unknown here: there are stunet",
    ),
    reading("an architecture that is a list", entry("architecture", [1]), "architecture"),
    reading(
        "an architecture of strange fields",
        entry("architecture", {"name": "stunet", "colour": 1}),
        "architecture cannot be read",
    ),
    reading(
        "an architecture without classes",
        weights(TENSORS, lambda t, h: h["architecture"].pop("classes") and None),
        "classes",
    ),
    *(
        reading(
            f"weights without {name}",
            without(name),
            f"{name}|finetune from it",
        )
        for name in (
            "architecture",
            "patch_size",
            "mirror_axes",
            "spacing",
            "fingerprint",
            "class_names",
            "initialisation",
        )
    ),
    reading("weights without the data's name", without("data"), "data", "evaluate --run runs/finetuned"),
    reading("a patch of words", entry("patch_size", "big"), "patch_size", f"{EVALUATE} --overwrite"),
    reading("a fingerprint of words in weights", entry("fingerprint", "wide"), "fingerprint"),
    reading(
        "weights of other classes",
        entry("class_names", {"1": "heart"}),
        "classes: .* was trained with .*heart.*prepare the data as",
    ),
    reading(
        "weights of another spacing", entry("spacing", [1, 1, 1]), "spacing: .* was trained with .*prepare the data as"
    ),
    reading(
        "an export of no run",
        text("x", ""),
        "nowhere: there is no such file or folder",
        "export-weights nowhere --format nnunet",
    ),
    reading(
        "an export of a wrong ending",
        text("x", ""),
        "--output w.onnx: a file of format nnunet ends in",
        "export-weights runs/finetuned --format nnunet --output w.onnx",
    ),
    reading(
        "an export that exists",
        text("w.pth", "precious"),
        "w.pth exists: choose another --output, or --overwrite",
        "export-weights runs/finetuned --format nnunet --output w.pth",
    ),
    reading(
        "an export of an unknown kind", entry("kind", "magic"), "kind 'magic' cannot be exported, only those of", EXPORT
    ),
    Kind(
        "an export of a whole network for a loader of encoders",
        "export-weights runs/finetuned --format nnunet --output w.pt",
        r"load nothing of this network. Choose an --output that ends in \.pth",
    ),
    Kind(
        "a bundle of a pretraining",
        BUNDLE.replace(FINETUNED, "runs/pretrained"),
        "these weights are of pretraining: finetune",
    ),
    reading("a bundle without a normalisation", without("fingerprint"), "how its data were normalised", BUNDLE),
    Kind("a bundle of repeated channels", f"{BUNDLE} --in-channels 2", "in_channels is not for monai-bundle"),
    Kind(
        "a bundle over a file of somebody else",
        f"{BUNDLE} --output scans",
        "scans holds a LICENSE already: choose another folder$",
        text("scans/LICENSE", "precious"),
    ),
    reading(
        "an import with plans of two axes",
        torch_file(
            {
                "network_weights": {"conv_blocks_context.0.0.conv1.weight": torch.zeros(2, 1, 3, 3, 3)},
                "init_args": {
                    "configuration": "2d",
                    "plans": {"configurations": {"2d": {"pool_op_kernel_sizes": [[1, 1], [2, 2]]}}},
                },
            }
        ),
        r"init_args.plans of .*w.pth: strides \[\[1, 1\].*are not understood",
        IMPORT,
    ),
    reading("an import of nothing", text("x", ""), "w.pth: there is no such file or folder", IMPORT),
    reading(
        "an import of a pickle that runs code",
        text("w.pth", pickle.dumps(Foreign())),
        "w.pth is refused.*Ask its author",
        IMPORT,
    ),
    reading(
        "an import of a torch file that runs code",
        torch_file({"network_weights": Foreign()}),
        "w.pth is refused.*Ask its author",
        IMPORT,
    ),
    reading("an import of text", text("w.pth", "hello"), "w.pth", IMPORT),
    reading(
        "an import of a list",
        torch_file([1]),
        "w.pth holds no dictionary of tensors: not a checkpoint",
        IMPORT,
    ),
    reading(
        "an import of another network",
        torch_file({"state_dict": {"conv.weight": torch.zeros(1)}}),
        "w.pth holds no tensor named.*of no network that is known here",
        IMPORT,
    ),
    reading(
        "an import into a run",
        torch_file({}),
        "--output runs/finetuned is a run's folder: choose another",
        "import-weights w.pth --output runs/finetuned",
    ),
]
