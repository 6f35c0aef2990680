"""Losses class by class: counted right, judged beside chance, shown where they are few and where they are many."""

import copy
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from compress import evaluate, report, stats
from compress.report import html, markdown
from compress.report.rows_classes import class_rows, classes_csv

PUBLISHED = Path(__file__).parents[1] / "reports" / "digits-mobilenet" / "report.json"


def test_counts_of_the_classes_add_up():
    draw = np.random.default_rng(0)
    labels, logits, teacher = draw.integers(0, 7, 200), draw.normal(size=(200, 7)), draw.normal(size=(200, 7))
    logits[np.arange(100), labels[:100]] += 3
    found, whole = evaluate.class_counts(logits, labels, teacher), evaluate.counts(logits, labels, teacher)
    assert all(len(values) == 7 for values in found.values()) and sum(found["n"]) == 200
    assert sum(found["correct"]) == whole["correct"] and sum(found["teacher_only"]) == whole["baseline_only"]
    assert sum(found["this_only"]) == whole["this_only"]
    chosen = labels == 3
    alone = evaluate.counts(logits[chosen], labels[chosen], teacher[chosen])
    assert (found["n"][3], found["correct"][3]) == (alone["n"], alone["correct"])


def test_holms_adjustment_is_that_of_the_textbook():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0] and stats.holm([]) == []


def facts_with(classes: dict, names: list[str]) -> dict:
    """The published report, its shipped artifact counted by these classes."""
    document = json.loads(PUBLISHED.read_text())
    facts = copy.deepcopy({key: value for key, value in document.items() if key != "derived"})
    facts["dataset"]["class_names"] = names
    for row in facts["accuracy"]:
        row.pop("classes", None)
        if (row["stage"], row["runtime"]) == ("int8", "ort_cpu"):
            row["classes"] = classes
    return facts


def balanced(lost: list[int], won: list[int], n: int = 100) -> dict:
    correct = [n - n // 5 - b + c for b, c in zip(lost, won, strict=True)]
    return {"n": [n] * len(lost), "correct": correct, "teacher_only": lost, "this_only": won}


def test_a_class_that_is_lost_is_found_and_chance_is_not(tmp_path):
    names = [f"class {i}" for i in range(9)] + ["<b>lost</b>"]
    found = report.document_of(facts_with(balanced([4] * 9 + [30], [4] * 9 + [2]), names))["derived"]["classes"]
    assert [row["word"] for row in found["rows"]] == ["worse", *[""] * 9] and found["worse"] == 1
    assert found["rows"][0]["name"] == "<b>lost</b>" and found["rows"][0]["p"] < 0.001
    even = report.document_of(facts_with(balanced([4] * 10, [4] * 10), names))
    found = even["derived"]["classes"]
    assert found["worse"] == 0 and -0.10 < found["chance_fraction"] < -0.04
    facts = facts_with(balanced([4] * 9 + [30], [4] * 9 + [2]), names)
    document = report.document_of(facts)
    page, text = html.render(document), markdown.render(document)
    assert "Class by class" in page and "<b>lost" not in page and "&lt;b&gt;lost" in page
    assert "the worst of 10 classes is" in text and "-28.0 points" in text
    report.write(facts, tmp_path)
    rows = list(csv.reader(io.StringIO((tmp_path / "classes.csv").read_text())))
    assert len(rows) == 11 and rows[1][0] == "<b>lost</b>" and float(rows[1][5]) == pytest.approx(-0.28)


def test_what_chance_does_to_the_worst_of_classes_is_seldom_undercut():
    """Where no class is worse than the teacher's, the worst is beyond that line in one of twenty reports."""
    draw, beyond = np.random.default_rng(1), 0
    facts = facts_with({}, list("abcdefghij"))
    (row,) = [r for r in facts["accuracy"] if r.get("classes") is not None]
    for _ in range(200):
        won = draw.binomial(12, 0.5, 10)
        row["classes"] = balanced((12 - won).tolist(), won.tolist())
        found = class_rows(facts, {**row, "is_teacher": False})
        beyond += found["rows"][0]["difference_fraction"]["value"] < found["chance_fraction"] - 1e-9
    assert stats.wilson(beyond, 200)[0] <= 0.05


def test_of_very_many_classes_the_page_has_the_worst():
    names = [f"class {i}" for i in range(1000)]
    lost = [3] * 1000
    document = report.document_of(facts_with(balanced(lost, [3] * 999 + [0], 20), names))
    assert document["derived"]["classes"]["rows"][0]["name"] == "class 999"
    page = html.render(document)
    assert "Shown are 20; all are in classes.csv" in page and page.count('scope="row">class ') == 20
    assert len(page) < 1_000_000


def test_classes_without_images_are_counted_apart():
    classes = balanced([1, 2, 3], [1, 0, 0])
    for key in classes:
        classes[key][1] = 0
    found = report.document_of(facts_with(classes, ["a", "b", "c"]))["derived"]["classes"]
    assert [row["name"] for row in found["rows"]] == ["c", "a"] and found["without_images"] == 1


def test_a_name_is_no_formula():
    row = report.document_of(facts_with(balanced([1], [0]), ["=1+1"]))["derived"]["classes"]["rows"]
    assert classes_csv(row).splitlines()[1].startswith("'=1+1,")


def test_reports_of_before_have_no_classes():
    facts = facts_with({}, list("abcdefghij"))
    for row in facts["accuracy"]:
        row.pop("classes", None)
    assert report.document_of(facts)["derived"]["classes"] is None
