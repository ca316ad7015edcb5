"""Tests of the selection of maps by class and image."""

import pytest
import torch

from dcsm_attr.attribution.class_maps import ClassMaps


@pytest.fixture
def found():
    """Three slots, of which the second image leaves one empty; each map is filled with its image and slot."""
    maps = torch.tensor([[0.00, 0.01, 0.02], [0.10, 0.11, 0.0]])[:, :, None, None].expand(2, 3, 4, 5)
    classes = torch.tensor([[7, 2, 4], [2, 9, -1]])
    return ClassMaps(maps, classes, classes >= 0, torch.full((2, 10), 0.5), torch.ones(2, dtype=torch.bool))


def test_maps_come_in_the_order_of_the_classes(found):
    picked = found.select_classes((4, 7))
    assert picked.shape == (2, 4, 5)
    assert picked[:, 0, 0].tolist() == [found.maps[0, 2, 0, 0].item(), found.maps[0, 0, 0, 0].item()]
    assert torch.equal(found.select_classes([9], image=1), found.maps[1, 1:2])
    assert found.select_classes([]).shape == (0, 4, 5)


@pytest.mark.parametrize(("c", "image"), [(9, 0), (-1, 1)])
def test_a_class_without_a_map_raises(found, c, image):
    with pytest.raises(ValueError, match=f"class {c} has no map: the candidates are "):
        found.select_classes([2, c], image)
