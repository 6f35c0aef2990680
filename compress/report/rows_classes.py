"""Which classes the shipped artifact loses, beside what the worst of so many classes would lose by chance alone."""

import csv
import io
from typing import Any

import numpy as np

from compress import stats
from compress.report.estimates import measured

RESAMPLES = 2_000  # of a thousand classes at a time: enough for a quantile of 5 %, in 50 MB
# of very many classes the page has the worst, a file beside it all
SHOWN = 20
CLASSES_FILE = "classes.csv"


def class_rows(facts: dict[str, Any], judged: dict[str, Any] | None) -> dict[str, Any] | None:
    """`rows`, one a class, the greatest loss against the teacher first; and what chance makes of the worst of them:
    `chance_fraction`, the loss that it reaches in one of twenty cases where no class is worse than the teacher's.

    None where the artifact of the row `judged` was not counted by class. A class is `worse` when the p value of its
    exact McNemar test, adjusted for the number of classes by Holm's method, is below 5 %.
    """
    row = next((r for r in facts["accuracy"] if judged and _key(r) == _key(judged)), None)
    if row is None or judged is None or judged["is_teacher"] or not row.get("classes"):
        return None
    names, of = facts["dataset"]["class_names"], row["classes"]
    counts = list(zip(names, of["n"], of["correct"], of["teacher_only"], of["this_only"], strict=True))
    counted = [each for each in counts if each[1]]
    adjusted = stats.holm([stats.mcnemar_exact(lost, won) for *_, lost, won in counted])
    rows = [_row(*each, p=p) for each, p in zip(counted, adjusted, strict=True)]
    rows.sort(key=lambda each: (each["difference_fraction"]["value"], each["name"]))
    lost, won, n = (np.array([each[place] for each in counted]) for place in (3, 4, 1))
    return {
        "stage": judged["stage"],
        "runtime": judged["runtime"],
        "rows": rows,
        "without_images": len(counts) - len(counted),
        "worse": sum(each["word"] == "worse" for each in rows),
        "chance_fraction": _chance(lost + won, n, facts["run"]["seed"]),
    }


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["stage"], row["runtime"]


def _row(name: str, n: int, correct: int, lost: int, won: int, *, p: float) -> dict[str, Any]:
    difference = measured(*stats.paired_difference(lost, won, n))
    word = "" if p >= 0.05 else "worse" if difference["value"] < 0 else "better"
    top1 = measured(correct / n, *stats.wilson(correct, n))
    return {"name": name, "n": n, "top1_fraction": top1, "difference_fraction": difference, "p": p, "word": word}


def _chance(discordant: np.ndarray, n: np.ndarray, seed: int) -> float:
    """Of each image that only one of the two gets right, chance alone says which: the difference of the worst class, as
    it is undercut in one of twenty such draws.
    """
    won = np.random.default_rng(seed).binomial(discordant, 0.5, (RESAMPLES, len(discordant)))
    return float(np.quantile(((2 * won - discordant) / n).min(axis=1), 0.05))


def classes_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV, fractions of 1; a name that a spreadsheet would take for a formula gets an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("value", "low", "high")
    fields = [(key, end) for key in ("top1_fraction", "difference_fraction") for end in ends]
    writer.writerow(["class", "images", *(f"{key}_{end}" for key, end in fields), "p_adjusted", "word"])
    for row in rows:
        name = "'" + row["name"] if row["name"][:1] in tuple("=+-@\t\r") else row["name"]
        writer.writerow([name, row["n"], *(row[key][end] for key, end in fields), row["p"], row["word"]])
    return text.getvalue()
