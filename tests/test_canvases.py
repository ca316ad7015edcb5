"""Training batches: repeatable, shared evenly, without masks."""

import pytest
import torch
from PIL import Image

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.training.data import BatchPlan, SampleIndex, TrainingImages, collate


def indices(plan):
    return [[sample.index for sample in batch] for batch in plan]


def test_every_epoch_shows_every_image_once():
    shown = [index for batch in indices(BatchPlan(10, 4, 5, seed=1)) for index in batch]
    assert sorted(shown[:10]) == list(range(10))
    assert sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]


def test_half_of_the_images_are_mirrored():
    samples = [sample for batch in BatchPlan(100, 10, 40, seed=1) for sample in batch]
    assert 0.4 < sum(sample.mirrored for sample in samples) / len(samples) < 0.6


def test_the_plan_depends_only_on_the_seed_and_can_start_at_any_step():
    whole = list(BatchPlan(7, 3, 8, seed=5))
    assert list(BatchPlan(7, 3, 8, seed=5)) == whole
    assert list(BatchPlan(7, 3, 8, seed=6)) != whole
    late = BatchPlan(7, 3, 8, seed=5, first_step=6)
    assert list(late) == whole[6:]
    assert len(late) == 2


def test_processes_share_each_batch():
    whole = list(BatchPlan(9, 6, 4, seed=2))
    parts = [list(BatchPlan(9, 6, 4, seed=2, rank=rank, world_size=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        shared = [part[step] for part in parts]
        assert {len(one) for one in shared} == {2}
        assert sorted((d.index, d.mirrored) for one in shared for d in one) == sorted(
            (d.index, d.mirrored) for d in batch
        )
    with pytest.raises(ValueError, match="must be a multiple of the 4 processes, got 6"):
        BatchPlan(9, 6, 4, seed=2, world_size=4)


def test_scales_cover_their_range_and_repeat():
    plan = BatchPlan(5, 2, 400, seed=3)
    scales = torch.tensor([plan.scale(step, (0.7, 1.4)) for step in range(400)])
    assert scales.min() >= 0.7
    assert scales.max() <= 1.4
    assert abs(scales.mean() - 1.05) < 0.03
    assert scales.std() > 0.18
    assert BatchPlan(5, 2, 400, seed=3, rank=1, world_size=2).scale(17, (0.7, 1.4)) == pytest.approx(scales[17].item())


@pytest.fixture
def collection(tmp_path):
    pixels = torch.zeros(20, 30, 3, dtype=torch.uint8)
    pixels[:, :15, 0] = 255
    Image.fromarray(pixels.numpy()).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    items = (
        LabeledImage("good", tmp_path / "good.png", (0, 2), tmp_path / "no-such-mask.png"),
        LabeledImage("bad", tmp_path / "bad.jpg", (1,)),
    )
    return Collection(("a", "b", "c"), items)


def test_mirroring(collection):
    canvases = TrainingImages(collection, Preprocess(size=30, mean=(0, 0, 0), std=(1, 1, 1)))
    plain, mirrored = canvases[SampleIndex(0)].image, canvases[SampleIndex(0, mirrored=True)].image
    assert torch.equal(plain[0, :20, :15], torch.ones(20, 15))
    assert torch.equal(mirrored[0, :20, 15:], torch.ones(20, 15))
    assert torch.equal(mirrored, plain.flip(-1))
    assert canvases[SampleIndex(0)].present.tolist() == [1, 0, 1]


def test_an_unreadable_image_is_left_out_and_reported(collection):
    canvases = TrainingImages(collection, Preprocess(size=30))
    assert len(canvases) == 2
    batch = collate([canvases[SampleIndex(1)], canvases[SampleIndex(0)]])
    assert batch.indices.tolist() == [0]
    assert batch.images.shape == (1, 3, 30, 30)
    assert batch.present.tolist() == [[1, 0, 1]]
    assert len(batch.failures) == 1
    assert "bad.jpg" in batch.failures[0]
    nothing = collate([canvases[SampleIndex(1)]])
    assert len(nothing.images) == len(nothing.present) == len(nothing.indices) == 0
