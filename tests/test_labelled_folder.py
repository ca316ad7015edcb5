"""A user's own folder of pictures with a label file: what is matched, what is left out, what is refused."""

import re
import warnings

import pytest
from PIL import Image

from dcsm_attr.datasets.collection import LabeledImage, folder_collection, list_images


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.PNG", "c.d.webp"):
        Image.new("RGB", (4, 3)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "older").mkdir()
    return folder


@pytest.fixture
def labels(tmp_path):
    def write(*rows, header="id,split,labels"):
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *rows]))
        return path

    return write


def test_ids_with_and_without_endings(images, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection = folder_collection(images, labels("c.d,,dog", "b.PNG,,cat dog", "a,,ant"))
    assert collection.class_names == ("ant", "cat", "dog")
    assert collection.images == (
        LabeledImage("c.d", images / "c.d.webp", (2,)),
        LabeledImage("b", images / "b.PNG", (1, 2)),
        LabeledImage("a", images / "a.jpg", (0,)),
    )


def test_a_whole_name_goes_before_a_name_without_its_ending(images, labels):
    Image.new("RGB", (4, 3)).save(images / "a.jpg.png")
    collection = folder_collection(images, labels("a.jpg,,ant", "a.jpg.png,,bee", "b,,ant", "c.d,,ant"))
    assert [photograph.path.name for photograph in collection][:2] == ["a.jpg", "a.jpg.png"]


def test_class_numbers_are_those_of_the_given_names(images, labels):
    path = labels("a,dog", "b,cat", "c.d,dog cat", header="id,labels")
    collection = folder_collection(images, path, class_names=["dog", "ant", "cat"])
    assert collection.class_names == ("dog", "ant", "cat")
    assert collection.presence().int().tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 1]]
    with pytest.raises(ValueError, match=r"labels\.csv, line 3: there is no class 'cat'"):
        folder_collection(images, path, class_names=["dog", "ant"])


def test_a_split_has_its_images_and_the_classes_of_all(images, labels):
    # The pictures of the other split may lie elsewhere.
    path = labels("a,train,dog", "b,val,cat", "c.d,train,dog", "elsewhere,val,ant")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection = folder_collection(images, path, split="train")
    assert collection.class_names == ("ant", "cat", "dog")
    assert [(p.name, p.classes) for p in collection] == [("a", (2,)), ("c.d", (2,))]


@pytest.mark.parametrize(
    ("rows", "header", "known"),
    [(["a,train,dog", "b,val,dog", "c.d,,dog"], "id,split,labels", "train, val"), (["a,dog"], "id,labels", "none")],
)
def test_a_split_without_rows(images, labels, rows, header, known):
    with pytest.raises(ValueError, match=rf"no row is of the split 'test'\. Splits in the file: {known}\."):
        folder_collection(images, labels(*rows, header=header), split="test")


def test_masks(images, labels, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    path = labels("a,train,dog", "b.PNG,train,cat", "c.d,val,cat")
    for name in ("a", "b"):
        Image.new("L", (4, 3)).save(masks / f"{name}.png")
    collection = folder_collection(images, path, split="train", masks=masks)
    assert [photograph.mask for photograph in collection] == [masks / "a.png", masks / "b.png"]
    with pytest.raises(ValueError, match=r"masks: 1 of 3 masks are missing: c\.d\.png\. Each image"):
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
        f"{path}: 7 pictures in the folder have no row and are left out: c.d.webp, x0.png, x1.png, x2.png, x3.png and "
        "2 more."
    ]
    assert caught[0].filename == __file__
    assert [photograph.name for photograph in collection] == ["a"]


def test_ids_without_an_image_are_counted_and_five_named(images, labels):
    rows = [f"none{i},,dog" for i in range(8)]
    expected = (
        r"labels\.csv: 8 of 9 ids have no picture in .*photos: none0, none1, none2, none3, none4 and 3 more\. An id"
    )
    with pytest.raises(ValueError, match=expected):
        folder_collection(images, labels("a,,dog", *rows))


@pytest.mark.parametrize("name", ["notes", "notes.txt", "older", "A", "a.png", "older/../a.jpg"])
def test_ids_that_mean_no_image_of_the_folder(images, labels, name):
    with pytest.raises(ValueError, match=f"1 of 1 ids have no picture .*: {re.escape(name)}"):
        folder_collection(images, labels(f"{name},,dog"))


def test_two_ids_of_one_image(images, labels):
    with pytest.raises(ValueError, match=r"the ids 'a' and 'a\.jpg' mean one picture, .*a\.jpg\. Remove one row"):
        folder_collection(images, labels("a,,dog", "b,,dog", "c.d,,dog", "a.jpg,,cat"))


def test_two_images_of_one_name(images, labels):
    Image.new("RGB", (4, 3)).save(images / "a.png")
    with pytest.raises(ValueError, match=r"photos: a\.jpg and a\.png differ in their endings only"):
        folder_collection(images, labels("b,,dog"))


def test_folders_without_images(images, labels, tmp_path):
    with pytest.raises(ValueError, match="older: the folder holds no pictures"):
        folder_collection(images / "older", labels("a,,dog"))
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        folder_collection(tmp_path / "nowhere", labels("a,,dog"))


def test_empty_label_files(images, labels):
    with pytest.raises(ValueError, match=r"labels\.csv: holds no row"):
        folder_collection(images, labels())


def test_images_in_a_folder(images):
    assert [path.name for path in list_images(images)] == ["a.jpg", "b.PNG", "c.d.webp"]
