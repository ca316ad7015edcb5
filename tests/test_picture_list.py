"""Lists of images with labels of a CSV file."""

import pytest

from dcsm_attr.datasets.collection import image_list_collection


@pytest.fixture
def files(tmp_path):
    def write(lines, *rows):
        (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "labels.csv").write_text("\n".join(["id,labels", *rows]))
        return tmp_path / "list.txt", tmp_path / "labels.csv"

    return write


def test_in_the_order_of_the_list_by_whatever_id(tmp_path, files):
    lines = ["# mine", "", "in/b.JPG", "/far/away/a.png", " s3://bucket/x/c.d.jpg "]
    rows = ["a,dog", "b.JPG,cat dog", "s3://bucket/x/c.d.jpg,ant", "unused,emu"]
    found = image_list_collection(*files(lines, *rows))
    assert found.class_names == ("ant", "cat", "dog", "emu")
    assert [(one.name, str(one.path), one.classes) for one in found] == [
        ("b", str(tmp_path / "in/b.JPG"), (1, 2)),
        ("a", "/far/away/a.png", (2,)),
        ("c.d", "s3://bucket/x/c.d.jpg", (0,)),
    ]
    assert image_list_collection(*files(lines, *rows[:3]), class_names=["dog", "ant", "cat"]).images[1].classes == (0,)


def test_what_is_wrong_is_named(tmp_path, files):
    with pytest.raises(ValueError, match=r"labels\.csv: 2 of 3 photographs of .*list\.txt have no row: b\.png, c\.png"):
        image_list_collection(*files(["a.png", "b.png", "c.png"], "a,dog"))
    with pytest.raises(ValueError, match=r"two images have the name 'a': .*x/a\.png and y/a\.jpg"):
        image_list_collection(*files(["x/a.png", "y/a.jpg"], "a,dog"))
    with pytest.raises(ValueError, match=r"list\.txt: names no image"):
        image_list_collection(*files(["# nothing", ""], "a,dog"))
    pictures, labels = files(["a.png"], "a,dog")
    with pytest.raises(ValueError, match=r"line 2: .*'dog'"):
        image_list_collection(pictures, labels, class_names=["cat"])
    pictures.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        image_list_collection(pictures, labels)
    with pytest.raises(FileNotFoundError):
        image_list_collection(tmp_path / "nowhere.txt", labels)
