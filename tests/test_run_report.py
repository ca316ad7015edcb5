"""The report of a run: its figures against sums made by hand, its thumbnails by their pixels, its page in a browser."""

import hashlib
import json
import re
import shutil
import tracemalloc
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli import app
from dcsm_attr.datasets.masks import VOC_CLASSES, label_image, voc_colors
from dcsm_attr.io import FolderStorage
from dcsm_attr.pipelines.report import RunStatistics, failure_kind, thumbnail, write_report

ANT, BEE, COW = range(3)
CLASS_NAMES = ["ant", "bee", "cow"]
GRAY = (120, 120, 120)
HOSTILE = "</script ><!-- <script >window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;\u2028"


def known(number, score, share):
    return {"class": number, "name": CLASS_NAMES[number], "value": number + 1, "score": score, "share": share}


def labeled(name, *classes, confidence=0.5, read=0.125, label=0.5, **changes):
    entry = {
        "name": name,
        "image": f"photographs/{name}.png",
        "labels": f"labels/{name}.png",
        "size": [30, 40],
        "classes": list(classes),
        "confidence": confidence,
        "seconds": {"read": read, "label": label},
    }
    return {**entry, **changes}


def failed(name, error="{photograph}: cannot be read."):
    photograph = f"photographs/{name}.png"
    return {"name": name, "image": photograph, "error": error.format(photograph=photograph)}


# Of four photographs that have labels, and one that has none.
ENTRIES = [
    labeled("a", known(ANT, 0.9, 0.5), known(BEE, 0.25, 0.25), confidence=0.75),
    labeled("b", known(ANT, 0.4, 0.1), confidence=0.55, label=1.5),
    failed("c"),
    labeled("d", confidence=1.0),
    labeled("e", known(BEE, 1.0, 0.05), confidence=0.95),
]


def head(entries, **changes):
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
    return {**run, **changes}


def write_manifest(folder, entries, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line) + "\n" for line in (head(entries, **changes), *entries)]
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def half_labeled(size=(30, 40), value=1):
    """Labels whose right half is of a class."""
    labels = np.zeros(size, dtype=np.uint8)
    labels[:, size[1] // 2 :] = value
    return labels


def make_run(folder, entries=ENTRIES, **changes):
    """A run in a folder: gray photographs, whose right half is labeled as an ant."""
    for kind in ("photographs", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    placed = []
    for number, entry in enumerate(entries):
        photograph = folder / "photographs" / f"{number}.png"
        if "error" not in entry:
            Image.new("RGB", (40, 30), GRAY).save(photograph)
            label_image(half_labeled()).save(folder / "labels" / f"{number}.png")
            entry = {**entry, "image": str(photograph), "labels": f"labels/{number}.png"}
        placed.append(entry)
    write_manifest(folder, placed, **changes)
    return FolderStorage(folder)


def written(storage, **options):
    """The page, and what stands in it for its script."""
    assert write_report(storage, progress=False, **options) == "report.html"
    page = storage.read("report.html").decode()
    return page, content_of(page)


def content_of(page):
    (content,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(content)


def decoded(uri):
    """A picture of the page as an array ``(H, W, 3)``."""
    beginning, content = uri.split(",")
    assert beginning == "data:image/jpeg;base64"
    return as_array(b64decode(content))


def as_array(jpeg):
    with Image.open(BytesIO(jpeg)) as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
        return np.asarray(picture).astype(int)


def bars(**counts):
    """Ten counts, zero but for those given: ``_4=1`` is one value from 0.4 to 0.5."""
    return [counts.get(f"_{number}", 0) for number in range(10)]


def test_the_figures_by_hand(tmp_path):
    _, content = written(make_run(tmp_path))
    assert content["run"] == {
        "version": "0.1.0",
        "photographs": 5,
        "labeled": 4,
        "failed": 1,
        "unfinished": 0,
        "class_count": 3,
    }
    assert content["histograms"] == {
        "score": {"counts": bars(_2=1, _4=1, _9=2), "count": 4, "mean": 0.6375},
        "share": {"counts": bars(_0=1, _1=1, _2=1, _5=1), "count": 4, "mean": 0.225},
        "confidence": {"counts": bars(_5=1, _7=1, _9=2), "count": 4, "mean": 0.8125},
    }
    ant, bee, none = content["classes"]
    assert (ant["class"], ant["name"], ant["value"], ant["photographs"], ant["color"]) == (0, "ant", 1, 2, "#800000")
    assert (bee["class"], bee["name"], bee["value"], bee["photographs"], bee["color"]) == (1, "bee", 2, 2, "#008000")
    assert ant["histograms"]["score"] == {"counts": bars(_4=1, _9=1), "count": 2, "mean": 0.65}
    assert ant["histograms"]["confidence"] == {"counts": bars(_5=1, _7=1), "count": 2, "mean": 0.65}
    assert bee["histograms"]["share"] == {"counts": bars(_0=1, _2=1), "count": 2, "mean": 0.15}
    assert (none["class"], none["photographs"]) == (None, 1)
    assert none["histograms"]["score"] == {"counts": bars(), "count": 0, "mean": None}
    assert none["histograms"]["confidence"] == {"counts": bars(_9=1), "count": 1, "mean": 1.0}
    doubtful = [(one["name"], one["class"], one["score"], one["share"]) for one in content["disagreements"]]
    assert doubtful == [("a", BEE, 0.25, 0.25), ("b", ANT, 0.4, 0.1)]
    # Seconds: 0.625, 1.625, 0.625, 0.625.
    assert content["speed"] == {
        "photographs_a_second": 4 / 3.5,
        "median": 0.625,
        "stages": [
            {"name": "read", "median": 0.125, "share": 0.5 / 3.5},
            {"name": "label", "median": 0.5, "share": 3 / 3.5},
        ],
    }
    (kind,) = content["failures"]
    assert kind == {"kind": "cannot be read.", "count": 1, "examples": [ENTRIES[2]]}
    assert content["settings"] == [
        ["model", "Net"],
        ["crf.iterations", "10"],
        ["outputs.maps", "False"],
        ["outputs.overlays", "100"],
    ]


def test_an_interrupted_run(tmp_path):
    _, content = written(make_run(tmp_path, images=12))
    assert content["run"]["unfinished"] == 7
    assert content["run"]["labeled"] == 4


def test_a_run_without_a_label(tmp_path):
    _, content = written(make_run(tmp_path, [failed("a"), failed("b")]))
    assert (content["run"]["labeled"], content["speed"], content["classes"]) == (0, None, [])
    assert content["histograms"]["score"] == {"counts": bars(), "count": 0, "mean": None}
    assert content["failures"][0]["count"] == 2


thousandths = st.integers(0, 1000)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), thousandths, thousandths), max_size=3), max_size=120))
def test_the_figures_against_all_lines_at_once(photographs):
    figures = RunStatistics()
    for number, classes in enumerate(photographs):
        entry = [known(one, score / 1000, share / 1000) for one, score, share in classes]
        figures.add_labeled(labeled(str(number), *entry))
    content = figures.content()
    for key, position in (("score", 1), ("share", 2)):
        values = [one[position] for classes in photographs for one in classes]
        counts = [sum(min(value // 100, 9) == at for value in values) for at in range(10)]
        assert content["histograms"][key]["counts"] == counts
        if values:
            assert content["histograms"][key]["mean"] == pytest.approx(sum(values) / len(values) / 1000, abs=6e-5)
    low = [
        (score, number, position, one)
        for number, classes in enumerate(photographs)
        for position, (one, score, _) in enumerate(classes)
        if score < 500
    ]
    expected = [(str(number), one, score / 1000) for score, number, _, one in sorted(low)[:50]]
    assert [(one["name"], one["class"], one["score"]) for one in content["disagreements"]] == expected


def test_of_many_disagreements_the_lowest_are_kept():
    figures = RunStatistics()
    scores = [number * 37 % 100 for number in range(200)]
    for number, score in enumerate(scores):
        figures.add_labeled(labeled(str(number), known(ANT, score / 100, 0.5)))
    content = figures.content()
    assert content["disagreeing"] == 100
    found = [(one["score"], one["name"]) for one in content["disagreements"]]
    # Each score twice; of equal ones the first comes first.
    lowest = sorted((score / 100, number) for number, score in enumerate(scores))[:50]
    assert found == [(score, str(number)) for score, number in lowest]


def test_memory_hardly_grows_with_the_run():
    figures = RunStatistics()

    def add(count):
        for number in range(count):
            figures.add_labeled(labeled(f"photograph {number}", known(ANT, number % 97 / 97, 0.2)))
            figures.add_failed(failed(f"failure {number}"))

    add(500)
    tracemalloc.start()
    try:
        add(4000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Three numbers of eight bytes for the medians, with room that arrays take in advance.
    assert held < 4000 * 3 * 8 * 1.5 + 50_000


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


def test_many_failures_are_told_by_kind(tmp_path):
    truncated = "{photograph}: cannot be read (OSError: %d bytes are missing)."
    entries = [failed("x", "{photograph}: no image.")] + [failed(str(n), truncated % n) for n in range(25)]
    _, content = written(make_run(tmp_path, entries))
    told = [(one["kind"], one["count"], len(one["examples"])) for one in content["failures"]]
    assert told == [("cannot be read (OSError: … bytes are missing).", 25, 20), ("no image.", 1, 1)]
    assert (
        content["failures"][0]["examples"][3]["error"]
        == "photographs/3.png: cannot be read (OSError: 3 bytes are missing)."
    )


def test_kinds_without_end_are_gathered():
    figures = RunStatistics()
    for number in range(80):
        figures.add_failed(failed(str(number), "word" + "x" * number))
    kinds = {one["kind"]: one["count"] for one in figures.content()["failures"]}
    assert len(kinds) == 51
    assert kinds["other reasons"] == 30


def test_thumbnails_are_spread_evenly(tmp_path):
    entries = [labeled(str(number), known(ANT, 0.05 * number, 0.5)) for number in range(10)]
    entries.insert(1, failed("failed"))
    storage = make_run(tmp_path, entries)
    _, content = written(storage, photographs=4)
    assert [row["name"] for row in content["thumbnails"]] == ["0", "2", "5", "7"]
    assert content["histograms"]["score"]["count"] == 10
    for photographs, expected in ((0, 0), (10, 10), (1000, 10)):
        assert len(written(storage, photographs=photographs)[1]["thumbnails"]) == expected


def test_a_thumbnail_by_its_pixels(tmp_path):
    storage = FolderStorage(tmp_path)
    path = tmp_path / "photo.png"
    Image.new("RGB", (400, 300), GRAY).save(path)
    (tmp_path / "labels").mkdir()
    label_image(half_labeled((300, 400), value=2)).save(tmp_path / "labels" / "a.png")
    entry = labeled("a", image=str(path), size=[300, 400])
    found = thumbnail(storage, entry)
    photograph, labels = as_array(found.photograph), as_array(found.labels)
    assert photograph.shape == labels.shape == (150, 200, 3)
    # JPEG is not exact; its blocks are of 16 pixels, so that the line between the regions reaches no further.
    assert abs(photograph - GRAY).max() <= 2
    assert abs(labels[:, :80] - GRAY).max() <= 3
    mixed = 0.45 * np.array(GRAY) + 0.55 * voc_colors()[2]
    assert abs(labels[:, 120:] - mixed).max() <= 3
    assert labels[:, 100].min() > 220


def test_of_an_image_that_is_gone_the_labels_are_shown(tmp_path):
    storage = make_run(tmp_path)
    (tmp_path / "photographs" / "0.png").unlink()
    _, content = written(storage)
    first, second = content["thumbnails"][:2]
    assert first["alone"] is None
    labels = decoded(first["with_labels"])
    assert labels.shape == (30, 40, 3)
    assert abs(labels[:16, 2:14]).max() <= 3
    assert abs(labels[:16, 34:] - voc_colors()[1]).max() <= 3
    assert second["alone"] is not None


@pytest.mark.parametrize(
    "broken",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: label_image(half_labeled((10, 10))).save(path),
        lambda path: Image.new("RGB", (40, 30)).save(path),
    ],
    ids=["missing", "cut off", "of another size", "not a label image"],
)
def test_without_a_label_image_the_image_stands_alone(tmp_path, broken):
    storage = make_run(tmp_path)
    broken(tmp_path / "labels" / "0.png")
    _, content = written(storage)
    assert content["thumbnails"][0]["with_labels"] is None
    assert abs(decoded(content["thumbnails"][0]["alone"]) - GRAY).max() <= 2


def test_an_image_with_more_pixels_than_in_the_run_is_another(tmp_path):
    storage = make_run(tmp_path)
    Image.new("RGB", (41, 30), GRAY).save(tmp_path / "photographs" / "0.png")
    assert written(storage)[1]["thumbnails"][0]["alone"] is None


def test_what_the_run_could_read_is_not_too_large(tmp_path, monkeypatch):
    storage = make_run(tmp_path)
    before = written(storage)[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert written(storage)[0] == before
    assert Image.MAX_IMAGE_PIXELS == 100


def test_images_that_are_named_by_uris(tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    storage = make_run(tmp_path)
    entry = labeled("a", image=(tmp_path / "photographs" / "0.png").as_uri(), labels="labels/0.png")
    assert abs(as_array(thumbnail(storage, entry).photograph) - GRAY).max() <= 2
    assert thumbnail(storage, {**entry, "image": entry["image"] + "x"}).photograph is None
    assert thumbnail(storage, {**entry, "image": "nonsense://a/b"}).photograph is None


class Markup(HTMLParser):
    """The tags of a page with their attributes, and the text of each script and style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self._inside = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.texts.append("")
            self._inside = tag

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


def hostile_run(folder):
    """Everything that comes from files would be markup if it could."""
    entries = [
        labeled(HOSTILE, {**known(ANT, 0.1, 0.5), "name": HOSTILE}),
        labeled("\udc80 is no text", known(BEE, 0.9, 0.5)),
        failed(HOSTILE, HOSTILE),
    ]
    return make_run(folder, entries, settings={HOSTILE: HOSTILE}, dcsm_attr=HOSTILE)


def test_text_from_files_never_becomes_markup(tmp_path):
    page, content = written(hostile_run(tmp_path / "hostile"))
    plain, _ = written(make_run(tmp_path / "plain"))
    assert Markup(page).tags == Markup(plain).tags
    assert not set("<>&\u2028") & set(Markup(page).texts[1])
    assert content["thumbnails"][0]["name"] == content["classes"][0]["name"] == HOSTILE
    assert content["thumbnails"][1]["name"] == "\udc80 is no text"
    assert content["failures"][0]["examples"][0]["error"] == HOSTILE
    assert content["settings"][0] == [HOSTILE, HOSTILE]


def test_a_browser_finds_nothing_to_load(tmp_path):
    page, _ = written(make_run(tmp_path))
    markup = Markup(page)
    references = [
        value
        for _, attributes in markup.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "style")
    ]
    assert len(references) == 7
    assert all(reference.startswith(("#", "data:")) for reference in references)
    for asset in ("report.html", "report.css", "report.js"):
        text = (files("dcsm_attr") / "assets" / asset).read_text(encoding="utf-8").replace("http-equiv", "")
        assert not re.findall(r"https?:|//\w+\.|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|http", text)


def test_the_policy_lets_only_the_shipped_script_and_style_work(tmp_path):
    page, _ = written(make_run(tmp_path))
    markup = Markup(page)
    (policy,) = [attributes["content"] for tag, attributes in markup.tags if "http-equiv" in attributes]
    style, _, script = markup.texts
    directives = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    for name, text in (("style-src", style), ("script-src", script)):
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[name] == f"'sha256-{digest}'"


def test_the_same_run_gives_the_same_bytes(tmp_path):
    storage = make_run(tmp_path)
    first = written(storage)[0]
    assert written(storage)[0] == first
    write_report(storage)
    assert storage.read("report.html").decode() == first


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no manifest.jsonl"):
        write_report(FolderStorage(tmp_path))


def test_the_number_of_images(tmp_path):
    with pytest.raises(ValueError, match="at least 0, got -1"):
        write_report(make_run(tmp_path), photographs=-1)


def cut_off(lines):
    return [*lines[:-1], lines[-1][:40]]


def changed(number, **changes):
    return lambda lines: [
        json.dumps({**json.loads(line), **changes}) + "\n" if at == number else line for at, line in enumerate(lines)
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], "line 1 of manifest.jsonl is not as a run writes it"),
        (cut_off, "line 6 of manifest.jsonl is not as a run writes it"),
        (lambda lines: [*lines, "\n"], "line 7 of manifest.jsonl is not"),
        (lambda lines: [*lines[:2], '"a"\n', *lines[3:]], "line 3 of manifest.jsonl is not"),
        (lambda lines: lines[:-1], "counts, 4 labeled and 1 failed; it has 3 and 1"),
        (changed(0, labeled=None), "line 1 of manifest.jsonl is not"),
        (changed(1, classes=[known(ANT, 1.5, 0.5)]), r"line 2 .*must be in \[0, 1\], got 1.5"),
        (changed(1, classes=[known(ANT, float("nan"), 0.5)]), r"line 2 .*must be in \[0, 1\], got nan"),
        (changed(1, confidence=-0.1), r"line 2 .*must be in \[0, 1\], got -0.1"),
        (changed(1, seconds=None), "line 2 of manifest.jsonl is not"),
        (changed(1, size=[1, 2, 3]), "line 2 of manifest.jsonl is not"),
    ],
)
def test_a_damaged_manifest_is_told(tmp_path, damage, message):
    storage = make_run(tmp_path)
    path = tmp_path / "manifest.jsonl"
    before = written(storage)[0]
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=message):
        write_report(storage, progress=False)
    assert storage.read("report.html").decode() == before


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    storage = make_run(tmp_path)
    before = written(storage)[0]

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("no space left")

    write_manifest(tmp_path, ENTRIES, images=99)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(storage, progress=False)
    assert storage.read("report.html").decode() == before


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(tmp_path):
    make_run(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    result = run("report", tmp_path, "--photographs", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(f"{tmp_path}/report.html")
    assert {path.name for path in tmp_path.iterdir()} == before | {"report.html"}
    assert [row["name"] for row in content_of((tmp_path / "report.html").read_text())["thumbnails"]] == ["a", "d"]


def test_the_command_makes_no_folder(tmp_path):
    result = run("report", tmp_path / "mistyped")
    assert result.exit_code != 0
    assert "there is no such folder" in str(result.exception)
    assert not (tmp_path / "mistyped").exists()


def real_run(folder, voc, count):
    """A run whose labels are masks of VOC."""
    entries = []
    (folder / "labels").mkdir(parents=True)
    for photograph in sorted((voc / "JPEGImages").iterdir())[:count]:
        name = photograph.stem
        shutil.copy(voc / "SegmentationClass" / f"{name}.png", folder / "labels")
        with Image.open(folder / "labels" / f"{name}.png") as mask:
            labels = np.asarray(mask)
        values = [int(value) for value in np.unique(labels) if 0 < value < 255]
        classes = [
            {"class": v - 1, "name": VOC_CLASSES[v - 1], "value": v, "score": 0.9, "share": float((labels == v).mean())}
            for v in values
        ]
        entries.append(labeled(name, *classes, image=str(photograph), size=list(labels.shape)))
    write_manifest(folder, entries, class_names=list(VOC_CLASSES))
    return FolderStorage(folder), entries


def test_real_images(shared, tmp_path):
    storage, entries = real_run(tmp_path, shared / "data" / "voc2012-subset", 12)
    page, content = written(storage)
    assert len(page) < 12 * 40_000 + 60_000
    for row, entry in zip(content["thumbnails"], entries, strict=True):
        alone, with_labels = decoded(row["alone"]), decoded(row["with_labels"])
        assert max(alone.shape) == 200
        assert alone.shape == with_labels.shape
        height, width = entry["size"]
        assert alone.shape[0] / alone.shape[1] == pytest.approx(height / width, rel=0.02)
        with Image.open(entry["image"]) as photograph:
            mean = np.asarray(photograph.convert("RGB")).mean(axis=(0, 1))
        assert abs(alone.mean(axis=(0, 1)) - mean).max() < 3
        # The image is as it was where the label is 0, away from the lines around the regions.
        with Image.open(tmp_path / entry["labels"]) as mask:
            labels = np.asarray(mask.resize((alone.shape[1], alone.shape[0]), Image.Resampling.NEAREST))
        far = np.asarray(Image.fromarray(labels > 0).convert("L").resize((25, 25), Image.Resampling.BOX)) == 0
        if far.any():
            difference = np.abs(alone - with_labels).mean(axis=2).astype(np.uint8)
            blocks = np.asarray(Image.fromarray(difference).resize((25, 25), Image.Resampling.BOX))
            assert np.median(blocks[far]) <= 3


@pytest.fixture(scope="module")
def browser():
    """An installed Chromium or Chrome."""
    api = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install -e ".[browser]"')
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"needs an installed browser; none of {', '.join(names)} is on the path")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """Opens a report; at the end, nothing else must have been asked for, and nothing must have been complained of."""
    contexts, complaints, requests = [], [], []

    def opened_page(storage, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((Path(storage.location) / "report.html").as_uri())
        return page

    yield opened_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:image/jpeg;base64,")] == [
        url for url in requests if url.endswith("/report.html")
    ]
    assert sum(url.startswith("file:") for url in requests) == len(contexts)


@pytest.fixture
def report(tmp_path):
    storage = make_run(tmp_path / "run")
    written(storage)
    return storage


def cards(page):
    return page.locator(".card .told > .text:first-child").all_text_contents()


def class_button(page, name):
    return page.locator("#class-rows").get_by_role("button", name=name)


def bar_counts(page, chart):
    """The counts that stand above the bars of a chart, the first of which is of all classes."""
    return [int(text) for text in page.locator("#charts svg").nth(chart).locator("text:not(.axis)").all_text_contents()]


def test_the_page_tells_the_figures(report, opened):
    page = opened(report)
    assert page.locator("h1").inner_text() == "Pseudo-labels of 5 photographs"
    told = dict(zip(*(page.locator(f"#figures {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert [told[name] for name in ("photographs", "labeled", "failed", "unfinished")] == ["5", "4", "1", "0"]
    assert told["images per second"].startswith("1.14\n")
    assert told["median time"].startswith("0.625 s\n")
    assert told["slowest stage"] == "label\n86 % of the seconds, median 0.5 s"
    assert not page.locator("#unfinished").is_visible()
    rows = [" ".join(row.split()) for row in page.locator("#class-rows tr").all_inner_texts()]
    assert rows == ["1 ant 2 30 % 0.65", "2 bee 2 15 % 0.63", "– no class 1 – –"]
    assert page.locator("#absent").inner_text() == "1 more class occurs in no image."
    assert [bar_counts(page, chart) for chart in range(3)] == [
        bars(_2=1, _4=1, _9=2),
        bars(_0=1, _1=1, _2=1, _5=1),
        bars(_5=1, _7=1, _9=2),
    ]
    assert page.locator("#charts svg").count() == 3
    assert page.locator("#disagreement-rows li").count() == 2
    told = page.locator("#disagreements-told").inner_text()
    assert told == "2 known classes have a score below 0.5, the lowest first."
    assert page.locator("#failure-kinds").inner_text().split("\n")[0] == "1 × cannot be read."
    assert "photographs/c.png: cannot be read." in page.locator("#failure-kinds").inner_text()
    assert not page.locator("#setting-rows").is_visible()
    page.locator("#settings summary").click()
    assert "crf.iterations\t10" in page.locator("#setting-rows").inner_text()


def test_a_class_is_a_filter(report, opened):
    page = opened(report)
    assert cards(page) == ["b", "a", "e", "d"]
    bee = class_button(page, "bee")
    bee.click()
    assert bee.get_attribute("aria-pressed") == "true"
    assert cards(page) == ["a", "e"]
    assert page.locator("#shown").inner_text() == "2 of 4 thumbnails shown"
    assert page.locator("#charts svg").count() == 6
    assert bar_counts(page, 0) == bars(_2=1, _4=1, _9=2)
    assert bar_counts(page, 1) == bars(_2=1, _9=1)
    assert page.locator("#disagreement-rows").inner_text().split()[0] == "a"
    assert page.locator("#disagreement-rows li").count() == 1
    assert "Of the chosen class: 1 of those listed." in page.locator("#disagreements-told").inner_text()
    class_button(page, "no class").click()
    assert bee.get_attribute("aria-pressed") == "false"
    assert cards(page) == ["d"]
    class_button(page, "no class").click()
    assert cards(page) == ["b", "a", "e", "d"]
    assert page.locator("#charts svg").count() == 3
    class_button(page, "ant").press("Enter")
    assert cards(page) == ["b", "a"]
    page.get_by_role("button", name="show all classes").click()
    assert cards(page) == ["b", "a", "e", "d"]


def test_the_order_of_thumbnails(report, opened):
    page = opened(report)
    by = {name: page.locator(f'[data-sort="{name}"]') for name in ("confidence", "score", "name")}
    assert by["confidence"].get_attribute("aria-pressed") == "true"
    by["confidence"].click()
    assert cards(page) == ["d", "e", "a", "b"]
    by["name"].click()
    assert cards(page) == ["a", "b", "d", "e"]
    assert by["confidence"].get_attribute("aria-pressed") == "false"
    by["score"].click()
    assert cards(page) == ["a", "b", "e", "d"]
    # Of the ants alone, b's score is the lowest.
    class_button(page, "ant").click()
    assert cards(page) == ["b", "a"]
    by["score"].click()
    assert cards(page) == ["a", "b"]


def brightness(page, selector):
    """Of the picture that an element shows, left and right, as the browser has decoded it."""
    return page.locator(selector).first.evaluate(
        """async (image) => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d", { willReadFrequently: true });
            context.drawImage(image, 0, 0);
            return [4, canvas.width - 4].map((x) => context.getImageData(x, 10, 1, 1).data[1]);
        }"""
    )


def test_images_with_and_without_labels(report, opened):
    page = opened(report)
    plain, under_ant = GRAY[1], round(0.45 * GRAY[1])
    image = "#grid img"
    assert brightness(page, image) == pytest.approx([plain, under_ant], abs=4)
    page.locator(".card").first.hover()
    assert brightness(page, image) == pytest.approx([plain, plain], abs=4)
    page.locator("h1").hover()
    assert brightness(page, image) == pytest.approx([plain, under_ant], abs=4)
    page.keyboard.press("p")
    assert page.locator("#alone").get_attribute("aria-pressed") == "true"
    assert brightness(page, image) == pytest.approx([plain, plain], abs=4)
    page.locator("#alone").click()
    assert brightness(page, image) == pytest.approx([plain, under_ant], abs=4)


def test_one_image_enlarged(report, opened):
    page = opened(report)
    dialog = page.locator("#enlarged")
    page.locator(".card").nth(1).press("Enter")
    assert dialog.is_visible()
    assert page.locator("#enlarged-name").inner_text() == "a"
    assert page.locator("#enlarged-pictures img").count() == 2
    facts = page.locator("#enlarged-facts").inner_text()
    assert "40 × 30 pixels" in facts
    assert "low score 0.25, 25 % of the area" in facts
    page.keyboard.press("ArrowRight")
    assert page.locator("#enlarged-name").inner_text() == "e"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#enlarged-name").inner_text() == "d"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("#disagreement-rows button").first.click()
    assert page.locator("#enlarged-name").inner_text() == "a"
    page.locator("#close").click()
    assert not dialog.is_visible()


def test_what_is_missing_is_told(tmp_path, opened):
    storage = make_run(tmp_path, images=7)
    (tmp_path / "photographs" / "0.png").unlink()
    (tmp_path / "labels" / "1.png").unlink()
    (tmp_path / "photographs" / "3.png").unlink()
    (tmp_path / "labels" / "3.png").unlink()
    written(storage)
    page = opened(storage)
    assert "2 photographs have neither labels nor an error yet" in page.locator("#unfinished").inner_text()
    told = page.locator("#unreadable").inner_text()
    assert "2 photographs cannot be read any more, and only the label image is shown." in told
    assert "2 photographs cannot be shown with labels" in told
    page.locator('[data-sort="name"]').click()
    notes = [page.locator(".card").nth(number).locator(".missing").all_inner_texts() for number in range(4)]
    assert notes == [
        ["the photograph cannot be read any more: labels alone"],
        ["the label image cannot be read: photograph alone"],
        ["neither the image nor its label image can be read"],
        [],
    ]
    assert page.locator(".card img").count() == 3
    written(storage, photographs=2)
    page = opened(storage)
    assert page.locator("#spread").inner_text().startswith("Of 4 labeled photographs, 2 have a thumbnail")


def test_names_that_would_be_markup(tmp_path, opened):
    storage = hostile_run(tmp_path)
    written(storage)
    page = opened(storage)
    assert page.locator("#class-rows .text").first.evaluate("(cell) => cell.textContent") == HOSTILE
    assert page.locator(".told > .text").first.evaluate("(name) => name.textContent") == HOSTILE
    assert HOSTILE in page.locator("#failure-kinds").evaluate("(list) => list.textContent")
    assert HOSTILE in page.locator("#setting-rows").evaluate("(list) => list.textContent")
    class_button(page, "script").click()
    page.locator(".card").first.click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0


def test_an_empty_run(tmp_path, opened):
    storage = make_run(tmp_path, [])
    written(storage)
    page = opened(storage)
    assert page.locator("#shown").inner_text() == "0 of 0 thumbnails shown"
    assert page.locator("#failures-told").inner_text() == "None: no image failed."
    assert bar_counts(page, 0) == bars()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_screen(tmp_path, opened, scheme):
    long = "a-name-without-a-place-to-break-it-" * 6
    entries = [*ENTRIES, labeled(long, {**known(COW, 0.1, 0.01), "name": long}), failed(long)]
    storage = make_run(tmp_path, entries)
    written(storage)
    page = opened(storage, color_scheme=scheme)
    colors = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    paper, ink = (sum(map(int, re.findall(r"\d+", color)[:3])) / 3 for color in colors)
    assert paper - ink > 150 if scheme == "light" else ink - paper > 150
    for width in (1400, 820, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".card").first.click()
        box = page.locator("#enlarged").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.keyboard.press("Escape")


def test_the_browser_refuses_what_the_page_does_not_hold(report, browser):
    context = browser.new_context()
    page = context.new_page()
    requests = []
    page.on("request", lambda request: requests.append(request))
    page.goto((Path(report.location) / "report.html").as_uri())
    violated = page.evaluate(
        """() => new Promise((resolve) => {
            const found = [];
            document.addEventListener("securitypolicyviolation", (event) => {
                found.push(event.effectiveDirective);
                if (found.length === 2) resolve(found.sort());
            });
            document.body.append(Object.assign(new Image(), { src: "http://localhost:9/a.png" }));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
        })"""
    )
    assert violated == ["img-src", "script-src-elem"]
    assert page.evaluate("window.hacked") is None
    assert {request.failure for request in requests if request.url.startswith("http")} == {"csp"}
    context.close()
