"""The report of a run: its numbers, its thumbnails by their pixels, and that no text becomes markup."""

import json
import re
import tracemalloc
from base64 import b64decode, b64encode
from hashlib import sha256
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli import app
from dcsm_attr.datasets.masks import label_image, voc_colors
from dcsm_attr.io import FolderStorage
from dcsm_attr.pipelines.report import RunStatistics, failure_kind, write_report

ANT, BEE, COW = range(3)
CLASS_NAMES = ["ant", "bee", "cow"]
GRAY = (120, 120, 120)
HOSTILE = "</title></style></td>\"'><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;"


def known(number, score, share):
    return {"class": number, "name": CLASS_NAMES[number], "value": number + 1, "score": score, "share": share}


def labeled(name, *classes, confidence=0.5, read=0.125, label=0.5, **changes):
    entry = {
        "name": name,
        "image": f"images/{name}.png",
        "labels": f"labels/{name}.png",
        "size": [30, 40],
        "classes": list(classes),
        "confidence": confidence,
        "seconds": {"read": read, "label": label},
    }
    return {**entry, **changes}


def failed(name, error="{image}: cannot be read."):
    image = f"images/{name}.png"
    return {"name": name, "image": image, "error": error.format(image=image)}


# Four images with labels, and one without.
ENTRIES = [
    labeled("a", known(ANT, 0.9, 0.5), known(BEE, 0.25, 0.25), confidence=0.75),
    labeled("b", known(ANT, 0.4, 0.1), confidence=0.55, label=1.5),
    failed("c"),
    labeled("d", confidence=1.0),
    labeled("e", known(BEE, 1.0, 0.05), confidence=0.95),
]


def write_manifest(folder, entries, **changes):
    failures = sum("error" in entry for entry in entries)
    run = {
        "dcsm_attr": "0.1.0",
        "images": len(entries),
        "labeled": len(entries) - failures,
        "failed": failures,
        "class_names": CLASS_NAMES,
        "settings": {"model": "Net", "crf": {"iterations": 10}},
        "outputs": {"maps": False, "overlays": 100},
    }
    lines = [json.dumps(line) + "\n" for line in ({**run, **changes}, *entries)]
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def make_run(folder, entries=ENTRIES, **changes):
    """A run of gray images, whose right half is labeled as an ant."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    labels = np.zeros((30, 40), dtype=np.uint8)
    labels[:, 20:] = ANT + 1
    placed = []
    for number, entry in enumerate(entries):
        if "error" not in entry:
            image = folder / "images" / f"{number}.png"
            Image.new("RGB", (40, 30), GRAY).save(image)
            label_image(labels).save(folder / "labels" / f"{number}.png")
            entry = {**entry, "image": str(image), "labels": f"labels/{number}.png"}
        placed.append(entry)
    write_manifest(folder, placed, **changes)
    return FolderStorage(folder)


class Page:
    """The parsed page; its markup is well-formed XML."""

    def __init__(self, content):
        self.content = content
        self.root = ElementTree.fromstring(content.removeprefix("<!doctype html>"))
        self.body = self.root.find("body")
        self.figures = self.body.findall(".//figure")

    def text(self, section):
        """All text between the heading of a section and the next heading."""
        return " ".join(" ".join(part.itertext()) for part in self._section(section))

    def rows(self, section):
        """Rows of all tables of a section as the texts of their cells, without the tooltips of bars."""
        rows = [row for part in self._section(section) for row in part.iter("tr")]
        return [["".join(_visible_text(cell)) for cell in row] for row in rows if len(row)]

    def names(self, title):
        """Names of the images in a group of thumbnails."""
        for group in self.body.findall("details"):
            if group.find("summary").text.startswith(f"{title}: "):
                return [figure.find("figcaption").text for figure in group.iter("figure")]
        raise KeyError(title)

    def _section(self, title):
        parts = list(self.body)
        if title:
            parts = parts[next(i for i, part in enumerate(parts) if part.tag == "h2" and part.text == title) + 1 :]
        return takewhile(lambda part: part.tag != "h2", parts)


def _visible_text(element):
    return (element.text or "", *(child.tail or "" for child in element))


def thumbnails(figure):
    """The images of a figure as arrays ``(H, W, 3)``."""
    return [decode(image.get("src")) for image in figure.iter("img")]


def decode(uri):
    beginning, content = uri.split(",")
    assert beginning == "data:image/jpeg;base64"
    with Image.open(BytesIO(b64decode(content))) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image).astype(int)


def report(storage, **options):
    assert write_report(storage, progress=False, **options) == "report.html"
    return Page(storage.read("report.html").decode())


def test_the_numbers_by_hand(tmp_path):
    page = report(make_run(tmp_path))
    assert page.body.find("h1").text == "Pseudo-labels of 5 images"
    assert page.rows("") == [["images", "5"], ["labeled", "4"], ["failed", "1"], ["unfinished", "0"]]
    # In seconds 0.625, 1.625, 0.625 and 0.625.
    assert page.text("Speed").startswith("1.14 images per second")
    assert page.rows("Speed")[1:] == [["read", "0.125 s", "14%"], ["label", "0.75 s", "86%"]]
    distributions = page.text("Distributions")
    assert re.findall(r"mean ([0-9.-]+)", distributions) == ["0.64", "0.23", "0.81"]
    assert re.findall(r"counts: ([0-9 ]+\d)", distributions) == [
        "0 0 1 0 1 0 0 0 0 2",
        "1 1 1 0 0 1 0 0 0 0",
        "0 0 0 0 0 1 0 1 0 2",
    ]
    assert page.rows("Classes")[1:] == [
        [" 1", "ant", "2", "30.0%", "0.65", "0.65", ""],
        [" 2", "bee", "2", "15.0%", "0.62", "0.85", ""],
        [" 0", "no class", "1", "-", "-", "1.00", ""],
    ]
    assert "Number of classes of the model: 3." in page.text("Classes")
    assert page.rows("Low scores")[1:] == [["a", " 2", "bee", "0.25", "25.0%"], ["b", " 1", "ant", "0.40", "10.0%"]]
    assert "below 0.5: 2." in page.text("Low scores")
    assert page.rows("Failures")[1:] == [["c", "images/c.png", "images/c.png: cannot be read."]]
    assert "cannot be read. (1)" in page.text("Failures")
    settings = [["model", "Net"], ["crf.iterations", "10"], ["outputs.maps", "False"], ["outputs.overlays", "100"]]
    assert page.rows("Settings") == settings


def test_bars_and_colors(tmp_path):
    page = report(make_run(tmp_path))
    score = page.body.find(".//div[@class='charts']//svg")
    heights = [float(bar.get("height")) for bar in score]
    assert heights == [0, 0, 55, 0, 55, 0, 0, 0, 0, 110]
    assert score[9].find("title").text == "0.9 to 1: 2"
    chips = page.body.findall(".//td/svg[@width='14']/rect")
    assert [chip.get("fill") for chip in chips] == ["#800000", "#008000", "#000000", "#008000", "#800000"]


def test_an_interrupted_run(tmp_path):
    page = report(make_run(tmp_path, images=12, stopped="OSError: <full>"))
    assert page.rows("")[3] == ["unfinished", "7"]
    assert page.body.find("p[@class='notice']").text == (
        "This run is not finished: 7 images are missing. It stopped: OSError: <full>"
    )


@pytest.mark.parametrize("entries", [[], [failed("a"), failed("b")]])
def test_a_run_without_labels(tmp_path, entries):
    page = report(make_run(tmp_path, entries))
    assert page.rows("")[1:3] == [["labeled", "0"], ["failed", str(len(entries))]]
    assert page.rows("Classes") == [
        ["label", "class", "images", "mean area", "mean score", "mean confidence", "scores"]
    ]
    assert page.text("Distributions").count("mean -") == 3
    assert page.figures == []


def test_manifests_of_version_0_1(tmp_path):
    storage = make_run(tmp_path)
    page = report(storage)
    path = tmp_path / "manifest.jsonl"
    old = path.read_text().replace('"images":', '"photographs":').replace('"image":', '"photograph":')
    path.write_text(old.replace('"labeled":', '"labelled":'))
    assert report(storage).content == page.content


thousandths = st.integers(0, 1000)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), thousandths, thousandths), max_size=3), max_size=120))
def test_statistics_against_all_images_at_once(images):
    statistics = RunStatistics(0, 0)
    for number, classes in enumerate(images):
        entry = [known(one, score / 1000, share / 1000) for one, score, share in classes]
        statistics.add(labeled(str(number), *entry))
    for found, position in ((statistics.score, 1), (statistics.share, 2)):
        values = [one[position] for classes in images for one in classes]
        assert found.counts == [sum(min(value // 100, 9) == at for value in values) for at in range(10)]
        assert found.mean == (pytest.approx(sum(values) / len(values) / 1000) if values else None)
    low = [
        (score, number, position, one)
        for number, classes in enumerate(images)
        for position, (one, score, _) in enumerate(classes)
        if score < 500
    ]
    assert statistics.low_scores.count == len(low)
    expected = [(str(number), one, score / 1000) for score, number, _, one in sorted(low)[:50]]
    assert [(name, one["class"], one["score"]) for name, one in statistics.low_scores.sorted()] == expected


def test_memory_does_not_grow_with_the_run():
    statistics = RunStatistics(20, 5)

    def add(count):
        for number in range(count):
            statistics.add(labeled(f"image {number}", known(ANT, number % 97 / 97, 0.2), confidence=number % 89 / 89))
            statistics.add(failed(f"failure {number}"))

    add(500)
    tracemalloc.start()
    try:
        add(4000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("photos/17.png: not an image.", "not an image."),
        ("cannot open 'photos/17.png' (errno 5)", "cannot open '…' (errno …)"),
        ("no room", "no room"),
    ],
)
def test_kinds_of_failures(reason, kind):
    assert failure_kind(reason, "photos/17.png") == kind


def test_failures_are_grouped_by_kind(tmp_path):
    truncated = "{image}: cannot be read (OSError: %d bytes are missing)."
    page = report(
        make_run(tmp_path, [failed("x", "{image}: no image.")] + [failed(str(n), truncated % n) for n in range(25)])
    )
    kinds = [details.find("summary").text for details in page.body.findall("details")][2:4]
    assert kinds == ["cannot be read (OSError: … bytes are missing). (25)", "no image. (1)"]
    rows = page.rows("Failures")
    assert len(rows) == 1 + 20 + 1 + 1
    assert rows[4] == ["3", "images/3.png", "images/3.png: cannot be read (OSError: 3 bytes are missing)."]


def test_the_number_of_kinds_is_limited():
    statistics = RunStatistics(0, 0)
    for number in range(80):
        statistics.add(failed(str(number), "word" + "x" * number))
    assert len(statistics.failures) == 51
    assert statistics.failures["other reasons"][0] == 30


def test_which_images_have_thumbnails(tmp_path):
    entries = [labeled(str(n), known(n % 2, 0.9, 0.5), confidence=(n * 7 % 20) / 20) for n in range(20)]
    storage = make_run(tmp_path, [*entries, labeled("none"), failed("failed")])
    page = report(storage, num_thumbnails=24)
    by_confidence = sorted(range(20), key=lambda n: n * 7 % 20)
    # The image without a class has the confidence 0.5, as another one before it.
    assert page.names("Lowest confidence") == [str(n) for n in by_confidence[:11]] + ["none"]
    ants, bees = page.names("ant"), page.names("bee")
    assert len(set(ants)) == len(set(bees)) == 3
    assert {int(name) % 2 for name in ants} == {ANT}
    assert {int(name) % 2 for name in bees} == {BEE}
    assert page.names("no class") == ["none"]
    assert ants != ["0", "2", "4"], "a sample of the whole run, not its beginning"
    assert [len(report(storage, num_thumbnails=number).figures) for number in (0, 1, 1000)] == [0, 1, 42]
    # Half for the lowest confidence; the other half is not enough for an image of each class.
    assert len(report(storage, num_thumbnails=6).figures) == 3


def test_thumbnails_by_their_pixels(tmp_path):
    (tmp_path / "labels").mkdir()
    labels = np.zeros((300, 400), dtype=np.uint8)
    labels[:, 200:] = BEE + 1
    label_image(labels).save(tmp_path / "labels" / "a.png")
    Image.new("RGB", (400, 300), GRAY).save(tmp_path / "a.png")
    write_manifest(tmp_path, [labeled("a", image=str(tmp_path / "a.png"), size=[300, 400])])
    image, with_labels = thumbnails(report(FolderStorage(tmp_path)).figures[0])
    assert image.shape == with_labels.shape == (150, 200, 3)
    # JPEG is not exact; its blocks have 16 pixels, so that the line between the regions changes only those near it.
    assert abs(image - GRAY).max() <= 2
    assert abs(with_labels[:, :80] - GRAY).max() <= 3
    mixed = 0.45 * np.array(GRAY) + 0.55 * voc_colors()[BEE + 1]
    assert abs(with_labels[:, 120:] - mixed).max() <= 3
    assert with_labels[:, 100].min() > 220


def first_figure(page):
    return next(figure for figure in page.figures if figure.find("figcaption").text == "a")


def test_labels_are_shown_without_a_missing_image(tmp_path):
    storage = make_run(tmp_path)
    (tmp_path / "images" / "0.png").unlink()
    figure = first_figure(report(storage))
    (labels,) = thumbnails(figure)
    assert labels.shape == (30, 40, 3)
    assert abs(labels[:16, 2:14]).max() <= 3
    assert abs(labels[:16, 34:] - voc_colors()[1]).max() <= 3
    assert "The image cannot be read." in "".join(figure.itertext())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: label_image(np.ones((10, 10), dtype=np.uint8)).save(path),
        lambda path: Image.new("RGB", (40, 30)).save(path),
    ],
    ids=["missing", "cut off", "of another size", "not a label map"],
)
def test_an_image_is_shown_without_a_damaged_label_map(tmp_path, damage):
    storage = make_run(tmp_path)
    damage(tmp_path / "labels" / "0.png")
    figure = first_figure(report(storage))
    (image,) = thumbnails(figure)
    assert abs(image - GRAY).max() <= 2
    assert "The label map cannot be read." in "".join(figure.itertext())


def test_an_image_with_more_pixels_than_in_the_run_is_not_read(tmp_path):
    storage = make_run(tmp_path)
    Image.new("RGB", (41, 30), GRAY).save(tmp_path / "images" / "0.png")
    assert len(thumbnails(first_figure(report(storage)))) == 1


def test_images_of_the_run_are_not_too_large(tmp_path, monkeypatch):
    storage = make_run(tmp_path)
    before = report(storage).content
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert report(storage).content == before
    assert Image.MAX_IMAGE_PIXELS == 100


def test_images_that_are_named_by_uris(tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    storage = make_run(tmp_path)
    uri = (tmp_path / "images" / "0.png").as_uri()
    uris = {"a": uri, "b": uri + "x", "c": "nonsense://a/b"}
    write_manifest(tmp_path, [labeled(name, image=uris[name], labels="labels/0.png") for name in uris])
    images = [thumbnails(figure) for figure in report(storage).figures[:3]]
    assert [len(pair) for pair in images] == [2, 1, 1]
    assert abs(images[0][0] - GRAY).max() <= 2


def test_text_from_files_never_becomes_markup(tmp_path):
    entries = [
        labeled(HOSTILE, {**known(ANT, 0.1, 0.5), "name": HOSTILE}),
        labeled("\udc80 is no text", known(BEE, 0.9, 0.5)),
        failed(HOSTILE, HOSTILE),
    ]
    page = report(
        make_run(tmp_path / "h", entries, settings={HOSTILE: HOSTILE}, dcsm_attr=HOSTILE, images=4, stopped=HOSTILE)
    )
    tags = {element.tag for element in page.root.iter()}
    assert tags == {element.tag for element in report(make_run(tmp_path / "plain")).root.iter()}
    assert page.rows("Classes")[1][1] == HOSTILE
    assert page.rows("Low scores")[1][::2] == [HOSTILE, HOSTILE, "50.0%"]
    assert page.rows("Failures")[1] == [HOSTILE, f"images/{HOSTILE}.png", HOSTILE]
    assert page.rows("Settings")[0] == [HOSTILE, HOSTILE]
    assert page.names("Lowest confidence") == [HOSTILE, "\\udc80 is no text"]
    assert page.content.count("window.hacked") == page.content.count("&lt;script&gt;window.hacked") * 2


def test_a_browser_loads_nothing(tmp_path):
    page = report(make_run(tmp_path))
    elements = list(page.root.iter())
    assert not [element for element in elements if element.tag in ("script", "link", "iframe", "object", "form")]
    allowed = {"src", "width", "height", "x", "y", "fill", "class", "alt", "open", "lang", "charset", "name", "content"}
    assert {name for element in elements for name in element.attrib} == allowed | {"http-equiv"}
    assert all(element.get("src").startswith("data:image/jpeg;base64,") for element in elements if element.get("src"))
    policy = page.root.find("head/meta[@http-equiv='Content-Security-Policy']").get("content")
    style = b64encode(sha256(page.root.find("head/style").text.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    )


def test_the_same_run_gives_the_same_bytes(tmp_path):
    storage = make_run(tmp_path)
    first = report(storage).content
    assert report(storage).content == first


def test_a_run_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.jsonl"):
        write_report(FolderStorage(tmp_path))


def test_a_negative_number_of_thumbnails(tmp_path):
    with pytest.raises(ValueError, match="at least 0, got -1"):
        write_report(make_run(tmp_path), num_thumbnails=-1)


def cut_off(lines):
    return [*lines[:-1], lines[-1][:40]]


def changed(number, **changes):
    return lambda lines: [
        json.dumps({**json.loads(line), **changes}) + "\n" if at == number else line for at, line in enumerate(lines)
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], "line 1 of manifest.jsonl is damaged"),
        (cut_off, "line 6 of manifest.jsonl is damaged"),
        (lambda lines: [*lines, "\n"], "line 7 of manifest.jsonl is"),
        (lambda lines: [*lines[:2], '"a"\n', *lines[3:]], "line 3 of manifest.jsonl is"),
        (lambda lines: lines[:-1], "counts, 4 labeled and 1 failed; it has 3 and 1"),
        (changed(0, labeled=None), "line 1 of manifest.jsonl is"),
        (changed(1, classes=[known(ANT, 1.5, 0.5)]), r"line 2 .*must be in \[0, 1\], got 1.5"),
        (changed(1, classes=[known(ANT, float("nan"), 0.5)]), r"line 2 .*must be in \[0, 1\], got nan"),
        (changed(1, confidence=-0.1), r"line 2 .*must be in \[0, 1\], got -0.1"),
        (changed(1, seconds=None), "line 2 of manifest.jsonl is"),
        (changed(1, size=[1, 2, 3]), "line 2 of manifest.jsonl is"),
    ],
)
def test_a_damaged_manifest(tmp_path, damage, message):
    storage = make_run(tmp_path)
    path = tmp_path / "manifest.jsonl"
    before = report(storage).content
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=message):
        write_report(storage, progress=False)
    assert storage.read("report.html").decode() == before


def test_a_page_that_cannot_be_written_keeps_the_earlier_one(tmp_path, monkeypatch):
    storage = make_run(tmp_path)
    before = report(storage).content

    def fail(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    write_manifest(tmp_path, ENTRIES, images=99)
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(storage, progress=False)
    assert storage.read("report.html").decode() == before


def test_the_command(tmp_path):
    make_run(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--thumbnails", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(f"{tmp_path}/report.html")
    assert {path.name for path in tmp_path.iterdir()} == before | {"report.html"}
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.names("Lowest confidence") == ["b"]


def test_the_command_makes_no_folder(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path / "mistyped")])
    assert result.exit_code != 0
    assert "there is no such folder" in str(result.exception)
    assert not (tmp_path / "mistyped").exists()
