"""How sure against how often right: bins, the error, its interval and the temperature, where the truth is known."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from test_report import make_facts

from compress import evaluate, report
from compress.report import html, rows_confidence


def answers(n: int, classes: int = 10, *, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the very distribution that the labels are drawn from, times `scale`."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (n, classes))
    odds = np.exp(logits - logits.max(1, keepdims=True))
    cumulative = (odds / odds.sum(1, keepdims=True)).cumsum(1)
    labels = (draw.random((n, 1)) > cumulative).sum(1).clip(max=classes - 1)
    return (scale * logits).astype(np.float32), labels


def error_of(logits, labels) -> float:
    return rows_confidence.calibration_error(evaluate.confidence(logits, labels)["bins"])


def test_the_error_by_hand() -> None:
    bins = [{"n": 4, "probability": 0.5, "correct": 3}, {"n": 6, "probability": 0.9, "correct": 5}]
    assert rows_confidence.calibration_error(bins) == pytest.approx((abs(2 - 3) + abs(5.4 - 5)) / 10)


def test_bins_hold_every_image_once_and_are_even() -> None:
    logits, labels = answers(1000)
    found = evaluate.confidence(logits, labels)
    sizes = [each["n"] for each in found["bins"]]
    assert sum(sizes) == 1000 and len(sizes) == evaluate.BINS and max(sizes) - min(sizes) <= 1
    assert sum(each["correct"] for each in found["bins"]) == evaluate.counts(logits, labels)["correct"]
    means = [each["probability"] for each in found["bins"]]
    assert means == sorted(means)
    assert len(evaluate.confidence(logits[:4], labels[:4])["bins"]) == 4, "no bin is empty"


def test_honest_answers_err_little_and_boasting_ones_much() -> None:
    honest, boasting = error_of(*answers(20_000)), error_of(*answers(20_000, scale=3))
    assert honest < 0.015 < 0.1 < boasting
    huge = evaluate.confidence(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), np.array([0, 0]))
    assert np.isfinite([huge["nll_nats"], huge["brier"], huge["low"], huge["high"]]).all()


def test_losses_are_those_of_the_definitions() -> None:
    logits, labels = answers(50, 4)
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    found = evaluate.confidence(logits, labels)
    assert found["nll_nats"] == pytest.approx(-np.log(p[np.arange(50), labels]).mean())
    assert found["brier"] == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean())


def test_the_divergence_is_that_of_scipy() -> None:
    (logits, _), (teacher, _) = answers(200, seed=1), answers(200, seed=2)
    each = entropy(softmax(teacher, axis=1), softmax(logits, axis=1), axis=1)
    found = evaluate.divergence_nats(logits, teacher)
    assert found["mean"] == pytest.approx(each.mean(), rel=1e-5)
    assert found["p95"] == pytest.approx(np.quantile(each, 0.95), rel=1e-5)
    assert evaluate.divergence_nats(teacher, teacher) == {"mean": 0.0, "p95": 0.0}
    # log-probabilities of an ensemble: what it gives no probability adds nothing
    certain = np.where(np.arange(10) == 0, 0.0, -np.inf)[None].repeat(3, 0)
    assert evaluate.divergence_nats(np.zeros((3, 10)), certain)["mean"] == pytest.approx(np.log(10))


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_what_logits_were_multiplied_by(scale: float) -> None:
    logits, labels = answers(20_000, scale=scale)
    assert evaluate.best_temperature(logits, labels) == pytest.approx(scale, rel=0.05)


def test_the_interval_holds_the_error_and_shrinks_with_images() -> None:
    widths = []
    for n in (300, 3000):
        found = evaluate.confidence(*answers(n, scale=2))
        value = rows_confidence.calibration_error(found["bins"])
        row = rows_confidence.confidence_of({"confidence": found})["calibration_error"]
        assert row["low"] <= value <= row["high"]
        widths.append(row["high"] - row["low"])
    assert widths[1] < 0.6 * widths[0]


def with_confidence() -> dict:
    facts = make_facts()
    for number, row in enumerate(facts["accuracy"]):
        if not row["failure"]:
            logits, labels = answers(500, scale=1 + number / 4, seed=number)
            row["confidence"] = evaluate.confidence(logits, labels)
            if row["runtime"] == "ort_cpu":
                scaled = evaluate.confidence(logits / (1 + number / 4), labels)
                row["confidence"] |= {"temperature": 1 + number / 4, "scaled_bins": scaled["bins"]}
    return facts


def test_the_report_shows_it_where_it_was_counted(tmp_path) -> None:
    document = report.document_of(with_confidence())
    page = html.render(document)
    assert 'id="reliability-title"' in page and "calibration error (95 %)" in page and "at temperature 1.5" in page
    rows = {(r["stage"], r["runtime"]): r for r in document["derived"]["accuracy"]}
    assert rows["distilled", "ort_cpu"]["scaled_error"]["value"] > 0
    assert rows["distilled", "torch_eager"]["temperature"] is None
    assert rows["int8", "ort_cuda"]["calibration_error"]["value"] is None
    text = report.write(with_confidence(), tmp_path)["md"].read_text(encoding="utf-8")
    assert text.count("calibration error ") == 6 and text.count(" at temperature ") == 4
    before = html.render(report.document_of(make_facts()))
    assert 'id="reliability-title"' not in before and "calibration error (95 %)" not in before
