"""Tests that interrupts at random moments and forks leave the model and PyTorch's settings unchanged."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import TinyVGG

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.attribution.model import deferred_signals, prepared_model, raise_deferred_signals

# Run in a process of its own: interrupts COUNT calls, each at a random moment, some of them twice in a row.
_SCRIPT = """
import random, signal, sys, time
import torch
from conftest import PooledCNN, TinyVGG
from untouched import changes, snapshot
from dcsm_attr import ClassActivationMaps, DistinctClassSaliency, Simonyan

torch.set_num_threads(1)
images = torch.randn(2, 3, 20, 24)
model = {"cnn": PooledCNN, "vgg": TinyVGG}[sys.argv[1]]().train()
calls = [
    lambda: DistinctClassSaliency(model).attribute(images, 1),
    lambda: Simonyan(model).class_maps(images),
    lambda: ClassActivationMaps(model).class_maps(images),
]
seconds = []
for call in calls:
    call()
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)

fired = 0

def alarm(number, frame):
    global fired
    # Moments in the calls, not in this script; the second one arrives while the first one is handled.
    if fired < 2 and frame.f_code.co_filename != "<string>":
        fired += 1
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, alarm)
before, numbers = snapshot(model, images), random.Random(0)
interrupted = 0
for i in range(int(sys.argv[2])):
    kind, fired = i % len(calls), 0
    signal.setitimer(signal.ITIMER_REAL, numbers.uniform(1e-5, seconds[kind]), 1e-4 if i % 2 else 0.0)
    try:
        calls[kind]()
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    changed = changes(before, snapshot(model, images))
    assert not changed, (i, changed)
    assert signal.getsignal(signal.SIGALRM) is alarm
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(interrupted)
"""


@pytest.mark.parametrize("model", ["cnn", "vgg"])
def test_interrupts_at_random_moments_leave_nothing_changed(model):
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, model, "150"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


def test_signals_are_deferred_and_handlers_are_restored():
    order = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        signal.raise_signal(signal.SIGINT)
        order.append("changed and restored")
        raise_deferred_signals()
        order.append("never")
    assert order == ["changed and restored"]
    assert signal.getsignal(signal.SIGINT) is before


def test_pending_signals_are_raised_at_the_end():
    model = TinyVGG().train()
    with pytest.raises(KeyboardInterrupt), prepared_model(model, torch.device("cpu")):
        signal.raise_signal(signal.SIGINT)
        assert not model.training
    assert all(module.training for module in model.modules())


def test_a_repeated_interrupt_ends_a_model_that_hangs(images, monkeypatch):
    monkeypatch.setattr("dcsm_attr.attribution.model._PATIENCE", 0.01)

    class Hangs(TinyVGG):
        def forward(self, x):
            while True:
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.02)

    model = Hangs().train()
    with pytest.raises(KeyboardInterrupt):
        DistinctClassSaliency(model, "features.5").attribute(images, 1)
    assert all(module.training for module in model.modules())


class _Waits(TinyVGG):
    def __init__(self):
        super().__init__()
        self.running, self.proceed = threading.Event(), threading.Event()

    def forward(self, x):
        self.running.set()
        assert self.proceed.wait(60)
        return super().forward(x)


def _explain_in_child(model, images, queue):
    was_in_training = all(module.training for module in model.modules())
    queue.put((was_in_training, DistinctClassSaliency(model, "features.5").attribute(images, 1).tolist()))


def test_a_fork_during_a_call_of_another_thread_finds_the_model_unchanged_and_does_not_hang(images):
    model = _Waits().train()
    torch.set_num_threads(1)
    thread = threading.Thread(target=lambda: DistinctClassSaliency(model, "features.5").attribute(images, 1))
    thread.start()
    assert model.running.wait(60)
    threading.Timer(0.2, model.proceed.set).start()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_explain_in_child, args=(model, images, queue))
    child.start()  # Waits for the call in the other thread.
    thread.join(60)
    was_in_training, attribution = queue.get()
    child.join(60)
    assert child.exitcode == 0
    assert was_in_training
    assert attribution == DistinctClassSaliency(model, "features.5").attribute(images, 1).tolist()
