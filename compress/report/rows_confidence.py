"""How sure answers are against how often they are right: the calibration error of each row of accuracy."""

from typing import Any

from compress.report.estimates import Estimate, measured, missing


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """Expected calibration error: the mean over images of |probability − share that is right| of their bin (Naeini et
    al. 2015; Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).
    """
    count = sum(each["n"] for each in bins)
    return sum(abs(each["n"] * each["probability"] - each["correct"]) for each in bins) / count


def confidence_of(row: dict[str, Any]) -> dict[str, Any]:
    """`calibration_error` with its interval, and where a temperature was fitted on `select`, `temperature` and the
    error that is left with it, `scaled_error`.
    """
    found = row.get("confidence")
    if not found:
        nothing: Estimate = missing("how sure the answers are was not counted")
        return {"calibration_error": nothing, "scaled_error": nothing, "temperature": None}
    value = calibration_error(found["bins"])
    # few images always err in some bin: resamples err more than the images themselves, and an interval holds its value
    error = measured(value, min(found["low"], value), max(found["high"], value))
    if "temperature" not in found:
        return {"calibration_error": error, "scaled_error": missing("no temperature was fitted"), "temperature": None}
    scaled = measured(calibration_error(found["scaled_bins"]))
    return {"calibration_error": error, "scaled_error": scaled, "temperature": found["temperature"]}
