"""VOC folders: split lists, labels from a file or from annotations, and the command that derives labels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli.train import labels as labels_command
from dcsm_attr.datasets.collection import LabeledImage
from dcsm_attr.datasets.labels import LabelRow, read_image_labels
from dcsm_attr.datasets.masks import VOC_CLASSES, classes_in_mask, label_image, read_mask
from dcsm_attr.datasets.voc import annotated_classes, read_voc_list, voc_collection

AEROPLANE, CAT, DOG, PERSON = map(VOC_CLASSES.index, ("aeroplane", "cat", "dog", "person"))
# Image id to classes; the masks show these classes and void.
SHOWN = {"2007_01": (CAT,), "2007_02": (AEROPLANE, PERSON), "2007_03": (DOG,)}
LISTS = {"train": ["2007_02", "2007_01"], "val": ["2007_03"]}


def annotation(*objects):
    """XML in the form of VOC; the parts of a person are not objects."""
    objects_xml = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name></part></object>"
        for name, hard in objects
    )
    return f"<annotation><source><name>x</name></source>{objects_xml}</annotation>"


@pytest.fixture
def root(tmp_path):
    """Three images with masks, the lists train and val, and no image-level labels."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, classes in SHOWN.items():
        Image.new("RGB", (6, 4)).save(root / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((4, 6), dtype=np.uint8)
        mask[0, 0] = 255
        mask[1, : len(classes)] = np.array(classes) + 1
        label_image(mask).save(root / "SegmentationClass" / f"{name}.png")
    for split, names in LISTS.items():
        write_list(root, split, *names)
    return root


def write_list(root, split, *lines):
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_labels(root, text, name="image_labels.csv"):
    (root / name).write_text(f"id,split,labels\n{text}")
    return root / name


def write_annotations(root):
    (root / "Annotations").mkdir()
    for name, classes in SHOWN.items():
        objects = [(VOC_CLASSES[c], 0) for c in classes]
        (root / "Annotations" / f"{name}.xml").write_text(annotation(*objects, *objects))


# Lists


def test_a_list_of_ids(root):
    first, second = read_voc_list(root, "train")
    assert first.name == "2007_02"
    assert first.image == root / "JPEGImages" / "2007_02.jpg"
    assert first.mask == root / "SegmentationClass" / "2007_02.png"
    assert second.name == "2007_01"


def test_an_augmented_list_has_ids_or_pairs_of_paths(root):
    line = "/JPEGImages/2007_01.jpg /SegmentationClassAug/2007_01.png"
    write_list(root, "train_aug", line, "", "2007_02", "  JPEGImages/2007_03.jpg  SegmentationClass/2007_03.png ")
    entries = read_voc_list(root, "train_aug")
    assert [entry.name for entry in entries] == ["2007_01", "2007_02", "2007_03"]
    assert [entry.image for entry in entries] == [root / "JPEGImages" / f"{name}.jpg" for name in SHOWN]
    folders = ["SegmentationClassAug", "SegmentationClassAug", "SegmentationClass"]
    assert [e.mask for e in entries] == [root / f / f"{name}.png" for f, name in zip(folders, SHOWN, strict=True)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"train\.txt: lists no image"),
        (["", "  "], r"train\.txt: lists no image"),
        (["a", "b", "", "a"], r"train\.txt, line 4: the id 'a' is listed twice, first in line 1"),
        (["a", "/J/a.jpg /M/a.png"], r"train\.txt, line 2: the id 'a' is listed twice"),
        (["a", "b -1"], r"train\.txt, line 2: must be an id, or the paths .*got 'b -1'"),
        (["JPEGImages/a.jpg"], r"train\.txt, line 1: must be an id"),
        (["/J/a.jpg /M/b.png"], r"train\.txt, line 1: must be an id, or the paths of an image and its mask"),
        (["/J/a.jpg /M/a.png 1"], r"train\.txt, line 1: must be an id"),
    ],
)
def test_rejects_bad_lists(root, lines, message):
    write_list(root, "train", *lines)
    with pytest.raises(ValueError, match=message):
        voc_collection(root, "train")


def test_a_missing_list_names_existing_lists(root, tmp_path):
    with pytest.raises(
        ValueError, match=r"test\.txt: there is no list of the split 'test'\. Existing lists: train, val\."
    ):
        voc_collection(root, "test")
    with pytest.raises(ValueError, match=r"not a VOC folder: it has no ImageSets.*VOCdevkit/VOC2012"):
        voc_collection(tmp_path, "train")


# Collections


def test_labels_from_the_file_in_the_folder(root):
    # The labels of the file differ from the masks and take precedence; its column split is ignored.
    write_labels(root, "2007_01,train,dog\n2007_02,val,person cat\n2007_09,val,sofa\n")
    collection = voc_collection(root, "train")
    assert collection.class_names == VOC_CLASSES
    masks = root / "SegmentationClass"
    assert collection.images == (
        LabeledImage("2007_02", root / "JPEGImages" / "2007_02.jpg", (CAT, PERSON), masks / "2007_02.png"),
        LabeledImage("2007_01", root / "JPEGImages" / "2007_01.jpg", (DOG,), masks / "2007_01.png"),
    )
    assert collection.presence().nonzero().tolist() == [[0, CAT], [0, PERSON], [1, DOG]]


def test_an_explicit_label_file_takes_precedence(root):
    write_annotations(root)
    write_labels(root, "2007_03,val,cat\n")
    other = write_labels(root, "2007_03,val,sofa\n", "other.csv")
    assert voc_collection(root, "val").images[0].classes == (CAT,)
    assert voc_collection(root, "val", labels=other).images[0].classes == (VOC_CLASSES.index("sofa"),)
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        voc_collection(root, "val", labels=root / "none.csv")


def test_labels_from_annotations(root):
    write_annotations(root)
    assert {p.name: p.classes for p in voc_collection(root, "train")} == {n: SHOWN[n] for n in LISTS["train"]}


def test_missing_labels_name_the_command(root):
    with pytest.raises(
        ValueError, match=r"neither image_labels\.csv nor Annotations\. Derive them with `dcsm-attr labels`"
    ):
        voc_collection(root, "train")


def test_without_masks_their_folder_is_not_checked(root):
    write_annotations(root)
    shutil.rmtree(root / "SegmentationClass")
    collection = voc_collection(root, "train", masks=False)
    assert [item.mask for item in collection] == [None, None]
    with pytest.raises(ValueError, match=r"SegmentationClass: 2 of 2 masks are missing: 2007_02\.png.*masks=False"):
        voc_collection(root, "train")


def test_masks_are_not_opened_with_masks_false(root, monkeypatch):
    write_annotations(root)
    for mask in (root / "SegmentationClass").iterdir():
        mask.write_bytes(b"")
    checked = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: checked.append(path) or is_file(path))
    voc_collection(root, "train", masks=False)
    assert checked
    assert not [path for path in checked if "SegmentationClass" in path.parts]


def test_missing_images_are_counted_and_five_named(root):
    names = [f"none{i}" for i in range(7)]
    write_list(root, "train", "2007_01", *names)
    write_labels(root, "2007_01,train,cat\n" + "".join(f"{name},train,cat\n" for name in names))
    five = r"none0\.jpg, none1\.jpg, none2\.jpg, none3\.jpg, none4\.jpg"
    with pytest.raises(ValueError, match=rf"JPEGImages: 7 of 8 images are missing: {five} and 2 more\. The split 'tr"):
        voc_collection(root, "train", masks=False)


def test_a_folder_is_not_an_image(root):
    write_annotations(root)
    (root / "JPEGImages" / "2007_03.jpg").unlink()
    (root / "JPEGImages" / "2007_03.jpg").mkdir()
    with pytest.raises(ValueError, match=r"1 of 1 images are missing: 2007_03\.jpg"):
        voc_collection(root, "val")


def test_images_without_a_row_are_counted_and_five_named(root):
    names = [f"2007_1{i}" for i in range(6)]
    for name in names:
        shutil.copy(root / "JPEGImages" / "2007_01.jpg", root / "JPEGImages" / f"{name}.jpg")
    write_list(root, "train", "2007_01", *names)
    write_labels(root, "2007_01,train,cat\n")
    expected = r"csv: 6 of 7 images of the split have no row: 2007_10, .*, 2007_14 and 1 more\. .*`dcsm-attr labels`"
    with pytest.raises(ValueError, match=expected):
        voc_collection(root, "train", masks=False)


def test_rejects_unknown_classes(root):
    write_labels(root, "2007_03,val,cat\n2007_02,train,aeroplne\n")
    with pytest.raises(
        ValueError, match=r"line 3: there is no class 'aeroplne' among the 20 .*Similar names: aeroplane"
    ):
        voc_collection(root, "val")


# Annotations


def test_difficult_objects_are_included_and_parts_are_not(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(annotation(("person", 0), ("dog", 1), ("person", 1)))
    assert annotated_classes(path) == (DOG, PERSON)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"2007_03\.xml: not complete XML"),
        (annotation(("cat", 0))[:-5], r"2007_03\.xml: not complete XML"),
        (annotation(), r"2007_03\.xml: names no object"),
        (annotation(("cat", 0), ("unicorn", 0)), r"2007_03\.xml: 'unicorn' is none of the 20 classes"),
        ("<annotation><object/></annotation>", r"2007_03\.xml: '' is none of the 20 classes"),
    ],
)
def test_rejects_bad_annotations(root, text, message):
    write_annotations(root)
    (root / "Annotations" / "2007_03.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        voc_collection(root, "val")


def test_rejects_missing_annotations(root):
    write_annotations(root)
    (root / "Annotations" / "2007_01.xml").unlink()
    with pytest.raises(ValueError, match=r"Annotations: 1 of 2 annotations are missing: 2007_01\.xml\. Complete"):
        voc_collection(root, "train")


# The command


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(labels_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("source", ["masks", "annotations"])
def test_the_command_derives_labels_that_the_collection_reads(root, source):
    if source == "annotations":
        write_annotations(root)
        shutil.rmtree(root / "SegmentationClass")
    path = root / "image_labels.csv"
    result = run(root, "--split", "train", "--split", "val", "--output", path)
    assert result.exit_code == 0, result.output
    assert path.read_text() == ("id,split,labels\n2007_02,train,aeroplane person\n2007_01,train,cat\n2007_03,val,dog\n")
    assert f"{path}: 3 images, from the {source}" in result.output
    assert "aeroplane 1, person 1, cat 1, dog 1" in result.output
    shutil.rmtree(root / "Annotations", ignore_errors=True)
    for split, names in LISTS.items():
        collection = voc_collection(root, split, masks=False)
        assert {p.name: p.classes for p in collection} == {name: SHOWN[name] for name in names}


def test_the_command_prefers_annotations_to_masks(root, tmp_path):
    write_annotations(root)
    (root / "Annotations" / "2007_03.xml").write_text(annotation(("sofa", 0)))
    run(root, "--split", "val", "--output", tmp_path / "new" / "labels.csv")
    rows = read_image_labels(tmp_path / "new" / "labels.csv", VOC_CLASSES).rows
    assert rows == {"2007_03": LabelRow("val", (VOC_CLASSES.index("sofa"),))}


def test_the_command_reads_the_masks_of_an_augmented_list(root, tmp_path):
    (root / "SegmentationClassAug").mkdir()
    label_image(np.array([[0, DOG + 1]])).save(root / "SegmentationClassAug" / "2007_01.png")
    write_list(root, "train_aug", "/JPEGImages/2007_01.jpg /SegmentationClassAug/2007_01.png")
    run(root, "--split", "train_aug", "--output", tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "id,split,labels\n2007_01,train_aug,dog\n"


def test_help_teaches_by_example():
    output = " ".join(run("--help").output.split())
    assert "dcsm-attr labels VOCdevkit/VOC2012 --split train" in output
    assert "including difficult ones" in output


def test_a_failed_command_leaves_the_file_unchanged(root, tmp_path):
    output = tmp_path / "labels.csv"
    output.write_text("old")

    def error(*splits):
        result = run(root, *(item for split in splits for item in ("--split", split)), "--output", output)
        assert result.exit_code == 1
        assert output.read_text() == "old"
        assert {path.name for path in tmp_path.iterdir()} == {"labels.csv", "VOC2012"}
        assert isinstance(result.exception, ValueError)
        return str(result.exception)

    assert "Existing lists: train, val" in error("test")
    assert "1 images are in two of the lists: 2007_03" in error("val", "val")
    label_image(np.array([[0, 255]])).save(root / "SegmentationClass" / "2007_01.png")
    assert "2007_01.png: contains no class" in error("train")
    label_image(np.array([[21]])).save(root / "SegmentationClass" / "2007_01.png")
    assert "2007_01.png: labels must be" in error("train")
    (root / "SegmentationClass" / "2007_01.png").unlink()
    assert "1 of 2 masks are missing: 2007_01.png. Without a folder Annotations" in error("train")


# Real data


@pytest.fixture(scope="module")
def subset(shared):
    folder = shared / "data" / "voc2012-subset"
    if not folder.is_dir():
        pytest.skip("needs the subset of PASCAL VOC 2012 in data/voc2012-subset")
    return folder


@pytest.mark.parametrize(("split", "count"), [("train", 528), ("val", 256)])
def test_labels_of_the_real_file_are_those_of_the_masks(subset, split, count):
    collection = voc_collection(subset, split)
    assert len(collection) == count
    for item in collection:
        with Image.open(item.path) as image:
            mask = read_mask(item.mask, (image.height, image.width))
        assert classes_in_mask(mask) == item.classes, item.name


def test_the_command_on_real_data(subset, tmp_path):
    result = run(subset, "--split", "train", "--split", "val", "--output", tmp_path / "labels.csv")
    assert result.exit_code == 0, result.output
    derived = (tmp_path / "labels.csv").read_text().splitlines()
    assert sorted(derived) == sorted((subset / "image_labels.csv").read_text().splitlines())
