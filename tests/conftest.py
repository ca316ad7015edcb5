"""Small networks with known answers, and the folder of real data, if there is one."""

import os
import subprocess
import sys
from pathlib import Path

# Of several workers each has one thread, and so have the processes that its tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

SHARED = Path(os.environ.get("DCSM_ATTR_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared():
    """The folder with images, weights and VOC pictures, which stay out of the repository."""
    if not (SHARED / "images").is_dir():
        pytest.skip(f"needs real images and weights; set DCSM_ATTR_SHARED to their folder (looked at {SHARED.name}/)")
    return SHARED


@pytest.fixture
def small_canvas(monkeypatch):
    """The paper's canvas with 128 pixels a side instead of 500, for commands that have no option for it."""
    from dcsm_attr.datasets import preprocess

    monkeypatch.setitem(preprocess._SIZES, "paper", 128)


TRAINED_BY_TWO = """
import sys
from importlib.util import find_spec
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_train_classifier import classifier, make_collection, train
torch.set_num_threads(1)
collection = make_collection(Path("images"), 10)
train(Path("out"), collection, collection, start=classifier(dropout=False), tensorboard=bool(find_spec("tensorboard")))
"""


@pytest.fixture(scope="session")
def trained_by_two(tmp_path_factory):
    """The folder of a training that two processes have shared, with a log for TensorBoard where that is installed."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TRAINED_BY_TWO)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*two, str(Path(__file__).parent)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return folder / "out"


class TinyVGG(nn.Module):
    """Two convolutions, a pool, two more, and a rectified convolutional head that gives score maps."""

    def __init__(self, classes: int = 4, in_place: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(in_place),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(in_place),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 10, 3, padding=1),
            nn.ReLU(in_place),
            nn.MaxPool2d(2),
            nn.Conv2d(10, 12, 3, padding=1),
            nn.ReLU(in_place),
        )
        self.classifier = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(in_place), nn.Conv2d(16, classes, 1))

    def forward(self, x):
        return self.classifier(self.features(x))


class PooledCNN(nn.Module):
    """Convolutions, global average pool, linear: the plain classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = self.conv2(x).relu_()
        x = torch.nn.functional.relu(self.bn(self.conv3(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


@pytest.fixture
def vgg():
    return TinyVGG().eval()


@pytest.fixture
def cnn():
    return PooledCNN().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 20, 24)
