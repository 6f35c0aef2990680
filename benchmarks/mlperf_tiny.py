"""An int8 student against MLPerf Tiny's reference int8 ResNet-8, on the same images.

The reference is `pretrainedResnet_quant.tflite` of github.com/mlcommons/tiny; it is run by LiteRT (`pip install
ai-edge-litert`, which nothing else here needs), ours by ONNX Runtime. Both see CIFAR-10's test images as they are, in
the reference's form moved by 128. MLPERF_TINY.md is made by `mlperf_tiny.py --page`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import record

from compress import calibrate, evaluate, plan, recipe, stats
from compress.progress import counter
from compress.store import Store, file_digest, read_json, write_atomic

PAGE = Path(__file__).with_name("MLPERF_TINY.md")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only write MLPERF_TINY.md, from the record")
    parser.add_argument("--data", default="", help="folder of CIFAR-10's images")
    parser.add_argument("--reference", type=Path, help="the reference's int8 TFLite file")
    parser.add_argument("--model", type=Path, help="an int8 ONNX file in its folder models/RUN/")
    parser.add_argument("--report", type=Path, help="report.json of the run that made it")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "mlperf_tiny.json", help="file to write")
    return parser.parse_args()


def reference_logits(path: Path, images: np.ndarray) -> np.ndarray:
    """int8 scores `[N,K]` of the reference on uint8 images `[N,H,W,C]`."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    show, found = counter("reference", "images"), []
    for number, image in enumerate(images):
        interpreter.set_tensor(taken, (image[None].astype(np.int16) - 128).astype(np.int8))
        interpreter.invoke()
        found.append(interpreter.get_tensor(given)[0])
        show(number + 1, len(images))
    return np.stack(found).astype(np.int16)  # −128 has no negative in 8 bits


def measured(options: argparse.Namespace) -> dict[str, Any]:
    splits = plan.load_data(recipe.from_values({"data": options.data}), Store.default())
    images, labels = splits.report.images, splits.report.labels
    theirs, ours = reference_logits(options.reference, images), calibrate.answers(options.model, images)
    document = read_json(options.report)
    (student,) = [stage for stage in document["stages"] if stage["name"] == "distilled"]
    return {
        "reference": {"size_bytes": options.reference.stat().st_size, **evaluate.counts(theirs, labels)},
        "ours": {
            "size_bytes": options.model.stat().st_size, "digest": file_digest(options.model),
            **evaluate.counts(ours, labels, theirs),
        },
        "training": {key: document["recipe"][key] for key in ("student", "teacher", "kd", "epochs", "views")}
        | {"seconds": student["seconds"], "images": document["dataset"]["train"]},
    }  # fmt: skip


def page(found: dict[str, Any]) -> str:
    ours, reference, training = found["ours"], found["reference"], found["training"]
    gain, low, high = stats.paired_difference(ours["baseline_only"], ours["this_only"], ours["n"])
    hours = training["seconds"] / 3600
    return "\n".join([
        "# An int8 ResNet-8 against MLPerf Tiny's", "",
        f"Made by `mlperf_tiny.py --page` from `records/mlperf_tiny.json`, on {found['machine']['cpu_model']}; both "
        f"files on the same {ours['n']:,} test images of CIFAR-10.", "",
        "| int8 file | bytes | top-1 % (95 %) |", "| --- | ---: | --- |",
        *(
            "| {} | {:,} | {:.2f} ({:.2f} to {:.2f}) |".format(
                name, file["size_bytes"], 100 * file["correct"] / file["n"],
                *(100 * end for end in stats.wilson(file["correct"], file["n"])),
            )
            for name, file in (("MLPerf Tiny's reference", reference), (f"`{training['student']}`, distilled", ours))
        ),
        "", f"Ours is {100 * gain:+.2f} points of top-1 ({100 * low:+.2f} to {100 * high:+.2f}, paired).", "",
        f"Training: {training['epochs']} epochs of {' + '.join(training['kd'])} from {', '.join(training['teacher'])} "
        f"on {training['images']:,} images, {training['views']} augmented views of each, in {hours:.1f} hours on one "
        "thread of a machine that did other work beside it.",
    ]) + "\n"  # fmt: skip


def main() -> int:
    options = arguments()
    if options.page:
        found = read_json(options.record)
        write_atomic(PAGE, page(found).encode())
    else:
        found = measured(options)
        record.write(options.record, found)
    ours, reference = found["ours"], found["reference"]
    _, low, _ = stats.paired_difference(ours["baseline_only"], ours["this_only"], ours["n"])
    better = low > 0 and ours["size_bytes"] <= reference["size_bytes"]
    return record.CLAIM_HOLDS if better else record.CLAIM_FAILS


if __name__ == "__main__":
    record.run(main)
