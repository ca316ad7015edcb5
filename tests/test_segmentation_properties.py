"""Properties of segmentations for images of any shape on canvases of any size."""

import numpy as np
import pytest
import torch
from conftest import PooledCNN
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr import DenseCRF, DistinctClassSaliency, Segmenter
from dcsm_attr.datasets.preprocess import Preprocess

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Maps with one position are constant.


@st.composite
def _images(draw):
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    count = draw(st.integers(1, 3))
    shapes = [(draw(st.integers(1, 60)), draw(st.integers(1, 60)), 3) for _ in range(count)]
    constant = draw(st.booleans())
    return [np.full(s, 90, np.uint8) if constant else random.integers(0, 256, s, dtype=np.uint8) for s in shapes]


@st.composite
def _segmenters(draw):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    model = PooledCNN(draw(st.integers(1, 5)))
    saliency = DistinctClassSaliency(
        model, ["conv2", "conv3"], min_candidates=draw(st.integers(1, 4)), scales=draw(st.sampled_from([(1.0,), None]))
    )
    return Segmenter(
        model,
        saliency=saliency,
        preprocess=Preprocess(draw(st.sampled_from(["paper", "caffe"])), size=draw(st.integers(1, 33))),
        crf=draw(st.sampled_from([None, DenseCRF(iterations=2)])),
        background_exponent=draw(st.sampled_from([0.35, 1.0, 4.0])),
    )


@given(_segmenters(), _images())
@settings(max_examples=40, deadline=None)
def test_labels_agree_with_probabilities(segmenter, images):
    for image, result in zip(images, segmenter.segment_batch(images), strict=True):
        assert result.labels.shape == image.shape[:2]
        assert result.probabilities.shape == (1 + len(result.classes), *image.shape[:2])
        for probabilities in (result.probabilities, result.unrefined):
            assert (probabilities >= 0).all(), "NaN is not"
            torch.testing.assert_close(probabilities.sum(0), torch.ones(image.shape[:2]), rtol=0, atol=1e-4)
        values = torch.tensor([0, *(c + 1 for c in result.classes)])
        assert torch.equal(result.labels, values[result.probabilities.argmax(0)])
        assert result.classes
        assert set(result.classes) <= set(result.candidates)
        assert ((result.class_maps.maps >= 0) & (result.class_maps.maps <= 1 + 1e-6)).all()


@given(_segmenters(), _images())
@settings(max_examples=15, deadline=None)
def test_reversing_the_batch_reverses_the_results(segmenter, images):
    segmenter.model.double()
    forward = segmenter.segment_batch(images)
    reverse = segmenter.segment_batch(images[::-1])[::-1]
    for one, other in zip(forward, reverse, strict=True):
        assert one.classes == other.classes
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0, atol=1e-4)
