"""Collections: evenly spaced subsets, folders of images, and lists of images."""

import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcsm_attr.datasets.collection import (
    Collection,
    LabeledImage,
    folder_collection,
    image_list_collection,
    list_images,
)


def numbered(total):
    return Collection(("a",), tuple(LabeledImage(str(i), Path(f"{i}.png"), (0,)) for i in range(total)))


def evenly_spaced(total, count):
    return [int(item.name) for item in numbered(total).evenly_spaced(count)]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (7, 3, [0, 2, 4]),
        (10, 4, [0, 2, 5, 7]),
        (4, 4, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (4, 0, [0, 1, 2, 3]),
        (5, 1, [0]),
        (0, 0, []),
        (0, 3, []),
    ],
)
def test_evenly_spaced_indices(total, count, expected):
    assert evenly_spaced(total, count) == expected


@given(st.integers(1, 200), st.integers(1, 200))
def test_gaps_between_evenly_spaced_images_differ_by_at_most_one(total, count):
    indices = evenly_spaced(total, count)
    assert len(indices) == min(count, total)
    gaps = [b - a for a, b in zip(indices, [*indices[1:], total], strict=True)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_evenly_spaced_keeps_the_classes():
    assert numbered(3).evenly_spaced(2).class_names == ("a",)


# Folders


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.PNG", "c.d.webp"):
        Image.new("RGB", (4, 3)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "older").mkdir()
    return folder


@pytest.fixture
def labels(tmp_path):
    def write(*rows, header="id,split,labels"):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *rows]))
        return path

    return write


def test_ids_with_and_without_extensions(images, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection = folder_collection(images, labels("c.d,,dog", "b.PNG,,cat dog", "a,,ant"))
    assert collection.class_names == ("ant", "cat", "dog")
    assert collection.images == (
        LabeledImage("c.d", images / "c.d.webp", (2,)),
        LabeledImage("b", images / "b.PNG", (1, 2)),
        LabeledImage("a", images / "a.jpg", (0,)),
    )


def test_a_full_name_takes_precedence(images, labels):
    Image.new("RGB", (4, 3)).save(images / "a.jpg.png")
    collection = folder_collection(images, labels("a.jpg,,ant", "a.jpg.png,,bee", "b,,ant", "c.d,,ant"))
    assert [item.path.name for item in collection][:2] == ["a.jpg", "a.jpg.png"]


def test_given_class_names_define_the_indices(images, labels):
    path = labels("a,dog", "b,cat", "c.d,dog cat", header="id,labels")
    collection = folder_collection(images, path, class_names=["dog", "ant", "cat"])
    assert collection.class_names == ("dog", "ant", "cat")
    assert collection.presence().int().tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 1]]
    with pytest.raises(ValueError, match=r"labels\.csv, line 3: there is no class 'cat'"):
        folder_collection(images, path, class_names=["dog", "ant"])


def test_a_split_has_the_classes_of_all_rows(images, labels):
    # Images of other splits need not be in this folder.
    path = labels("a,train,dog", "b,val,cat", "c.d,train,dog", "elsewhere,val,ant")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection = folder_collection(images, path, split="train")
    assert collection.class_names == ("ant", "cat", "dog")
    assert [(item.name, item.classes) for item in collection] == [("a", (2,)), ("c.d", (2,))]


@pytest.mark.parametrize(
    ("rows", "header", "known"),
    [(["a,train,dog", "b,val,dog", "c.d,,dog"], "id,split,labels", "train, val"), (["a,dog"], "id,labels", "none")],
)
def test_a_split_without_rows(images, labels, rows, header, known):
    with pytest.raises(ValueError, match=rf"no row belongs to the split 'test'\. Splits in the file: {known}\."):
        folder_collection(images, labels(*rows, header=header), split="test")


def test_masks_must_exist(images, labels, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    path = labels("a,train,dog", "b.PNG,train,cat", "c.d,val,cat")
    for name in ("a", "b"):
        Image.new("L", (4, 3)).save(masks / f"{name}.png")
    collection = folder_collection(images, path, split="train", masks=masks)
    assert [item.mask for item in collection] == [masks / "a.png", masks / "b.png"]
    with pytest.raises(ValueError, match=r"masks: 1 of 3 masks are missing: c\.d\.png\. Each image needs"):
        folder_collection(images, path, masks=masks)
    with pytest.raises(ValueError, match=r"nowhere: 3 of 3 masks are missing: a\.png, b\.png, c\.d\.png"):
        folder_collection(images, path, masks=tmp_path / "nowhere")


def test_images_without_a_row_are_left_out_with_one_warning(images, labels):
    for i in range(6):
        Image.new("RGB", (4, 3)).save(images / f"x{i}.png")
    path = labels("a,train,dog", "b.PNG,val,cat")
    with pytest.warns(UserWarning) as caught:
        collection = folder_collection(images, path, split="train")
    assert [str(warning.message) for warning in caught] == [
        f"{path}: 7 images in the folder have no row and are left out: c.d.webp, x0.png, x1.png, x2.png, x3.png and "
        "2 more."
    ]
    assert caught[0].filename == __file__
    assert [item.name for item in collection] == ["a"]


def test_missing_images_are_counted_and_five_named(images, labels):
    rows = [f"none{i},,dog" for i in range(8)]
    expected = (
        r"labels\.csv: 8 of 9 ids have no image in .*photos: none0, none1, none2, none3, none4 and 3 more\. An id"
    )
    with pytest.raises(ValueError, match=expected):
        folder_collection(images, labels("a,,dog", *rows))


@pytest.mark.parametrize("name", ["notes", "notes.txt", "older", "A", "a.png", "older/../a.jpg"])
def test_rejects_ids_without_an_image(images, labels, name):
    with pytest.raises(ValueError, match=f"1 of 1 ids have no image .*: {re.escape(name)}"):
        folder_collection(images, labels(f"{name},,dog"))


def test_rejects_two_ids_of_one_image(images, labels):
    with pytest.raises(ValueError, match=r"the ids 'a' and 'a\.jpg' denote one image, .*a\.jpg\. Remove one row"):
        folder_collection(images, labels("a,,dog", "b,,dog", "c.d,,dog", "a.jpg,,cat"))


def test_rejects_two_images_of_one_name(images, labels):
    Image.new("RGB", (4, 3)).save(images / "a.png")
    with pytest.raises(ValueError, match=r"photos: a\.jpg and a\.png differ only in their extensions"):
        folder_collection(images, labels("b,,dog"))


def test_rejects_folders_without_images(images, labels, tmp_path):
    with pytest.raises(ValueError, match="older: the folder contains no images"):
        folder_collection(images / "older", labels("a,,dog"))
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        folder_collection(tmp_path / "nowhere", labels("a,,dog"))


def test_rejects_empty_label_files(images, labels):
    with pytest.raises(ValueError, match=r"labels\.csv: has no rows"):
        folder_collection(images, labels())


def test_list_images(images):
    assert [path.name for path in list_images(images)] == ["a.jpg", "b.PNG", "c.d.webp"]


# Lists


@pytest.fixture
def list_and_labels(tmp_path):
    def write(lines, *rows):
        (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "labels.csv").write_text("\n".join(["id,labels", *rows]))
        return tmp_path / "list.txt", tmp_path / "labels.csv"

    return write


def test_lists_are_matched_by_line_name_or_stem(tmp_path, list_and_labels):
    lines = ["# mine", "", "in/b.JPG", "/far/away/a.png", " s3://bucket/x/c.d.jpg "]
    rows = ["a,dog", "b.JPG,cat dog", "s3://bucket/x/c.d.jpg,ant", "unused,emu"]
    collection = image_list_collection(*list_and_labels(lines, *rows))
    assert collection.class_names == ("ant", "cat", "dog", "emu")
    assert [(item.name, str(item.path), item.classes) for item in collection] == [
        ("b", str(tmp_path / "in/b.JPG"), (1, 2)),
        ("a", "/far/away/a.png", (2,)),
        ("c.d", "s3://bucket/x/c.d.jpg", (0,)),
    ]
    reordered = image_list_collection(*list_and_labels(lines, *rows[:3]), class_names=["dog", "ant", "cat"])
    assert reordered.images[1].classes == (0,)


def test_rejects_bad_lists(tmp_path, list_and_labels):
    with pytest.raises(ValueError, match=r"labels\.csv: 2 of 3 images of .*list\.txt have no row: b\.png, c\.png"):
        image_list_collection(*list_and_labels(["a.png", "b.png", "c.png"], "a,dog"))
    with pytest.raises(ValueError, match=r"two images have the name 'a': .*x/a\.png and y/a\.jpg"):
        image_list_collection(*list_and_labels(["x/a.png", "y/a.jpg"], "a,dog"))
    with pytest.raises(ValueError, match=r"list\.txt: names no image"):
        image_list_collection(*list_and_labels(["# nothing", ""], "a,dog"))
    image_list, labels = list_and_labels(["a.png"], "a,dog")
    with pytest.raises(ValueError, match=r"line 2: .*'dog'"):
        image_list_collection(image_list, labels, class_names=["cat"])
    image_list.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        image_list_collection(image_list, labels)
    with pytest.raises(FileNotFoundError):
        image_list_collection(tmp_path / "nowhere.txt", labels)
