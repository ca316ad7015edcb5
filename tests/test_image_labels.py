"""Label files: writing and reading them back, and error messages that name the line."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsm_attr.datasets.labels import ImageLabels, LabelRow, read_image_labels, write_image_labels
from dcsm_attr.datasets.masks import VOC_CLASSES


@pytest.fixture
def label_file(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_reads_classes_and_splits_in_the_order_of_the_file(label_file):
    path = label_file("id,split,labels\nb,train,person cat\na,val,dog\nc,,cat cat\n")
    labels = read_image_labels(path)
    assert labels.class_names == ("cat", "dog", "person")
    assert list(labels.rows.items()) == [
        ("b", LabelRow("train", (0, 2))),
        ("a", LabelRow("val", (1,))),
        ("c", LabelRow(None, (0,))),
    ]
    given_names = read_image_labels(path, ["person", "horse", "dog", "cat"])
    assert given_names.class_names == ("person", "horse", "dog", "cat")
    assert [row.classes for row in given_names.rows.values()] == [(0, 3), (2,), (3,)]


@pytest.mark.parametrize(
    "text",
    [
        "id,labels\na,cat dog\n",
        "labels,id\ncat dog,a\n",
        "\ufeffid,labels\r\na,cat dog\r\n\r\n",
        "id , labels\n a ,  dog   cat \n",
        'id,note,labels\n"a","seen, twice",cat;dog',
        "id,labels\na,; cat ;dog;;\n",
    ],
)
def test_accepts_columns_in_any_order_and_any_separator(label_file, text):
    assert read_image_labels(label_file(text)) == ImageLabels(("cat", "dog"), {"a": LabelRow(None, (0, 1))})


def test_a_semicolon_separates_names_in_every_row(label_file):
    labels = read_image_labels(label_file("id,labels\na,dining table\nb,chair;dining table\nc,chair\n"))
    assert labels.class_names == ("chair", "dining table")
    assert [row.classes for row in labels.rows.values()] == [(1,), (0, 1), (0,)]


def test_written_bytes(tmp_path):
    path = tmp_path / "labels.csv"
    rows = {"x": LabelRow("train", (0, 1)), "y, z": LabelRow(None, (1,))}
    write_image_labels(path, ImageLabels(("cat", "dog"), rows))
    assert path.read_bytes() == b'id,split,labels\nx,train,cat dog\n"y, z",,dog\n'
    write_image_labels(path, ImageLabels(("cat", "dining table"), rows))
    assert path.read_bytes() == b'id,split,labels\nx,train,cat;dining table\n"y, z",,dining table;\n'
    # Only names that are used decide on the separator.
    write_image_labels(path, ImageLabels(("cat", "dog", "dining table"), rows))
    assert path.read_bytes() == b'id,split,labels\nx,train,cat dog\n"y, z",,dog\n'


def _texts(without=""):
    characters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters=without)
    return st.text(characters, min_size=1, max_size=6).filter(lambda text: text == text.strip())


@st.composite
def _label_files(draw):
    names = draw(st.lists(_texts(without=";"), min_size=1, max_size=5, unique=True))
    classes = st.sets(st.integers(0, len(names) - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
    rows = st.dictionaries(_texts(), st.builds(LabelRow, st.none() | _texts(), classes), min_size=1, max_size=6)
    return ImageLabels(tuple(names), draw(rows))


@given(_label_files())
def test_reading_inverts_writing(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("round") / "labels.csv"
    write_image_labels(path, labels)
    again = read_image_labels(path, labels.class_names)
    assert again == labels
    assert list(again.rows) == list(labels.rows)
    # Without class names, the names that occur are used.
    found = read_image_labels(path)
    used = sorted({labels.class_names[c] for row in labels.rows.values() for c in row.classes})
    assert list(found.class_names) == used
    for name, row in labels.rows.items():
        assert {used[c] for c in found.rows[name].classes} == {labels.class_names[c] for c in row.classes}


@given(_label_files())
def test_written_files_are_csv_with_three_columns(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("columns") / "labels.csv"
    write_image_labels(path, labels)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    assert [(row["id"], row["split"]) for row in rows] == [(n, r.split or "") for n, r in labels.rows.items()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv, line 1: is empty; it must name the columns: id,split,labels"),
        ("\nid,labels\na,cat\n", r"labels\.csv, line 1: is empty"),
        ("id,split,labels\n", r"labels\.csv: has no rows"),
        ("id,split\na,train\n", r"line 1: must name the columns.* labels missing in 'id,split'"),
        ("a,cat\nb,dog\n", r"line 1: must name.* id and labels missing in 'a,cat'"),
        ("id;labels\na;cat\n", r"line 1: must name.* separated by commas; id and labels missing in 'id;labels'"),
        ("id,labels\na,cat\nb,cat,dog\n", r"line 3: has 3 fields, but line 1 names 2 columns.*spaces or ';'"),
        ("id,labels\na\n", r"line 2: has 1 fields"),
        ("id,labels\na,cat\n ,cat\n", r"line 3: the id is empty"),
        ("id,labels\na,cat\nb,cat\n a,dog\n", r"line 4: the id 'a' is listed twice, first in line 2"),
        ("id,labels\na,cat\nb,\n", r"line 3: 'b' has no label; each image must show at least one class"),
        ("id,labels\na,cat\nb,;\n", r"line 3: 'b' has no label"),
        (
            "id,labels\na,cat\n\nb,dgo cat\n",
            r"line 4: there is no class 'dgo' among the 3 .*Similar names: dog\. Names that",
        ),
        (
            "id,labels\na,hot dog\n",
            r"line 2: there is no class 'hot' .*Names that contain spaces must be separated by ';'",
        ),
        ('id,labels\na,"cat\n', r"line 2: not CSV"),
    ],
)
def test_errors_name_the_line(label_file, text, message):
    with pytest.raises(ValueError, match=message):
        read_image_labels(label_file(text), ["cat", "dog", "hot dog"])


def test_rejects_other_encodings(label_file):
    with pytest.raises(ValueError, match=r"labels\.csv: not a text in UTF-8"):
        read_image_labels(label_file("id,labels\nä,cat\n", encoding="latin-1"))


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_image_labels(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        (("cat",), {}, "has no rows"),
        (("cat",), {"a": LabelRow(None, ())}, "'a' has no class"),
        (("cat",), {"a": LabelRow(None, (0, 1))}, r"classes of 'a' must lie between 0 and 0, got \(0, 1\)"),
        (("cat",), {"a": LabelRow(None, (-1,))}, "must lie between 0 and 0"),
        (("cat",), {"": LabelRow(None, (0,))}, "'' cannot be written"),
        (("cat",), {"a": LabelRow("", (0,))}, "'' cannot be written"),
        (("cat",), {" a": LabelRow(None, (0,))}, "' a' cannot be written"),
        (("c\nat",), {"a": LabelRow(None, (0,))}, "contains a line break"),
        (("cat;dog",), {"a": LabelRow(None, (0,))}, "'cat;dog' cannot be written: ';' separates names"),
        # Fails after the first row is written.
        (("cat",), {"a": LabelRow(None, (0,)), "\udcff": LabelRow(None, (0,))}, "surrogates not allowed"),
    ],
)
def test_rejects_labels_that_cannot_be_read_back(tmp_path, names, rows, message):
    (tmp_path / "labels.csv").write_text("old")
    with pytest.raises(ValueError, match=message):
        write_image_labels(tmp_path / "labels.csv", ImageLabels(names, rows))
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    assert (tmp_path / "labels.csv").read_text() == "old"


def test_reads_the_labels_of_voc(shared):
    path = shared / "data" / "voc2012-subset" / "image_labels.csv"
    labels = read_image_labels(path, VOC_CLASSES)
    assert sum(row.split == "train" for row in labels.rows.values()) == 528
    assert sum(row.split == "val" for row in labels.rows.values()) == 256
    assert labels.rows["2007_001678"].classes == tuple(map(VOC_CLASSES.index, ("chair", "person", "tvmonitor")))
    assert read_image_labels(path).class_names == VOC_CLASSES, "all 20 occur, and VOC's order is the alphabet's"


def test_rewrites_the_labels_of_voc_unchanged(shared, tmp_path):
    path = shared / "data" / "voc2012-subset" / "image_labels.csv"
    write_image_labels(tmp_path / "again.csv", read_image_labels(path, VOC_CLASSES))
    assert (tmp_path / "again.csv").read_text() == path.read_text()
