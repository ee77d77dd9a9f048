"""What tests share: real scans, one Ray for the whole session, and small prepared data sets."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, chdir
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import ray
import torch
from hypothesis import settings
from pyarrow.fs import FileSystem

from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.data.fingerprint import Fingerprint, Scheme, case_histograms
from anatomask.data.index import write_index
from anatomask.data.records import DatasetInfo, PreparedCase
from anatomask.data.settings import Codec
from anatomask.data.shards import PreparedDataset, write_case
from anatomask.plugins import PREFIX
from tests.published import Published, numbers_of
from tests.sockets import LOOPBACK, descendants, listening

settings.register_profile("unhurried", deadline=None)  # how fast anything is, is not asserted
settings.load_profile("unhurried")

REPOSITORY = Path(__file__).parent.parent
LONGEST = ("test_kills", "ray", "test_benchmarks", "test_evidence", "test_training")
"""Groups of tests that take longest, in falling order."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from more threads, and threads that spin on busy cores cost much.

    Ray's workers and the programs that tests start have several, which sleep while they wait for each other: a window
    of a small network cost nine times the processor time where they did not.
    """
    torch.set_num_threads(1)
    os.environ["OMP_WAIT_POLICY"] = "passive"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans: ANATOMASK_REAL_DATA, else ../shared/data beside the repository; skips without it."""
    folder = Path(os.environ.get("ANATOMASK_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}; set ANATOMASK_REAL_DATA")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden FOLDER`: numbers of the published implementations, a folder per method."""
    parser.addoption("--golden", type=Path, help="default: golden beside the real scans, else tests/golden")
    parser.addoption(
        "--nnunet",
        type=Path,
        default=Path.home() / ".cache" / "anatomask" / "nnunet-venv",
        help="nnU-Net's environment, which `make nnunet` makes; default: %(default)s",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep in one process what shares one Ray, and a file's other tests, where `pytest -n` makes several.

    What takes longest comes first, so that the processes end together.
    """
    groups = {item: "ray" if "ray_session" in getattr(item, "fixturenames", ()) else item.path.stem for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


@dataclass(frozen=True)
class GoldenFolder:
    """Folder of the published implementations' numbers; what is missing in one that `--golden` names is no reason to
    skip."""

    path: Path
    given: bool

    def require(self, part: str) -> Path:
        """Find a file or a method's folder, else skip or fail."""
        found = self.path / part
        if not found.exists():
            message = f"the published implementation's numbers are not at {found}"
            pytest.fail(message) if self.given else pytest.skip(message)
        return found


@pytest.fixture(scope="session")
def golden_folder(request: pytest.FixtureRequest) -> GoldenFolder:
    """Folder of the published implementations' numbers: that of `--golden`, those beside the real scans, or ours."""
    given: Path | None = request.config.getoption("--golden")
    beside = Path(os.environ.get("ANATOMASK_REAL_DATA", REPOSITORY.parent / "shared" / "data")).parent / "golden"
    path = given or (beside if beside.is_dir() else REPOSITORY / "tests" / "golden")
    return GoldenFolder(path, given is not None)


@pytest.fixture(scope="session")
def golden(golden_folder: GoldenFolder) -> Path:
    """Numbers of AnatoMask's published implementation and its checkpoint."""
    return golden_folder.require("b1_depth1.npz").parent


@pytest.fixture
def published(golden_folder: GoldenFolder) -> Callable[[str], AbstractContextManager[Published]]:
    """Opens the numbers of a method by its name; the test has to read every array of them.

    A folder that `--golden` names may leave nothing out.
    """
    return lambda method: numbers_of(golden_folder.require(method), golden_folder.given)


@pytest.fixture(scope="session")
def nnunet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, np.ndarray]]:
    """Runs `python SCRIPT INPUT.npz OUTPUT.npz` in nnU-Net's environment; skips without it.

    The keyword arguments are the arrays of INPUT; those of OUTPUT are returned.
    """
    python = Path(request.config.getoption("--nnunet")) / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no nnU-Net at {python.parents[1]}: `make nnunet` makes it, --nnunet FOLDER names another")

    def run(script: Path, **arrays: Any) -> dict[str, np.ndarray]:
        folder = tmp_path_factory.mktemp(script.stem)
        np.savez(folder / "input.npz", **arrays)
        done = subprocess.run(
            [python, script, folder / "input.npz", folder / "output.npz"],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(np.load(folder / "output.npz"))

    return run


@pytest.fixture(scope="session")
def gloo_workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], Any]:
    """Runs `python SCRIPT RANK WORLD FILE` once for each rank; returns what rank 0 wrote into FILE."""

    @cache
    def run(script: Path, world: int) -> Any:
        file = tmp_path_factory.mktemp("workers") / "results.pt"
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"}
        logs = [file.with_name(f"{rank}.log") for rank in range(world)]
        processes = [
            subprocess.Popen(
                [sys.executable, script, str(rank), str(world), file],
                env=os.environ | settings,
                stderr=log.open("w"),
            )
            for rank, log in enumerate(logs)
        ]
        try:
            while None in (codes := [process.poll() for process in processes]) and not any(codes):
                time.sleep(0.1)  # one that fails leaves the others waiting
        finally:
            for process in processes:
                process.kill()
        assert not any(codes), "\n".join(log.read_text() for log in logs)
        return torch.load(file, weights_only=True)

    return run


@pytest.fixture
def forget_plugins() -> Iterator[Callable[[], None]]:
    """Forgets the files that the test loads as plugins, at its end or when called."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith(PREFIX)]:
            del sys.modules[name]

    yield forget
    forget()


@pytest.fixture
def plugin_of(tmp_path: Path, forget_plugins: Callable[[], None]) -> Callable[[str], Path]:
    """Writes the Python blocks of a page in `docs/` into a file, which `--plugin` may name."""

    def write(page: str) -> Path:
        text = (REPOSITORY / "docs" / page).read_text()
        path = tmp_path / "example.py"
        path.write_text("\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)))
        return path

    return write


@pytest.fixture(scope="session")
def until_the_end() -> Iterator[ExitStack]:
    """What is entered here is left when all tests are done."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def ray_session(until_the_end: ExitStack) -> None:
    """An embedded Ray, the same for all tests that need one. Its workers import from the repository."""
    if not ray.is_initialized():
        with chdir(REPOSITORY):  # the first test that needs it may be in a folder of its own
            until_the_end.enter_context(running(ClusterConfig()))


@dataclass
class Bucket:
    """An S3 bucket on loopback."""

    endpoint: str
    secret: str = "hush/hush+hush"
    requests: list[str] = field(default_factory=list)
    """What the server was asked, a line each."""

    def address(self, folder: str, bucket: str = "bucket") -> str:
        """Of a folder, credentials included."""
        secret = quote(self.secret, safe="")
        return f"s3://AKIAUSER:{secret}@{bucket}/{folder}?scheme=http&endpoint_override={self.endpoint}"


@pytest.fixture
def s3() -> Iterator[Bucket]:
    """An empty bucket of an S3 server in this process."""
    from moto.server import ThreadedMotoServer  # seconds, and few tests need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    bucket = Bucket(f"{host}:{port}")
    log = logging.getLogger("werkzeug")
    log.handlers, log.propagate = [logging.Handler()], False
    log.handlers[0].emit = lambda record: bucket.requests.append(record.getMessage())  # type: ignore[method-assign]
    filesystem, _ = FileSystem.from_uri(bucket.address("") + "&allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    filesystem.delete_dir_contents("bucket")  # the server's state is the process's own, not the server's
    yield bucket
    server.stop()


@pytest.fixture
def open_to_others() -> Iterator[set[int]]:
    """Ports that processes below this one open to other machines in the meantime."""
    found: set[int] = set()
    end = Event()

    def look() -> None:
        while not end.wait(0.2):
            ports = listening(descendants(os.getpid()))
            found.update(port for port, addresses in ports.items() if not addresses <= set(LOOPBACK))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        yield found
        end.set()
        looking.result()


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., PreparedDataset]:
    """Write volumes that are prepared already as a data set of one case, "one", and open it."""

    def make(
        *images: np.ndarray,
        label: np.ndarray | None = None,
        schemes: tuple[Scheme, ...] = (),
        brick: int = 16,
        codec: Codec = "none",
        root: str = "prepared",
    ) -> PreparedDataset:
        path = str(tmp_path / root)
        schemes = schemes or tuple("ct" if image.dtype == np.int16 else "zscore" for image in images)
        names = tuple(f"channel{c}" for c in range(len(images)))
        shape = images[0].shape
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        case = PreparedCase("one", "patient", images, schemes, label, affine, shape, affine, label)
        record = write_case(path, case, brick, codec)
        classes = {} if label is None else {int(c): f"class{c}" for c in np.unique(label) if c}
        info = DatasetInfo(
            "test", "folder", names, schemes, classes, dict.fromkeys(classes, 3.0), (2.0, 2.0, 3.0), brick, codec
        )
        counted = label if classes else None
        histograms = [case_histograms(image[None], counted, (s,))[0] for image, s in zip(images, schemes, strict=True)]
        fingerprint = Fingerprint.from_histograms(names, schemes, histograms)
        write_index(path, info, [record], {"train": ["one"]}, fingerprint)
        return PreparedDataset.open(path)

    return make


@pytest.fixture
def head_voxels(real_data: Path) -> np.ndarray:
    """A real CT of the head and neck, 55x68x109 voxels, int16."""
    return np.asanyarray(nib.Nifti1Image.from_filename(real_data / "openkbp/imagesTr/kbp_001_0000.nii.gz").dataobj)


@pytest.fixture
def head(real_data: Path, head_voxels: np.ndarray, prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    """That CT with five organs, as a prepared data set of one case, "one"."""
    label = nib.Nifti1Image.from_filename(real_data / "openkbp/labelsTr/kbp_001.nii.gz")
    return prepared(head_voxels, label=np.asanyarray(label.dataobj), brick=32)


@pytest.fixture
def head_scan(head_voxels: np.ndarray, prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    """The same without its organs."""
    return prepared(head_voxels)
