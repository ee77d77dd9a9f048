"""Components of an exported MONAI bundle, which its `configs/inference.json` names.

Bundles that were exported refer to them by their names and arguments, and to `read_network`, `prepared_case`,
`InferenceConfig` and `Predictor`. So what a bundle computes is what `anatomask predict` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import Dataset

from anatomask.data.datasets.base import RawCase
from anatomask.data.datasets.scans import read_scans
from anatomask.data.scans import PreparedScan
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.label_names import name_classes
from anatomask.evaluation.network import build_network
from anatomask.evaluation.prediction import LABEL_MAP, class_names, require_apart, write_label_map
from anatomask.evaluation.predictor import Predictor
from anatomask.weights.tensor_files import Weights


class FullResolution(nn.Module):
    """Segmentation network as MONAI expects one, which returns the logits at full resolution alone."""

    def __init__(self, weights: Weights) -> None:
        """Build the network that weights describe.

        Raises:
            UserError: tensors do not fit.
        """
        super().__init__()
        self.segmenter = build_network(weights)

    def forward(self, volume: Tensor) -> Tensor:
        """Predict logits (B, classes + 1, D, H, W) of a normalised volume (B, C, D, H, W)."""
        finest: Tensor = self.segmenter(volume)[0]
        return finest


class ScanDataset(Dataset[PreparedScan]):
    """Scans in a folder of any layout, or in one NIfTI file; each is read when it is asked for."""

    def __init__(self, data: str, transform: Callable[[RawCase], PreparedScan]) -> None:
        """Find the scans in `data`; `transform` reads one and prepares it for the network.

        Raises:
            UserError: there is no scan.
        """
        self.source = Path(data).absolute()
        self.cases = read_scans(self.source).cases
        self.transform = transform

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> PreparedScan:
        """Read and prepare a scan.

        Raises:
            UserError: it cannot be read, or is not what the network reads; the message names the file.
        """
        return self.transform(self.cases[index])


class Evaluator:
    """Loop that segments the scans of a data set and writes their label maps."""

    def __init__(self, dataset: ScanDataset, inferer: Predictor, weights: Weights, output_dir: str) -> None:
        """Take the scans, the network with its windows, the weights that name the classes, and the folder to write.

        Raises:
            UserError: the folder and that of the scans lie in one another.
        """
        self.dataset, self.inferer, self.names = dataset, inferer, class_names(weights)
        self.folder = Path(output_dir).absolute()
        require_apart(self.dataset.source, self.folder, "dataset_dir", "output_dir")

    def run(self) -> Sequence[Path]:
        """Segment each scan and write `<case>.nii.gz` on the scan's own grid; return the paths.

        Raises:
            UserError: scans could not be segmented, each of which is named; the others were.
        """
        failures: dict[str, str] = {}
        written = []
        for index, raw in enumerate(self.dataset.cases):
            try:
                label = self.inferer.label_map(self.dataset[index])
            except UserError as error:
                failures[raw.case] = str(error)
                continue
            name_classes(label, self.names)
            write_label_map(Storage(self.folder), raw.case, label)
            written.append(self.folder / f"{raw.case}{LABEL_MAP}")
            print(written[-1], flush=True)
        if failures:
            named = "; ".join(f"{case}: {why}" for case, why in failures.items())
            raise UserError(f"{len(failures)} of {len(self.dataset)} scans were not segmented. {named}")
        return written
