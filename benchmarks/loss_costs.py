"""What each method's own loss costs beside the student's backward pass, at batch 64 on images of 32 px.

A loss is timed forward and backward on signals that are at hand, so neither network's time is in it; where it
differentiates the networks themselves, that is part of it. Rounds visit all methods in turn, each beside a backward
pass of the student; the ratio is the median over rounds. Claim: at most 1 for all but those whose papers want more.
LOSS_COSTS.md is made from the record by `loss_costs.py --page`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from torch import nn

from compress import catalog, distill, network, taps
from compress.execution import Execution
from compress.progress import say
from compress.store import read_json, write_atomic
from compress.types import Batch, Setting, Signals

PAGE = Path(__file__).with_name("LOSS_COSTS.md")
PAIRS = (("resnet56", "resnet20"), ("vgg13", "mobilenet"), ("resnet32x4", "shufflenet"))
BATCH, CLASSES, IMAGES = 64, 100, 50_000
# method → why its paper's loss costs more than the student's backward pass
DEARER = {
    "attention_gradient": "it differentiates both networks by their images, and the student's gradient once more",
    "reviewkd": "its fusion convolves at the teacher's widths, at every stage",
    "factor": "its translator convolves at the teacher's widths, three layers deep",
    "vid": "three 1×1 convolutions predict the teacher's channels, at every stage",
    "mgd": "its generator is two 3×3 convolutions at the teacher's width",
    "crd": "it compares each image with 16,384 kept embeddings",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="only write LOSS_COSTS.md, from the record")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "loss_costs.json", help="file to write")
    return parser.parse_args()


def made(spec: str, seed: int) -> network.Network:
    names = tuple(map(str, range(CLASSES)))
    return network.build(spec, class_names=names, input_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, seed=seed)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def losses(teacher_spec: str, student_spec: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """(the student's forward pass, which gives its backward, each method's own loss forward and backward)"""
    student, teacher = made(student_spec, 0).train(), made(teacher_spec, 1).eval().requires_grad_(False)
    probes = [taps.probe(net, (3, 32, 32)) for net in (student, teacher)]
    pairs = taps.pair(*probes)
    labels = np.arange(IMAGES) % CLASSES
    setting = Setting(
        pairs=pairs, student_pooled=probes[0].pooled_dim, teacher_pooled=probes[1].pooled_dim, num_classes=CLASSES,
        labels=labels, batch_size=BATCH,
    )  # fmt: skip
    plain, frozen = Execution(channels_last=True), Execution(channels_last=True, frozen=True)
    plain.prepare(student)
    frozen.prepare(teacher)
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        inputs=images, labels=torch.from_numpy(labels[:BATCH]), index=np.arange(BATCH, dtype=np.uint64),
        view=np.zeros(BATCH, np.uint64), progress=0.5,
    )  # fmt: skip

    def tapped(side: int, net: network.Network, how: Execution, *, inputs: bool) -> taps.Tapped:
        places = [pair[side] for pair in pairs]
        return taps.Tapped(net, probes[side], places, how, pooled=bool(probes[side].pooled_dim), inputs=inputs)

    readers = {inputs: (tapped(0, student, plain, inputs=inputs), tapped(1, teacher, frozen, inputs=inputs))
               for inputs in (False, True)}  # fmt: skip
    ours, theirs = (reader(images) for reader in readers[False])

    def work_of(entry: catalog.Entry) -> Callable[[], float]:
        make = getattr(entry.module, "adapters", None)
        adapters: nn.Module | None = make(entry.config, setting) if make else None
        if "inputs" not in entry.module.NEEDS:
            return lambda: seconds(
                lambda: entry.module.loss(entry.config, leaves(ours), theirs, batch, adapters).backward()
            )

        def differentiated() -> float:
            # what it adds to a step: its graph goes back through the whole student
            found = [reader(images) for reader in readers[True]]
            whole = seconds(lambda: entry.module.loss(entry.config, *found, batch, adapters).backward())
            return whole - backward()

        return differentiated

    def backward() -> float:
        logits = readers[False][0](images).logits
        value = nn.functional.cross_entropy(logits, batch.labels)
        return seconds(value.backward)

    wanted = [
        catalog.load("methods", name) for name in catalog.names("methods") if name not in ("cross_entropy", "soft_tree")
    ]
    for entry in wanted:
        distill.check(entry, setting)
    return backward, {entry.name: work_of(entry) for entry in wanted}


def leaves(signals: Signals) -> Signals:
    """The same signals as the ends of a graph, as the student's own would be its beginning."""

    def leaf(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.detach().requires_grad_()

    maps = {stride: leaf(value) for stride, value in signals.maps.items()}
    return Signals(logits=leaf(signals.logits), pooled=leaf(signals.pooled), maps=maps)


def rows_of(teacher: str, student: str, rounds: int) -> list[dict[str, Any]]:
    backward, works = losses(teacher, student)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            pair = work(), backward()
            if number:  # the first round warms up
                found[name].append(pair)
    rows = []
    for name, pairs in found.items():
        ratios = [own / back for own, back in pairs]
        rows.append({"teacher": teacher, "student": student, "method": name, "of_backward": record.spread(ratios),
                     "loss_ms": 1e3 * float(np.median([own for own, _ in pairs]))})  # fmt: skip
        say(f"{teacher} to {student}, {name}: {rows[-1]['of_backward']['median']:.2f} of a backward pass")
    return rows


def page(content: dict[str, Any]) -> str:
    cells = {(r["method"], r["teacher"]): r["of_backward"] for r in content["rows"]}
    lines = [
        "# What a loss costs", "",
        "Made by `loss_costs.py --page`: each method's own loss, forward and backward, in parts of the student's",
        f"backward pass at batch {content['batch']} on 32 px and {content['threads']} thread; median of "
        f"{content['rounds']} rounds (least to greatest).", "",
        "| method | " + " | ".join(f"{teacher} to {student}" for teacher, student in PAIRS) + " | |",
        "| --- |" + " ---: |" * len(PAIRS) + " --- |",
    ]  # fmt: skip
    for method in dict.fromkeys(row["method"] for row in content["rows"]):
        shown = [cells[method, teacher] for teacher, _ in PAIRS]
        numbers = [f"{s['median']:.2f} ({s['min']:.2f} to {s['max']:.2f})" for s in shown]
        why = DEARER.get(method, "") if max(s["median"] for s in shown) > 1 else ""
        lines.append(f"| `{method}` | " + " | ".join(numbers) + f" | {why} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    options = arguments()
    if options.page:
        write_atomic(PAGE, page(read_json(options.record)).encode())
        return record.CLAIM_HOLDS
    torch.set_num_threads(options.threads)
    rows = [row for teacher, student in PAIRS for row in rows_of(teacher, student, options.rounds)]
    dear = {row["method"] for row in rows if row["of_backward"]["median"] > 1}
    record.write(
        options.record,
        {"batch": BATCH, "classes": CLASSES, "threads": options.threads, "rounds": options.rounds, "rows": rows},
    )
    return record.CLAIM_HOLDS if dear <= DEARER.keys() else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
