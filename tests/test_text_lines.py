"""Text files that a user wrote, with whatever editor: lists of VOC, lists of pictures, names of classes."""

import pytest

from dcsm_attr.datasets.collection import image_list_collection
from dcsm_attr.datasets.labels import read_class_names
from dcsm_attr.datasets.voc import read_voc_list


def of_voc(path):
    return tuple(entry.name for entry in read_voc_list(path.parents[2], path.stem))


def image_values(path):
    labels = path.with_suffix(".csv")
    labels.write_text("id,labels\nnaïve,dog\nplain,dog\n", encoding="utf-8")
    return tuple(item.name for item in image_list_collection(path, labels))


READERS = {"a list of VOC": of_voc, "a list of pictures": image_values, "names of classes": read_class_names}


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "ImageSets" / "Segmentation" / "val.txt"
    found.parent.mkdir(parents=True)
    return found


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_byte_order_mark_is_no_part_of_the_first_line(path, read):
    path.write_bytes("naïve\r\n\r\nplain\r\n".encode("utf-8-sig"))
    assert read(path) == ("naïve", "plain")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_in_another_encoding_is_named(path, read, encoding):
    path.write_text("naïve\nplain\n", encoding=encoding)
    with pytest.raises(ValueError, match=r"val\.txt: not a text in UTF-8 \(.*\)\. Save it in that encoding\."):
        read(path)
