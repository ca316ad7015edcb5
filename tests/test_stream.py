"""segment_stream and run_pipeline: results, look-ahead, overlap of the steps, errors, and end of the threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcsm_attr import DenseCRF, Segmenter
from dcsm_attr.datasets.images import ImageReadError
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.segmentation import stream as pipeline
from dcsm_attr.segmentation.stream import run_pipeline

NAMES = ("ant", "bee", "cow", "dog")
COUNT = 7
#: Timeout in seconds, reached only if the code is wrong.
LONG = 20


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def segmenter(vgg):
    with torch.no_grad():
        vgg.classifier[2].bias.copy_(torch.tensor([0.5, 0.3, -0.6, -0.7]))
    return Segmenter(vgg, crf=DenseCRF(iterations=2), class_names=NAMES, preprocess=Preprocess(size=32))


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + 9 * (i % 3), 36 + 7 * (i % 2))).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(COUNT)]


CLASSES = [["ant"], [1, 2], ["bee", "dog"], [3], [0, 1, 2, 3], ["cow"], [2, 0]]


def batches(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def assert_same(first, second):
    for name in ("image", "labels", "probabilities", "unrefined"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    for name in ("maps", "raw", "classes", "detected", "scores", "subtracted"):
        ours, theirs = getattr(first.class_maps, name), getattr(second.class_maps, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    for name in ("classes", "class_names", "source", "fallback", "settings"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("known", [None, CLASSES], ids=["detected", "known"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 10])
def test_results_equal_those_of_segment_batch(segmenter, paths, batch_size, known):
    expected = []
    for numbers in batches(range(COUNT), batch_size):
        rows = None if known is None else [known[i] for i in numbers]
        expected += segmenter.segment_batch([paths[i] for i in numbers], rows, raw=True)
    # Iterators without a length.
    classes = None if known is None else iter(known)
    result = list(segmenter.segment_stream(iter(paths), classes, batch_size=batch_size, workers=3, raw=True))
    assert len(result) == COUNT
    for ours, theirs in zip(result, expected, strict=True):
        assert_same(ours, theirs)
        assert not ours.probabilities.requires_grad


def test_an_empty_stream(segmenter):
    assert list(segmenter.segment_stream([])) == []
    assert list(segmenter.segment_stream([], [])) == []


def test_the_random_state_and_the_gradient_mode_are_the_callers(segmenter, paths):
    state = torch.get_rng_state()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for result in segmenter.segment_stream(paths, batch_size=2, workers=2):
                assert torch.is_grad_enabled() is enabled
                assert not result.class_maps.maps.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unreadable_image_ends_the_stream_when_its_batch_is_due(segmenter, paths):
    paths[5].write_bytes(paths[5].read_bytes()[:60])
    stream = segmenter.segment_stream(paths, batch_size=2)
    assert [result.source for result in islice(stream, 4)] == [str(path) for path in paths[:4]]
    with pytest.raises(ImageReadError, match=r"5\.png"):
        next(stream)
    assert list(stream) == []


def test_an_allowed_error_takes_the_place_of_the_result(segmenter, paths):
    paths[1].write_bytes(b"no image")
    paths[6].unlink()
    result = list(segmenter.segment_stream(paths, batch_size=3, allowed_errors=ImageReadError))
    assert [isinstance(one, ImageReadError) for one in result] == [i in (1, 6) for i in range(COUNT)]
    assert "1.png: not an image" in str(result[1])
    assert "6.png: there is no such file" in str(result[6])
    # Unreadable images count for the size of a batch; the last batch has no readable image.
    for numbers in ((0, 2), (3, 4, 5)):
        for number, expected in zip(numbers, segmenter.segment_batch([paths[i] for i in numbers]), strict=True):
            assert_same(result[number], expected)


def test_other_errors_are_raised(segmenter, paths):
    with pytest.raises(ValueError, match="no class 'ox'"):
        list(segmenter.segment_stream(paths, [["ox"]] * COUNT, allowed_errors=ImageReadError))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES[:5], "classes must have one entry for each image: there are 5 classes, but more images"),
        ([*CLASSES, [0]], "classes must have one entry for each image: there are 7 images, but more classes"),
        ([], "there are 0 classes, but more images"),
    ],
)
def test_rejects_classes_of_another_length(segmenter, paths, classes, message):
    stream = segmenter.segment_stream(paths, classes, batch_size=2)
    whole_batches = min(len(classes), COUNT) // 2 * 2
    assert len(list(islice(stream, whole_batches))) == whole_batches
    with pytest.raises(ValueError, match=message):
        next(stream)


def test_rejects_classes_known_for_some_images_only(segmenter, paths):
    prepared = [segmenter.prepare_image(paths[0], ["ant"]), segmenter.prepare_image(paths[1])]
    with pytest.raises(ValueError, match="for all images of a batch or for none; they are known for 1 of 2"):
        segmenter.attribute_batch(prepared)


@pytest.mark.parametrize(("name", "least"), [("batch_size", 1), ("workers", 0)])
def test_rejects_numbers_out_of_range_at_once(segmenter, paths, name, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        segmenter.segment_stream(paths, **{name: least - 1})


def test_on_the_cpu_no_thread_competes_with_the_model(segmenter, paths):
    before = threading.active_count()
    for result in segmenter.segment_stream(paths, batch_size=2):
        assert threading.active_count() == before
        assert result.labels.shape == result.image.shape[:2]


def test_without_threads_nothing_is_read_ahead():
    events = []

    def noting(step):
        return lambda value: (events.append((step, value)), value)[1]

    stream = run_pipeline(iter(range(5)), noting("read"), noting("work"), noting("finish"), batch_size=2, workers=0)
    assert next(stream) == 0
    assert events == [("read", 0), ("read", 1), ("work", [0, 1]), ("finish", 0)]
    assert list(stream) == [1, 2, 3, 4]
    assert events[-3:] == [("read", 4), ("work", [4]), ("finish", 4)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stream_of_the_gpu_that_is_not_the_default(segmenter, paths):
    segmenter.model.cuda()
    expected = segmenter.segment_batch(paths)
    with torch.cuda.stream(torch.cuda.Stream()):
        # Much work before the results, so that reading them too early would be noticed.
        busy = torch.randn(4000, 4000, device="cuda")
        for _ in range(50):
            busy = busy @ busy / 4000
        for ours, theirs in zip(segmenter.segment_stream(paths, batch_size=COUNT), expected, strict=True):
            assert_same(ours, theirs)


def same(value):
    return value


def doubled(batch):
    return [2 * value for value in batch]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 23),
    batch_size=st.integers(1, 6),
    workers=st.integers(0, 4),
    bad=st.sets(st.integers(0, 22)),
)
def test_order_and_batches(length, batch_size, workers, bad):
    seen = []

    def read(item):
        if item in bad:
            raise KeyError(item)
        return item

    def work(batch):
        seen.append(list(batch))
        return doubled(batch)

    options = {"batch_size": batch_size, "workers": workers, "allowed_errors": (KeyError, IndexError)}
    result = list(run_pipeline(iter(range(length)), read, work, str, **options))
    assert [one.args[0] if isinstance(one, KeyError) else one for one in result] == [
        item if item in bad else str(2 * item) for item in range(length)
    ]
    expected = [[item for item in batch if item not in bad] for batch in batches(range(length), batch_size)]
    assert seen == [batch for batch in expected if batch]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_it_runs_no_further_ahead_than_it_says(batch_size, workers):
    """Of items without an end; a consumer that stops is waited for."""
    taken, read, finished = [], [], []

    def items():
        for item in count():
            taken.append(item)
            yield item

    def reading(item):
        read.append(item)
        return item

    def finishing(value):
        finished.append(value)
        return value

    stream = run_pipeline(items(), reading, list, finishing, batch_size=batch_size, workers=workers)
    assert not taken, "nothing starts before the first request"
    for given_before in range(5 * batch_size):
        assert next(stream) == given_before
        limit = (given_before // batch_size + 3) * batch_size
        assert len(read) <= len(taken) <= limit
        assert len(finished) <= limit - batch_size
    stream.close()
    assert len(taken) == limit, "the look-ahead is used"


def wait_for(event):
    assert event.wait(LONG), "the steps did not overlap"


def test_images_are_read_while_others_are_worked_on():
    reading = [threading.Event() for _ in range(6)]

    def read(item):
        reading[item].set()
        return item

    def work(batch):
        # Returns only after the next batch has started to be read.
        for item in range(batch[-1] + 1, min(batch[-1] + 3, 6)):
            wait_for(reading[item])
        return batch

    assert list(run_pipeline(range(6), read, work, same, batch_size=2, workers=2)) == list(range(6))


def test_several_are_read_at_a_time():
    together = threading.Barrier(3)

    def read(item):
        together.wait(LONG)
        return item

    assert list(run_pipeline(range(6), read, list, same, batch_size=3, workers=3)) == list(range(6))


def test_results_are_finished_while_others_are_worked_on():
    working = [threading.Event() for _ in range(3)]
    finishing = threading.Event()

    def work(batch):
        working[batch[0] // 2].set()
        if batch[0] == 2:
            wait_for(finishing)
        return batch

    def finish(value):
        if value == 0:
            finishing.set()
            wait_for(working[1])
        return value

    assert list(run_pipeline(range(6), same, work, finish, batch_size=2)) == list(range(6))


def test_the_model_runs_in_the_callers_thread_and_the_rest_elsewhere():
    at = {"items": set(), "read": set(), "work": set(), "finish": set()}

    def noted(step, value):
        at[step].add(threading.get_ident())
        return value

    items = (noted("items", item) for item in range(9))
    steps = [lambda value, step=step: noted(step, value) for step in ("read", "work", "finish")]
    assert list(run_pipeline(items, *steps, batch_size=2, workers=2)) == list(range(9))
    here = {threading.get_ident()}
    assert at["items"] == at["work"] == here
    assert len(at["finish"]) == 1
    assert len(at["read"]) <= 2
    assert here.isdisjoint(at["read"] | at["finish"])
    assert at["read"].isdisjoint(at["finish"])


class FaultError(Exception):
    pass


def failing(at):
    def step(value):
        if at in (value if isinstance(value, list) else [value]):
            raise FaultError(f"at {at}")
        return value

    return step


def failing_items(at):
    for item in range(20):
        if item == at:
            raise FaultError(f"at {at}")
        yield item


@pytest.mark.parametrize("at", [0, 1, 5, 6, 19])
@pytest.mark.parametrize("step", ["items", "read", "work", "finish"])
def test_an_exception_of_a_step_is_raised_after_the_previous_batches(step, at):
    steps = {"read": same, "work": same, "finish": same, **({} if step == "items" else {step: failing(at)})}
    # Allowed errors apply to reading only.
    allowed_errors = () if step == "read" else FaultError
    items = failing_items(at) if step == "items" else range(20)
    stream = run_pipeline(items, *steps.values(), batch_size=3, allowed_errors=allowed_errors)
    result = []
    with pytest.raises(FaultError, match=f"^at {at}$"):
        result.extend(stream)
    assert result == list(range(at if step == "finish" else at // 3 * 3))
    assert list(stream) == []


def test_an_interruption_is_raised_after_the_previous_batches():
    def work(batch):
        if 6 in batch:
            raise KeyboardInterrupt
        return batch

    result = []
    with pytest.raises(KeyboardInterrupt):
        result.extend(run_pipeline(range(20), same, work, same, batch_size=3))
    assert result == list(range(6))


def threads():
    return threading.active_count()


@pytest.mark.parametrize("results", [0, 1, 3, 4])
def test_closing_early_ends_the_threads_and_reads_no_more(results):
    before = threads()
    read = []

    def reading(item):
        read.append(item)
        return item

    stream = run_pipeline(count(), reading, list, same, batch_size=3, workers=2)
    assert list(islice(stream, results)) == list(range(results))
    assert (threads() > before) is (results > 0)
    stream.close()
    assert threads() == before
    begun = len(read)
    assert list(stream) == []
    assert len(read) == begun


def test_leaving_the_loop_ends_the_threads():
    before = threads()
    for value in run_pipeline(count(), same, list, same):
        if value == 5:
            assert threads() > before
            break
    assert threads() == before


def test_closing_cancels_reads_that_have_not_started(monkeypatch):
    begun, canceled = threading.Event(), threading.Event()
    closed, read = [], []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *, cancel_futures):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            closed.append(self)
            if len(closed) == 2:
                canceled.set()
            super().shutdown()

    def reading(item):
        read.append(item)
        if item == 6:
            begun.set()
            wait_for(canceled)
        return item

    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", Pool)
    stream = run_pipeline(count(), reading, list, same, batch_size=3, workers=1)
    assert next(stream) == 0
    wait_for(begun)
    stream.close()
    assert read == list(range(7)), "7 and 8 were still waiting for the only reader"


def test_an_error_of_the_consumer_ends_the_threads():
    before = threads()
    stream = run_pipeline(count(), same, list, same)
    next(stream)
    with pytest.raises(FaultError):
        stream.throw(FaultError())
    assert threads() == before
