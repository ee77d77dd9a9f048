"""Recipe: a network, a method, a scale and a target, and the settings of every verb that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tyro import MISSING

from anatomask.config import (
    EvaluateConfig,
    ExportWeightsConfig,
    FinetuneConfig,
    ImportWeightsConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
    RecipesConfig,
    ReportConfig,
    SurveyConfig,
)
from anatomask.data.samples import LoaderConfig
from anatomask.data.settings import PhantomConfig, PreprocessConfig
from anatomask.errors import UserError
from anatomask.methods import method_config
from anatomask.methods.base import MethodConfig
from anatomask.nn.backbones import backbone_config
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.recipes.parts import METHODS, NETWORKS, TARGETS, Scale, Target
from anatomask.settings import Settings, required_fields
from anatomask.sweeps.settings import ReproduceConfig, SweepConfig

VERBS: Mapping[str, type[Settings]] = {
    "phantom": PhantomConfig,
    "survey": SurveyConfig,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "sweep": SweepConfig,
    "reproduce": ReproduceConfig,
    "export-weights": ExportWeightsConfig,
    "import-weights": ImportWeightsConfig,
    "recipes": RecipesConfig,
}
"""Settings of each verb."""

NOT_RUN = "not run"


@dataclass(frozen=True)
class Cost:
    """Cost of an update of one of a recipe's trainings."""

    tflop: float
    """Floating-point operations in 10^12, by the arithmetic of `--dry-run`."""
    gib: float
    """Memory of weights, gradients, moments and activations in GiB, by the same arithmetic."""
    measured: str = NOT_RUN
    """Time and memory that were measured: the figures, the machine, and the file that holds them."""


@dataclass(frozen=True)
class Recipe:
    """Complete configuration, by its parts."""

    about: str
    """Description in a line."""
    network: str
    """Network: a name in `NETWORKS`, or one that `--network` takes."""
    method: str | None
    """Pretraining: a name in `METHODS`, or one that `--method` takes. None: the network is only finetuned."""
    scale: Scale
    target: Target
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """Cost of an update, by verb."""
    reached: str = NOT_RUN
    """Scores that were reached, on which data, and the file that holds them."""

    def composed(self, network: str | None, method: str | None, target: str | None = None) -> Recipe:
        """Return this recipe with another network, method or target, as `--network`, `--method` and `--target` name it.

        What this recipe has already stays: `stunet` does not change the size of an STU-Net.

        Raises:
            UserError: there is no network, method or target of that name.
        """
        if target is not None and target not in TARGETS:
            raise UserError(f"--target {target}: no such target; there are {', '.join(TARGETS)}")
        changed = self if target is None else replace(self, target=TARGETS[target])
        if network is not None and backbone_config(network) is not type(self.backbone()):
            changed = replace(changed, network=self.scale.sizes.get(network, network))
        if method is not None and (self.method is None or method_config(method) is not type(self.pretraining())):
            changed = replace(changed, method=method)
        return changed

    def backbone(self) -> BackboneConfig:
        """Return the settings of the network, which reads the channels of the target."""
        network = NETWORKS[self.network] if self.network in NETWORKS else backbone_config(self.network)()
        channels = self.target.channels
        return network if channels is None else replace(network, in_channels=channels)

    def pretraining(self) -> MethodConfig:
        """Return the settings of the method.

        Raises:
            UserError: there is none.
        """
        if self.method is None:
            raise UserError(
                f"this recipe trains the network {self.backbone().name} from scratch. Run `anatomask finetune`, or "
                "choose a --method that pretrains it, or another --recipe"
            )
        fields = {**METHODS.get(self.method, {"name": self.method})}
        name = fields.pop("name")
        return method_config(name)(
            **{**self.target.methods.get(name, {}), **self.scale.methods.get(name, {}), **fields}
        )

    def settings(self, verb: str) -> Any:
        """Return the settings of a verb. Fields that only the user knows, folders, are `MISSING`.

        Raises:
            UserError: the verb pretrains, and this recipe has no method, or one that cannot pretrain its network.
        """
        required = dict.fromkeys(required_fields(VERBS[verb]), MISSING)
        try:
            return VERBS[verb](**{**required, **self._sections(verb)})
        except ValueError as error:
            raise UserError(str(error)) from error

    def _sections(self, verb: str) -> dict[str, Any]:
        scale, target = self.scale, self.target
        match verb:
            case "prepare":
                return {
                    "dataset": target.layout,
                    "name": target.title,
                    "reader": target.reader,
                    "preprocess": PreprocessConfig(default_spacing=target.spacing),
                }
            case "pretrain":
                method, network = self.pretraining(), self.backbone()
                return {
                    "network": network,
                    "method": method,
                    "loader": LoaderConfig(patch_size=network.fitting_crop(target.crop)),
                    "optimiser": scale.pretraining_optimiser(self.network, str(self.method), method.optimiser),
                    "training": scale.pretrainings.get(str(self.method), scale.pretraining),
                }
            case "finetune":
                network = self.backbone()
                crop = network.fitting_crop(target.finetuning_crop or target.crop)
                loader = LoaderConfig(patch_size=crop, foreground=target.foreground, mirror_axes=target.mirror_axes)
                return {
                    "network": network,
                    "loader": loader,
                    "optimiser": scale.finetuning_optimisers.get(self.network, scale.finetuning_optimiser),
                    "training": scale.finetuning,
                }
            case "evaluate" | "predict":
                return {"inference": scale.inference}
            case "sweep":
                return {
                    "pretrain": PretrainConfig(data="", **self._sections("pretrain")),
                    "finetune": FinetuneConfig(data="", **self._sections("finetune")),
                    "inference": scale.inference,
                }
        return {}


def find_recipe(name: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """Find a recipe by its name.

    Raises:
        UserError: there is none of that name, or an extension registers something else.
    """
    if name not in recipes:
        raise UserError(f"--recipe {name}: no such recipe; there are {', '.join(recipes)}")
    if not isinstance(recipes[name], Recipe):
        raise UserError(f"--recipe {name}: RECIPES must name a Recipe, not {type(recipes[name]).__name__}")
    return recipes[name]


def with_method(config: Any, method: MethodConfig) -> Any:
    """Give settings a method of another kind, with the optimiser of its authors; one of the same kind stays."""
    if isinstance(config, SweepConfig):
        return replace(config, pretrain=with_method(config.pretrain, method))
    if isinstance(config.method, type(method)):
        return config
    return replace(config, method=method, optimiser=replace(config.optimiser, **method.optimiser))


def with_network(config: Any, network: BackboneConfig) -> Any:
    """Give settings a network of another kind, with a crop that it takes; one of the same kind stays.

    Raises:
        UserError: the method of the settings cannot pretrain it.
    """
    if isinstance(config, SweepConfig):
        stages = {
            "pretrain": with_network(config.pretrain, network),
            "finetune": with_network(config.finetune, network),
        }
        return replace(config, **stages)
    if isinstance(config.network, type(network)):
        return config
    crop = network.fitting_crop(config.loader.patch_size)
    try:
        return replace(config, network=network, loader=replace(config.loader, patch_size=crop))
    except ValueError as error:
        raise UserError(str(error)) from error
