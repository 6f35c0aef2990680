"""What speaks against a latency: each rule on rounds made for it, and not on rounds without anything against them."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_bench import adapters, artifact, cell, images  # noqa: F401 (fixtures)
from test_report import make_facts

from compress import bench, environment, report, worker
from compress.errors import InputRejected
from compress.facts import measurement_facts
from compress.report import rows_validity

ROUNDS = 10


def measurement(medians, **facts) -> dict:
    visits = [
        {"round": i, "median_ns": float(m), "block_ns": 2e9, "steady": True, "timer_ns": 150.0, **facts}
        for i, m in enumerate(medians)
    ]
    return {"visits": visits}


def codes(*args, **facts) -> dict[str, str]:
    return {flag["code"]: flag["severity"] for flag in rows_validity.flags(measurement(*args, **facts))}


def quiet(seed: int = 0, spread: float = 0.01, rounds: int = ROUNDS) -> np.ndarray:
    return 1e6 * np.exp(np.random.default_rng(seed).normal(0, spread, rounds))


def test_nothing_is_said_of_quiet_rounds():
    assert codes(quiet()) == {} and rows_validity.flags({"visits": []}) == []
    assert codes([1e6]) == {}, "one round has no spread"


@pytest.mark.parametrize("spread", [0.005, 0.02])
def test_chance_alone_is_seldom_flagged(spread):
    flagged = [codes(quiet(seed, spread)) for seed in range(600)]
    for code in rows_validity.RULES:
        assert sum(code in found for found in flagged) / len(flagged) <= 0.05, code


def test_a_noisy_neighbour_in_half_of_the_rounds():
    """A process that takes a third of the speed in a random half of the rounds: found in 19 of 20, or more."""
    found = 0
    for seed in range(200):
        busy = np.random.default_rng(seed).permutation(np.arange(ROUNDS) % 2)
        found += bool(codes(quiet(seed) * (1 + 0.5 * busy)))
    assert found >= 190


@pytest.mark.parametrize(("spread", "severity"), [(0.07, "warn"), (0.2, "invalid")])
def test_rounds_that_spread(spread, severity):
    assert codes(1e6 * (1 + spread * np.resize([-1, 1], ROUNDS)))["spread"] == severity


@pytest.mark.parametrize(("rise", "severity"), [(0.06, "warn"), (0.3, "invalid")])
def test_a_machine_that_becomes_slower(rise, severity):
    assert codes(quiet(spread=0.002) * np.linspace(1, 1 + rise, ROUNDS))["drift"] == severity
    assert codes(quiet(spread=0.002) * np.linspace(1 + rise, 1, ROUNDS))["drift"] == severity


def test_two_levels():
    found = codes(quiet(spread=0.002) * np.resize([1.0, 1.04], ROUNDS))
    assert found == {"two_levels": "warn"}
    assert codes([1e6, 1e6, 1.04e6]) == {}, "three rounds have no levels"


def test_the_quota_stolen_time_the_clock_and_the_warm_up():
    assert codes(quiet(), throttled_periods=1)["throttled"] == "invalid"
    # the periods are those of the whole visit, not of its timed block
    assert codes(quiet(), throttled_periods=1, visit_ns=30e9)["throttled"] == "warn"
    assert codes(quiet(), block_ns=30e9, throttled_periods=1)["throttled"] == "warn"
    assert codes(quiet(), steal_fraction=0.02) == {"steal": "warn"}
    assert codes(quiet(), steal_fraction=0.2) == {"steal": "invalid"}
    assert codes(quiet(), timer_ns=7_000.0) == {"timer": "warn"}
    assert codes(quiet(), timer_ns=20_000.0) == {"timer": "invalid"}
    assert codes(quiet(), steady=False) == {"not_steady": "warn"}


@pytest.mark.parametrize(("ends", "found"), [
    ([3000, 2910], {}), ([3000, 2700], {"clock": "warn"}), ([3000, 2400], {"clock": "invalid"}), ([2400, 3000], {}),
    ([None, None], {}), ([3000, None], {}), ([0, 0], {}),
])  # fmt: skip
def test_a_clock_that_falls_inside_a_round(ends, found):
    assert codes(quiet(), megahertz=ends) == found


def test_one_round_in_which_the_clock_fell():
    slowed = measurement(quiet(), megahertz=[3000.0, 3000.0])
    slowed["visits"][4]["megahertz"] = [3000.0, 2400.0]
    (flag,) = rows_validity.flags(slowed)
    assert flag == {
        "code": "clock", "severity": "invalid", "text": "the processor's clock fell by 20.0 % inside a round"
    }  # fmt: skip


def test_a_battery_and_a_governor_that_saves_power():
    for ends in ([True, True], [False, True], [True, False]):
        assert codes(quiet(), on_battery=ends) == {"battery": "warn"}
    assert codes(quiet(), governor=["powersave", "powersave"]) == {"powersave": "warn"}
    assert codes(quiet(), governor=["performance", "powersave"]) == {"powersave": "warn"}
    for told in ({"on_battery": [False, False], "governor": ["performance"] * 2}, {"on_battery": [None] * 2}):
        assert codes(quiet(), **told) == {}
    assert codes(quiet(), governor=[None, None], load_average=0.5) == {}, "not told, and an earlier version's load"


def real_visits(folder, artifact, images) -> dict:  # noqa: F811
    tier = bench.Tier(name="t", rounds=1, warmup_runs=2, warmup_s=0.0, block_s=0.02, extra_rounds=0)
    (found,) = bench.measure([cell("a", artifact, "a")], images, tier, seed=0, scratch=folder / "s")
    assert found.failure == ""
    return measurement_facts(found, "")


def test_a_real_visit_tells_what_the_machine_was_like_at_both_ends(artifact, images, tmp_path, monkeypatch):  # noqa: F811
    adapters(monkeypatch, tmp_path, a="pass")
    (visit,) = real_visits(tmp_path, artifact, images)["visits"]
    assert visit["governor"] == [environment.governor() or None] * 2
    assert [each is None for each in visit["on_battery"]] == [environment.on_battery() is None] * 2
    assert [each is None for each in visit["megahertz"]] == [worker.clock_megahertz() is None] * 2
    assert [each is None for each in visit["celsius"]] == [worker.hottest_celsius() is None] * 2
    assert len(visit["load_average"]) == 2 and min(visit["load_average"]) >= 0
    facts = make_facts()
    next(m for m in facts["measurements"] if m["visits"])["visits"][0] |= visit
    report.validate(facts)


# what a virtual machine does not have: a clock that is told, which falls once the model has been asked three times
FALLING = """
import __main__
asked = globals().setdefault("asked", [])
asked.append(session)
__main__.clock_megahertz = lambda which: 3000.0 if len(asked) <= 3 else 2400.0"""


def test_a_real_visit_whose_clock_falls_on_a_machine_without_mains(artifact, images, tmp_path, monkeypatch):  # noqa: F811
    """The clock is read when the warm-up is over, before anything is timed, and again when all has been."""
    adapters(monkeypatch, tmp_path, a=FALLING)
    monkeypatch.setattr(environment, "governor", lambda: "powersave")
    monkeypatch.setattr(environment, "on_battery", lambda: True)
    found = real_visits(tmp_path, artifact, images)
    assert found["visits"][0]["megahertz"] == [3000.0, 2400.0]
    flags = {flag["code"]: flag["severity"] for flag in rows_validity.flags(found)}
    told = {code: severity for code, severity in flags.items() if code in ("clock", "battery", "powersave")}
    assert told == {"clock": "invalid", "battery": "warn", "powersave": "warn"}


def test_nodes_that_a_gpu_runtime_left_to_the_cpu():
    there, here = ({"provider": f"{name}ExecutionProvider", "count": n} for name, n in (("CUDA", 105), ("CPU", 15)))
    (flag,) = rows_validity.flags(measurement(quiet(), effective={"nodes": [there, here]}))
    assert flag == {"code": "elsewhere", "severity": "warn", "text": "12.5 % of its nodes run on the CPU all the same"}
    assert codes(quiet(), effective={"nodes": [there]}) == {}


def test_the_worst_comes_first():
    cells = [
        {"cell": "a", "flags": [{"code": "drift", "severity": "warn", "text": "it drifts"}]},
        {"cell": "b", "flags": []},
        {"cell": "c", "flags": [{"code": "steal", "severity": "invalid", "text": "others took 20 %"}]},
    ]
    assert rows_validity.sentences(cells) == ["c: others took 20 %: not valid", "a: it drifts"]


def test_stolen_ticks(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 5 50 800 20 0 5 20 90 0\ncpu0 1 2 3\n")
    assert environment.cpu_ticks(stat) == (20, 1000)
    assert environment.cpu_ticks(tmp_path / "none") == (0, 0)
    stolen, ticks = environment.cpu_ticks()
    assert 0 <= stolen <= ticks


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timer_ns", "0"),
        ("steal_fraction", None),
        ("block_ns", "x"),
        ("throttled_periods", []),
        ("steady", "no"),
        ("megahertz", [3000.0]),
        ("megahertz", ["fast", "slow"]),
        ("governor", "powersave"),
        ("on_battery", [0, 1]),
        ("effective", {"nodes": [{"provider": "CPUExecutionProvider", "count": "all"}]}),
    ],
)
def test_what_the_rules_read_is_checked_first(field, value):
    """A hostile or damaged report is refused by the name of the field."""
    source = Path(__file__).parents[1] / "reports" / "digits-mobilenet" / "report.json"
    facts = {k: v for k, v in json.loads(source.read_text()).items() if k != "derived"}
    next(m for m in facts["measurements"] if m["visits"])["visits"][0][field] = value
    with pytest.raises(InputRejected, match=field):
        report.document_of(facts)


def test_the_page_on_measuring_says_what_the_code_does() -> None:
    text = (Path(__file__).parents[1] / "benchmarks" / "MEASURING.md").read_text(encoding="utf-8")
    for tier in bench.TIERS.values():
        warm_up = f"{tier.warmup_runs} runs, {tier.warmup_s:g} s"
        row = f"| `{tier.name}` | {tier.rounds} | {warm_up} | {tier.block_s:g} |"
        # the tests themselves shorten this one
        assert tier.name == "smoke" or row in text, row
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = {line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:4]] for line in lines}
    for code, (_, warn, invalid) in rows_validity.RULES.items():
        said, not_valid = rows[code]
        assert warn in (0, 0.5) or f"{100 * warn:g} %" in said, code
        assert not_valid.startswith(f"{100 * invalid:g} %") if invalid is not None else not_valid == "", code
