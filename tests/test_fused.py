"""Triton kernels compared with the plain operations, in Triton's interpreter (no GPU needed)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr import DenseCRF
from dcsm_attr.crf.permutohedral import RowSums
from dcsm_attr.crf.triton import split_long_sums

# Triton reads TRITON_INTERPRET when it is imported, so this runs in a new process.
_SCRIPT = """
import json, torch
from dcsm_attr import DenseCRF

torch.manual_seed(0)
images = torch.randint(0, 256, (2, 3, 7, 9), dtype=torch.uint8)
images[1] = 90  # One vertex has more points than the maximum length of a sum.
differences = {}
for labels in (1, 3):
    probabilities = torch.rand(2, labels, 7, 9).softmax(dim=1)
    for weights in ({"bilateral_weight": 3.0, "bilateral_rgb": 60.0}, {"gaussian_weight": 0.0}):
        crfs = [DenseCRF(iterations=2, backend=backend, **weights) for backend in ("torch", "triton")]
        plain, fused = (crf(probabilities, images) for crf in crfs)
        differences[f"{labels} {weights}"] = (plain - fused).abs().max().item()
        assert labels == 1 or (plain - probabilities).abs().max() > 0.01
print(json.dumps(differences))
"""


def test_kernels_equal_the_plain_operations():
    pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for CUDA on Linux")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    differences = json.loads(run.stdout)
    assert len(differences) == 4
    assert max(differences.values()) < 1e-6, differences


def test_the_error_on_the_cpu_names_the_alternative(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="runs on CUDA devices, the probabilities are on cpu.*choose backend='torch'"):
        DenseCRF(backend="triton")(torch.full((1, 2, 4, 4), 0.5), images)


@given(st.lists(st.integers(1, 150), min_size=1, max_size=12), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_short_sums_add_up_to_the_long_ones(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor(lengths).cumsum(0)
    entries = int(ends[-1])
    rows = torch.randint(0, 20, (entries,), generator=generator, dtype=torch.int32)
    weights = torch.rand(entries, generator=generator, dtype=torch.float64)
    table = RowSums(rows, weights, (ends - torch.tensor(lengths)).int())
    values = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    pieces, of_sums = split_long_sums(table)
    torch.testing.assert_close(of_sums(pieces(values)), table(values))
    assert torch.diff(pieces.first, append=torch.tensor([entries])).max() <= 32
