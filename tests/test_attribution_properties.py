"""Tests of properties of the maps for networks, images and logits of any size and scale."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcsm_attr import DistinctClassSaliency, Simonyan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Of one candidate, and of maps of one position.


class _AnySize(nn.Module):
    """Strides that divide nothing, a functional and an in-place rectifier, logits of any scale."""

    def __init__(self, classes, strides, score_maps, scale):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=strides[0], padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3, stride=strides[1], padding=1)
        self.conv3 = nn.Conv2d(5, 6, 3, padding=1)
        self.read = nn.Conv2d(6, classes, 1)
        self.score_maps, self.scale = score_maps, scale

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = self.conv2(x).relu_()
        scores = self.read(torch.relu(self.conv3(x))) * self.scale
        return scores if self.score_maps else scores.mean((2, 3))


@st.composite
def _cases(draw):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    classes = draw(st.integers(1, 6))
    model = _AnySize(
        classes,
        draw(st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3]))),
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 1e-30, 1.0, 100.0, 1e30])),
    )
    shape = (draw(st.integers(1, 3)), 3, draw(st.integers(1, 23)), draw(st.integers(1, 23)))
    content = draw(st.sampled_from(["noise", "zero", "constant", "large"]))
    factor, shift = {"noise": (1, 0), "zero": (0, 0), "constant": (0, 3), "large": (1e4, -1e4)}[content]
    images = torch.randn(shape) * factor + shift
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return model.to(dtype).train(draw(st.booleans())), images.to(dtype), classes


_METHODS = st.fixed_dictionaries(
    {
        "layer": st.sampled_from(["conv1", ["conv2", "conv3"], ["read", "conv1"]]),
        "variant": st.sampled_from(["paper", "matconvnet", "caffe"]),
        "guided": st.booleans(),
        "subtract": st.booleans(),
        "scales": st.sampled_from([None, (1.0,), (0.5, 1.7), (1.0, 0.1)]),
        "min_candidates": st.sampled_from([None, 1, 2, 9]),
        "threshold": st.sampled_from([0.0, 0.5, 1.0]),
        "internal_batch_size": st.sampled_from([None, 1, 2]),
    }
)


@given(_cases(), _METHODS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_maps_are_in_range_and_slots_are_consistent(case, options, at_input):
    model, images, classes = case
    count, _, height, width = images.shape
    result = DistinctClassSaliency(model, **options).class_maps(images, attribute_to_layer_input=at_input, raw=True)
    slots = result.classes.shape[1]
    assert result.maps.shape == result.raw.shape == (count, slots, height, width)
    for maps in (result.maps, result.raw):
        assert maps.dtype == torch.float32
        assert ((maps >= 0) & (maps <= 1)).all(), "NaN is neither"
        assert maps[result.classes < 0].count_nonzero() == 0
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    held = result.classes >= 0
    assert held[:, 0].all()
    assert not (result.detected & ~held).any()
    for row, of_row in zip(result.classes.tolist(), held.tolist(), strict=True):
        named = [c for c, is_held in zip(row, of_row, strict=True) if is_held]
        assert len(set(named)) == len(named)
        assert max(named) < classes
    assert torch.equal(result.subtracted, (held.sum(1) > 1) & options["subtract"])
    assert torch.equal(result.foreground.any(1), torch.ones(count, dtype=torch.bool))
    if model.scale == 0:
        # All gradients are zero, and no map is positive anywhere; only the floor of a release is left.
        assert max(result.maps.max(), result.raw.max()) <= 1e-19


@given(_cases(), _METHODS, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_permuting_the_batch_permutes_the_result(case, options, random):
    model, images, classes = case
    model, images = model.double(), torch.randn(4, *images.shape[1:], dtype=torch.float64)
    order = random.sample(range(4), 4)
    known = [[random.randrange(classes)] for _ in range(4)]
    method = DistinctClassSaliency(model, **options)
    result, permuted = method.class_maps(images, known), method.class_maps(images[order], [known[i] for i in order])
    assert torch.equal(permuted.classes, result.classes[order])
    assert torch.equal(permuted.detected, result.detected[order])
    torch.testing.assert_close(permuted.scores, result.scores[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(permuted.maps, result.maps[order], rtol=0, atol=1e-5)


@given(_cases(), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_equal_classes_give_zero_maps(case, alike):
    """Copies of one class have the same gradients, to the bit."""
    model, images, _ = case
    with torch.no_grad():
        model.read = nn.Conv2d(6, alike, 1).to(images.dtype)
        model.read.weight.copy_(model.read.weight[:1].clone().expand_as(model.read.weight))
        model.read.bias.fill_(0.1)
    result = DistinctClassSaliency(model, ["conv2", "conv3"]).class_maps(images, range(alike), raw=True)
    assert result.subtracted.all()
    assert result.maps.count_nonzero() == 0


@given(_cases())
@settings(max_examples=20, deadline=None)
def test_one_candidate_gives_the_raw_map(case):
    model, images, classes = case
    method = DistinctClassSaliency(model, ["conv2", "conv3"])
    one = method.class_maps(images, candidates=[classes - 1], raw=True)
    assert one.maps.shape[1] == 1
    assert not one.subtracted.any()
    assert torch.equal(one.maps, one.raw)


@given(_cases(), st.sampled_from([2.0**-60, 2.0**-7, 2.0**9, 2.0**60]))
@settings(max_examples=20, deadline=None)
def test_maps_do_not_depend_on_the_scale_of_gradients(case, factor):
    """Of two, so that nothing rounds: as long as no number leaves the range of its type."""
    model, images, classes = case
    model, model.scale = model.double(), 1.0
    images = images.double()
    method = DistinctClassSaliency(model, ["conv2", "conv3"], scales=(1.0,))
    expected = method.class_maps(images, candidates=range(classes))
    model.scale = factor
    found = method.class_maps(images, candidates=range(classes))
    torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=1e-6)


@given(_cases(), st.floats(0.1, 20))
@settings(max_examples=20, deadline=None)
def test_simonyan_is_in_its_range(case, alpha):
    model, images, _ = case
    result = Simonyan(model, alpha=alpha).class_maps(images)
    assert ((result.maps >= 0) & (result.maps <= 1)).all()
    assert result.maps.shape[2:] == images.shape[2:]


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_that_overflow_raise(images, variant, classes):
    model = _AnySize(classes, (1, 1), False, 1e-37)
    with torch.no_grad():
        model.conv3.weight *= 1e20
        model.read.weight *= 1e37
        model.conv2.weight *= 1e-30
        model.conv2.bias.mul_(0)
    model.scale = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        method = DistinctClassSaliency(model, "conv2", guided=False, variant=variant)
        with pytest.raises(ValueError, match="gradients contain NaN or infinite values.*float32, bfloat16"):
            method.class_maps(images * 1e-10)
