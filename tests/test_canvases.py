"""Training batches: the same for the same seed, shared evenly, and without masks."""

import pytest
import torch
from PIL import Image

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.training.data import BatchPlan, Draw, ImageLabelDataset, collate


def numbers(plan):
    return [[draw.number for draw in batch] for batch in plan]


def test_every_epoch_shows_every_image_once():
    shown = [number for batch in numbers(BatchPlan(10, 4, 5, seed=1)) for number in batch]
    assert sorted(shown[:10]) == list(range(10))
    assert sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]


def test_half_of_the_images_are_mirrored():
    draws = [draw for batch in BatchPlan(100, 10, 40, seed=1) for draw in batch]
    assert 0.4 < sum(draw.mirrored for draw in draws) / len(draws) < 0.6


def test_the_plan_depends_on_the_seed_alone_and_can_begin_anywhere():
    whole = list(BatchPlan(7, 3, 8, seed=5))
    assert list(BatchPlan(7, 3, 8, seed=5)) == whole
    assert list(BatchPlan(7, 3, 8, seed=6)) != whole
    late = BatchPlan(7, 3, 8, seed=5, first=6)
    assert list(late) == whole[6:]
    assert len(late) == 2


def test_processes_share_each_batch():
    whole = list(BatchPlan(9, 6, 4, seed=2))
    parts = [list(BatchPlan(9, 6, 4, seed=2, rank=rank, processes=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        shared = [part[step] for part in parts]
        assert {len(one) for one in shared} == {2}
        assert sorted((d.number, d.mirrored) for one in shared for d in one) == sorted(
            (d.number, d.mirrored) for d in batch
        )
    with pytest.raises(ValueError, match="must be a multiple of the 4 processes, got 6"):
        BatchPlan(9, 6, 4, seed=2, processes=4)


def test_ratios_are_spread_over_their_range_and_repeat():
    plan = BatchPlan(5, 2, 400, seed=3)
    ratios = torch.tensor([plan.ratio(step, (0.7, 1.4)) for step in range(400)])
    assert ratios.min() >= 0.7
    assert ratios.max() <= 1.4
    assert abs(ratios.mean() - 1.05) < 0.03
    assert ratios.std() > 0.18
    assert BatchPlan(5, 2, 400, seed=3, rank=1, processes=2).ratio(17, (0.7, 1.4)) == pytest.approx(ratios[17].item())


@pytest.fixture
def collection(tmp_path):
    pixels = torch.zeros(20, 30, 3, dtype=torch.uint8)
    pixels[:, :15, 0] = 255
    Image.fromarray(pixels.numpy()).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    photographs = (
        LabeledImage("good", tmp_path / "good.png", (0, 2), tmp_path / "no-such-mask.png"),
        LabeledImage("bad", tmp_path / "bad.jpg", (1,)),
    )
    return Collection(("a", "b", "c"), photographs)


def test_mirroring(collection):
    canvases = ImageLabelDataset(collection, Preprocess(size=30, mean=(0, 0, 0), std=(1, 1, 1)))
    plain, mirrored = canvases[Draw(0)].image, canvases[Draw(0, mirrored=True)].image
    assert torch.equal(plain[0, :20, :15], torch.ones(20, 15))
    assert torch.equal(mirrored[0, :20, 15:], torch.ones(20, 15))
    assert torch.equal(mirrored, plain.flip(-1))
    assert canvases[Draw(0)].present.tolist() == [1, 0, 1]


def test_an_unreadable_image_is_left_out_and_named(collection):
    canvases = ImageLabelDataset(collection, Preprocess(size=30))
    assert len(canvases) == 2
    batch = collate([canvases[Draw(1)], canvases[Draw(0)]])
    assert batch.numbers.tolist() == [0]
    assert batch.images.shape == (1, 3, 30, 30)
    assert batch.present.tolist() == [[1, 0, 1]]
    assert len(batch.failures) == 1
    assert "bad.jpg" in batch.failures[0]
    nothing = collate([canvases[Draw(1)]])
    assert len(nothing.images) == len(nothing.present) == len(nothing.numbers) == 0
