"""`compress doctor --probe`: settings that were read back, and a runtime that lies."""

from types import SimpleNamespace

import pytest

from compress import catalog, probing
from compress.cli.doctor import notes
from compress.errors import CompressError
from compress.store import Store

CPU = {"providers": ["CPUExecutionProvider"], "fixed_batch": 0}
# runtime → what it says of itself; those whose converters take longer are asked in test_convert.py
SAID = {
    "ort_cpu": CPU | {"inter_op_threads": 1, "optimisation": "ORT_ENABLE_ALL"},
    "ort_mobile": CPU | {"inter_op_threads": 1},
    "openvino": {"device": ["CPU"], "precision": "f32", "streams": 1, "fixed_batch": 0},
    "ncnn": {"fp16_storage": False, "fp16_arithmetic": False, "bf16_storage": False, "fixed_batch": 1},
    "mnn": {"fixed_batch": 0},
}


@pytest.mark.parametrize("name", SAID)
def test_settings_are_those_in_effect(name, tmp_path):
    if reason := catalog.load("runtimes", name).module.unavailable():
        pytest.skip(reason)
    for threads in (1, 2):
        found = probing.settings(name, Store(tmp_path), threads)
        told = "asked_threads" if name == "mnn" else "intra_op_threads"  # which MNN does not tell
        assert SAID[name].items() <= found.items()
        # of a network this small OpenVINO takes fewer, and says so: a timed cell would have failed
        assert found[told] == threads or (name == "openvino" and found[told] == 1)


def test_a_runtime_that_answers_wrongly_is_told(tmp_path, monkeypatch):
    real = probing.bench.answers_and_facts

    def wrong(artifact, runtime, images, **options):
        logits, facts = real(artifact, runtime, images, **options)
        return logits[::-1], facts

    monkeypatch.setattr(probing.bench, "answers_and_facts", wrong)
    with pytest.raises(CompressError, match="ort_cpu answers wrongly: a difference of"):
        # what is compared with is asked by the true function
        monkeypatch.setattr(probing.bench, "answers", lambda *a, **o: real(*a, **o)[0])
        probing.settings("ort_cpu", Store(tmp_path), 1)


def test_what_a_user_should_know_of_a_runtime():
    ncnn = catalog.load("runtimes", "ncnn").module
    assert any("half-precision arithmetic" in sentence for sentence in notes(ncnn, "1.0.20261020"))
    assert notes(SimpleNamespace(), "1") == []
    missing = SimpleNamespace(CONVERTS_WITH="no-such-converter>=1")
    assert notes(missing, "1") == ["to convert for it: pip install 'no-such-converter>=1'"]
