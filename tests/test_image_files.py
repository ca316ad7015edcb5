"""Image files of every kind, through the commands: read correctly, or reported with a reason, without ending the
run."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli import app
from dcsm_attr.cli.build import build_segmenter
from dcsm_attr.cli.options import MethodOptions, ModelOptions
from dcsm_attr.datasets.images import ImageReadError, image_extensions, open_image_file, read_image
from dcsm_attr.datasets.masks import label_image
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.evaluation.evaluate import evaluate
from dcsm_attr.segmentation import Segmentation, visualization

SIDE = 40
NETWORK_FILE = ("--weights", "demo", "--device", "cpu")


def scene(number=0):
    return Image.fromarray(generate_scene(number, 0, SIDE).image.permute(1, 2, 0).numpy())


def pixels(path):
    return np.asarray(read_image(path), dtype=int)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def no_figures(monkeypatch):
    """Replaces the figures, which take most of the time."""
    monkeypatch.setattr(Segmentation, "overview", lambda self: Figure(figsize=(1, 1)))
    monkeypatch.setattr(visualization, "plot_attribution", lambda *_: Figure(figsize=(1, 1)))


def write_readable(folder):
    """Writes readable files of every kind; returns the expected pixels and their tolerance."""
    first, second = scene(0), scene(1)
    gray = np.asarray(first.convert("L"))
    with_alpha = first.copy()
    with_alpha.putalpha(
        Image.fromarray(np.where(np.arange(SIDE)[:, None] < SIDE // 2, 255, 0).astype(np.uint8) + 0 * gray)
    )
    on_white = np.array(first)
    on_white[SIDE // 2 :] = 255
    palette = first.quantize(64)
    colors = np.asarray(palette.convert("RGB"))
    through = colors.copy()
    through[np.asarray(palette) == 5] = 255
    turned = Image.Exif()
    turned[0x0112] = 8  # Rotate by 90 degrees counterclockwise.
    moving = {"save_all": True, "append_images": [second], "duration": 100}
    first.save(folder / "rgb.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "sixteen.tif")
    first.convert("CMYK").save(folder / "cmyk.tif")
    first.convert("CMYK").save(folder / "cmyk.jpg", quality=98)
    with_alpha.save(folder / "alpha.png")
    with_alpha.save(folder / "alpha.webp", lossless=True)
    palette.save(folder / "palette.png")
    palette.save(folder / "through.png", transparency=5)
    palette.save(folder / "moving.gif", **{**moving, "append_images": [second.quantize(64)]})
    first.save(folder / "moving.png", **moving)
    first.save(folder / "moving.webp", lossless=True, **moving)
    first.save(folder / "turned.png", exif=turned)
    first.save(folder / "really-png.jpg", "PNG")
    rgb = np.asarray(first)
    from_gray = np.repeat(gray[..., None], 3, axis=2)
    exact = {
        "rgb.png": rgb,
        "sixteen.png": from_gray,
        "sixteen.tif": from_gray,
        "cmyk.tif": rgb,
        "alpha.png": on_white,
        "alpha.webp": on_white,
        "palette.png": colors,
        "through.png": through,
        "moving.gif": colors,
        "moving.png": rgb,
        "moving.webp": rgb,
        "turned.png": np.rot90(rgb),
        "really-png.jpg": rgb,
    }
    return {name: (array, 0) for name, array in exact.items()} | {"cmyk.jpg": (rgb, 40)}


def write_unreadable(folder):
    """Writes unreadable files; returns the expected messages."""
    scene().save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    scene().save(folder / "large.bmp")
    Image.new("RGB", (300, 300)).save(folder / "large.png")
    (folder / "program.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (folder / "large.bmp").unlink()
    return {
        "cut.png": "cannot be read",
        "empty.png": "not an image",
        "text.jpg": "not an image",
        "large.png": "more than 50000 pixels",
        "program.eps": "not an image",
    }


def test_reads_files_of_every_kind(tmp_path):
    expected = write_readable(tmp_path)
    assert len(expected) == 14
    for name, (array, tolerance) in expected.items():
        found = pixels(tmp_path / name)
        assert found.shape == array.shape, name
        assert np.abs(found - array).max() <= tolerance, name


def test_unreadable_files_are_named_with_the_reason(tmp_path):
    for name, message in write_unreadable(tmp_path).items():
        with pytest.raises(ImageReadError, match=f"{name}: .*{message}"):
            read_image(tmp_path / name, max_pixels=50_000)


@pytest.mark.parametrize(("command", "last"), [("segment", "manifest.json"), ("attribute", "attribution.json")])
def test_unreadable_files_do_not_end_a_run(tmp_path, no_figures, command, last):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    unreadable, readable = write_unreadable(folder), write_readable(folder)
    # Folders skip EPS files; here it is passed explicitly.
    result = run(command, folder, folder / "program.eps", *NETWORK_FILE, "--max-pixels", 50_000, "--output", out)
    assert result.exit_code == 1, result.output
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["images"] == len(readable) + len(unreadable)
    assert {entry["image"]: entry["reason"] for entry in manifest["failures"]}.keys() == {
        str(folder / name) for name in unreadable
    }
    for entry in manifest["failures"]:
        name = entry["image"].rsplit("/", 1)[1]
        assert unreadable[name] in entry["reason"]
        assert entry["reason"] in result.output
    folders = {entry["image"].rsplit("/", 1)[1]: entry["folder"] for entry in manifest["results"]}
    assert set(folders) == set(readable)
    assert {path.name for path in out.iterdir()} == {*folders.values(), "run.json", "settings.json"}
    for name, (array, _) in readable.items():
        content = json.loads((out / folders[name] / last).read_text())
        assert content["image"] == str(folder / name)
        assert tuple(content["size"]) == array.shape[:2]


@pytest.fixture
def voc(tmp_path):
    """A VOC folder of eight images; one image and one mask of each list cannot be read."""
    root = tmp_path / "voc"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    rows = ["id,split,labels"]
    for number in range(8):
        generated = generate_scene(number, 7, SIDE)
        Image.fromarray(generated.image.permute(1, 2, 0).numpy()).save(root / "JPEGImages" / f"{number}.jpg")
        label_image(np.full((SIDE, SIDE), 1 + number % 2)).save(root / "SegmentationClass" / f"{number}.png")
        rows.append(f"{number},{('train', 'val')[number // 4]},{('house', 'tree')[number % 2]}")
    for number in (1, 5):
        (root / "JPEGImages" / f"{number}.jpg").write_bytes(b"no image")
        mask = root / "SegmentationClass" / f"{number + 1}.png"
        mask.write_bytes(mask.read_bytes()[:60])
    (root / "image_labels.csv").write_text("\n".join(rows) + "\n")
    for name, numbers in {"train": range(4), "val": range(4, 8)}.items():
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("".join(f"{n}\n" for n in numbers))
    return root


def test_evaluate_skips_unreadable_files(voc, tmp_path):
    (voc / "classes.txt").write_text("\n".join(CLASS_NAMES))
    result = run("evaluate", voc, *NETWORK_FILE, "--no-crf", "--output", tmp_path / "out")
    assert result.exit_code == 1, result.output
    (evaluation,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["evaluations"]
    assert evaluation["images"] == 2
    assert set(evaluation["skipped"]) == {"5", "6"}
    assert "5.jpg: not an image" in evaluation["skipped"]["5"]
    assert "6.png: cannot be read" in evaluation["skipped"]["6"]


def test_evaluate_uses_the_pixel_limit(voc, tmp_path):
    (voc / "classes.txt").write_text("\n".join(CLASS_NAMES))
    Image.new("RGB", (50, 40)).save(voc / "JPEGImages" / "4.jpg")
    Image.new("P", (50, 40)).save(voc / "SegmentationClass" / "7.png")
    segmenter = build_segmenter(ModelOptions(weights="demo"), MethodOptions(), crf=None, max_pixels=SIDE**2)
    skipped = evaluate(segmenter, voc_collection(voc, "val"), "known", progress=False).skipped
    assert "4.jpg: has more than 1600 pixels" in skipped["4"]
    assert "7.png: has more than 1600 pixels" in skipped["7"]


def train(voc, output, *options):
    return run(
        *("train", voc, "--model", "squeezenet1_1", "--weights", "none", "--size", 48, "--steps", 2, "--batch-size", 4),
        *("--workers", 0, "--device", "cpu", "--output", output, *options),
    )


def test_train_reports_unreadable_files(voc, tmp_path, monkeypatch):
    (voc / "classes.txt").write_text("house\ntree\n")
    Image.new("RGB", (50, 40)).save(voc / "JPEGImages" / "0.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE**2)
    result = train(voc, tmp_path / "net")
    assert result.exit_code == 0, result.output
    failures = json.loads((tmp_path / "net" / "unreadable.json").read_text())["failures"]
    assert [failure.split("JPEGImages/")[1].split(" ")[:4] for failure in failures] == [
        ["0.jpg:", "has", "more", "than"],
        ["1.jpg:", "not", "an", "image,"],
        ["5.jpg:", "not", "an", "image,"],
    ]
    with (tmp_path / "net" / "log.csv").open() as file:
        # Two of the four images, in each of two steps.
        assert [row["unreadable"] for row in csv.DictReader(file)] == ["4"]


def test_resumed_training_keeps_the_list_of_unreadable_files(voc, tmp_path):
    (voc / "classes.txt").write_text("house\ntree\n")
    whole, damaged = voc / "JPEGImages" / "0.jpg", voc / "JPEGImages" / "1.jpg"
    train(voc, tmp_path / "net")
    damaged.write_bytes(whole.read_bytes())
    (tmp_path / "net" / "unreadable.json").unlink()
    # Training is finished; the checkpoint keeps the list.
    from dcsm_attr.models.weights import load_weights_only

    kept = load_weights_only(tmp_path / "net" / "last.pt")["progress"]["failures"]
    assert [failure.split("JPEGImages/")[1][:5] for failure in kept] == ["1.jpg", "5.jpg"]


def test_train_rejects_validation_images_that_are_all_unreadable(voc, tmp_path):
    (voc / "classes.txt").write_text("house\ntree\n")
    for number in range(4, 8):
        (voc / "JPEGImages" / f"{number}.jpg").write_bytes(b"")
    result = train(voc, tmp_path / "net")
    assert "none of the 4 validation images could be read; the first: " in str(result.exception)
    assert len(json.loads((tmp_path / "net" / "unreadable.json").read_text())["failures"]) == 5


def test_labels_skips_unreadable_masks(voc, tmp_path, monkeypatch):
    output = tmp_path / "labels.csv"
    result = run("labels", voc, "--split", "train", "--split", "val", "--output", output)
    assert result.exit_code == 1
    assert "2 images were skipped" in result.output
    assert "2.png: cannot be read" in result.output
    with output.open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["0", "1", "3", "4", "5", "7"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    result = run("labels", voc, "--split", "val", "--output", output)
    assert "none of the 4 masks could be read; the first: " in str(result.exception)
    assert "4.png: has more than 1500 pixels" in str(result.exception)


NAMES = ("two words.png", "Kätzchen 猫.png", "-dash.png", "new\nline.png", "...png", "..png", "run.json.png", "A.png")


@pytest.mark.skipif(os.name != "posix", reason="needs file names that other systems reject")
def test_unusual_file_names(tmp_path, no_figures, monkeypatch):
    folder, sandbox = tmp_path / "in", tmp_path / "sandbox"
    sandbox.mkdir()
    folder.mkdir()
    for name in (*NAMES, "a.jpg", "a-2.jpg"):
        scene().save(folder / name, "PNG")
    (folder / "broken\n.png").write_bytes(b"")
    monkeypatch.chdir(sandbox)
    paths = [f"../in/{name}" for name in (*NAMES, "a.jpg", "a-2.jpg", "broken\n.png")]
    # An image that is given twice is processed once.
    assert run("attribute", *paths, "../in/a.jpg", *NETWORK_FILE, "--output", "out").exit_code == 1
    manifest = json.loads((sandbox / "out" / "run.json").read_text())
    assert [entry["image"] for entry in manifest["results"]] == paths[:-1]
    assert [entry["image"] for entry in manifest["failures"]] == paths[-1:]
    folders = [entry["folder"] for entry in manifest["results"]]
    assert folders == [
        *("two words", "Kätzchen 猫", "-dash", "new\nline", "...png", "..png", "run.json-2", "A"),
        *("a-2", "a-2-2"),
    ]
    for name, path in zip(folders, paths, strict=False):
        assert json.loads((sandbox / "out" / name / "attribution.json").read_text())["image"] == path
    assert {path.name for path in (sandbox / "out").iterdir()} == {*folders, "run.json", "settings.json"}
    assert {path.name for path in sandbox.iterdir()} == {"out"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that other systems reject")
def test_a_file_name_that_is_not_unicode(tmp_path):
    """In a process of its own, because such a name cannot be printed."""
    name = os.fsdecode(b"Stra\xdfe.png")
    scene().save(tmp_path / name)
    command = [sys.executable, "-m", "dcsm_attr", "attribute", name, *NETWORK_FILE, "--output", "out"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert rb"Stra\udcdfe.png -> out/Stra\udcdfe: " in ended.stdout
    (entry,) = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["results"]
    assert entry == {"image": name, "folder": name[:-4]}
    manifest = json.loads((tmp_path / "out" / name[:-4] / "attribution.json").read_text(encoding="utf-8"))
    assert manifest["image"] == name


def test_a_leading_dash_on_the_command_line(tmp_path, no_figures, monkeypatch):
    scene().save(tmp_path / "-dash.png")
    monkeypatch.chdir(tmp_path)
    assert run("attribute", *NETWORK_FILE, "--output", "out", "--", "-dash.png").exit_code == 0
    assert (tmp_path / "out" / "-dash" / "attribution.json").is_file()


def test_an_interrupted_run_lists_its_results(tmp_path, no_figures, monkeypatch):
    for name in "abc":
        scene().save(tmp_path / f"{name}.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("an earlier run")
    whole = Segmentation.save_attribution

    def save(self, folder, **options):
        if folder.name == "b":
            raise KeyboardInterrupt
        assert not (tmp_path / "out" / "run.json").exists(), "an old manifest must not describe new files"
        return whole(self, folder, **options)

    monkeypatch.setattr(Segmentation, "save_attribution", save)
    run("attribute", tmp_path, *NETWORK_FILE, "--output", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert manifest["images"] == 3
    assert [entry["folder"] for entry in manifest["results"]] == ["a"]
    monkeypatch.setattr(Segmentation, "save_attribution", whole)
    result = run("attribute", tmp_path, *NETWORK_FILE, "--output", tmp_path / "out")
    assert "1 of 3 images are finished" in result.output
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [entry["folder"] for entry in manifest["results"]] == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.timeout(20)
def test_rejects_pipes_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageReadError, match=r"pipe\.png: not a file, but a device or a pipe"):
        read_image(tmp_path / "pipe.png")


def test_postscript_is_not_executed(tmp_path, monkeypatch):
    path = tmp_path / "looks-like.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open(path) as opened:
        assert opened.format == "EPS"
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("it was executed"))
    with pytest.raises(ImageReadError, match="not an image"):
        read_image(path)
    assert ".eps" not in image_extensions()


def test_image_extensions_are_readable_formats():
    assert image_extensions() >= {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
    # PIL can write, but not read PDF files.
    assert ".pdf" not in image_extensions()


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), ZeroDivisionError("no"), RecursionError(), AttributeError()]
)
def test_any_exception_of_a_decoder_becomes_a_read_error(tmp_path, monkeypatch, error):
    scene().save(tmp_path / "a.png")

    def fail(self, *_):
        raise error

    with Image.open(tmp_path / "a.png") as opened:
        monkeypatch.setattr(type(opened), "load", fail)
        with pytest.raises(ImageReadError, match=f"the PIL image: cannot be read .{type(error).__name__}"):
            read_image(opened)
    with pytest.raises(ImageReadError, match=rf"a\.png: cannot be read \({type(error).__name__}"):
        read_image(tmp_path / "a.png")


def test_interruptions_are_not_converted(tmp_path):
    scene().save(tmp_path / "a.png")
    with pytest.raises(KeyboardInterrupt), open_image_file(tmp_path / "a.png"):
        raise KeyboardInterrupt
