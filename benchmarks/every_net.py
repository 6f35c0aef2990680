"""Every network through the steps that end in a file: export, int8, and pruned by 30 % then exported.

Nothing is trained (the weights are random, away from their initial ones and zeros), so parity is what is shown: each
file answers as its network does, int8 by its top-1 agreement on real images. Whatever fails is a row with its reason.
NETS.md is made from the record by `every_net.py --page`.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from sklearn.datasets import load_digits

from compress import batchnorm, bench, catalog, export, fuse, network, prune, train
from compress.errors import CompressError
from compress.network import Network
from compress.progress import say
from compress.store import file_digest, read_json, write_atomic, write_json
from compress.types import Artifact

PAGE = Path(__file__).with_name("NETS.md")
RATIO = 0.3
EXTRA = ("torchvision:resnet18", "torchvision:mobilenet_v3_small", "timm:mobilenetv1_100", "shufflenet_v1:groups=8")
CLASSES = tuple("0123456789")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these networks [all]")
    parser.add_argument("--page", action="store_true", help="only write NETS.md, from the record")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=256, help="real images that are compared")
    parser.add_argument("--record", type=Path, default=record.RECORDS / "every_net.json", help="file to write")
    return parser.parse_args()


def digits(size: int, count: int) -> np.ndarray:
    """Handwritten digits as colour images `[N,H,W,3]`, their pixels repeated."""
    places = np.arange(size) * 8 // size
    grey = (load_digits().images[:count][:, places][:, :, places] * 255 / 16).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3)


def made(spec: str, size: int, images: np.ndarray) -> Network:
    """The network with the statistics of these images, so that its answers differ from image to image.

    No channel's variance is less than a hundredth of its layer's mean: what hardly varies would be amplified rounding.
    """
    net = network.build(
        spec, class_names=CLASSES, input_shape=(3, size, size), mean=(0.3,) * 3, std=(0.35,) * 3, seed=0
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            spread = value.std() if value.numel() > 1 and value.std() > 0 else torch.tensor(0.1)
            value.add_(0.2 * spread * torch.randn(value.shape, generator=generator))
        batchnorm.reestimate(net, images, batch_size=len(images))
        for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_var.clamp_(min=0.01 * norm.running_var.mean().item())
    return net.eval()


def artifact(path: Path, net: Network, precision: str) -> Artifact:
    return Artifact(
        path=path, digest=file_digest(path), format="onnx", precision=precision, stage=path.stem,
        size_bytes=path.stat().st_size, parameters=0, macs=0, input_shape=net.contract.input_shape,
        class_names=CLASSES,
    )  # fmt: skip


def compared(net: Network, path: Path, images: np.ndarray, work: Path, precision: str = "float32") -> dict[str, Any]:
    got = bench.answers(artifact(path, net, precision), "ort_cpu", images, threads=1, scratch=work)
    return export.compare(train.predict(net, images), got)


def exported(net: Network, path: Path, images: np.ndarray, work: Path) -> dict[str, Any]:
    export.export_onnx(net, path, recipe_digest="")
    facts = compared(net, path, images, work)
    export.check_parity(facts, path.stem)
    return {**facts, "size_bytes": path.stat().st_size}


def quantized(net: Network, float_path: Path, path: Path, images: np.ndarray, work: Path) -> dict[str, Any]:
    if not float_path.exists():
        raise CompressError("there is no float file to quantize")
    entry = catalog.load("quantizers", "int8")
    entry.module.apply(entry.config, float_path, path, images, work)
    facts = compared(net, path, images, work, "int8")
    if not facts["finite"]:
        raise CompressError("int8 answers are not finite")
    return {**facts, "size_bytes": path.stat().st_size}


def pruned(net: Network, path: Path, images: np.ndarray, work: Path) -> dict[str, Any]:
    found = prune.prunable(net)
    ranking = prune.rank(found, catalog.load("pruners", "magnitude"))
    smaller = prune.cut(ranking, prune.choose(ranking, RATIO), round_to=8)
    macs = network.count_macs(fuse.merge_branches(smaller)) / network.count_macs(fuse.merge_branches(net))
    return {**exported(smaller, path, images, work), "macs_share": macs, "stays": len(found.stays)}


def tried(what: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    try:
        return {"works": True, **what(*given)}
    except Exception as error:  # whatever a network raises is its row's reason
        first = getattr(error, "message", str(error)).partition("\n")[0]
        return {"works": False, "reason": first or type(error).__name__}


def row_of(spec: str, size: int, images: np.ndarray) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            net = made(spec, size, images)
            merged = fuse.merge_branches(net)
        except CompressError as error:
            nothing = {"works": False, "reason": error.message}
            return {"net": spec, "parameters": 0, "macs": 0, "export": nothing, "int8": nothing, "prune": nothing}
        return {
            "net": spec,
            "parameters": network.count_parameters(merged),
            "macs": network.count_macs(merged),
            "export": tried(exported, net, work / "model.onnx", images, work),
            "int8": tried(quantized, net, work / "model.onnx", work / "int8.onnx", images, work),
            "prune": tried(pruned, net, work / "pruned.onnx", images, work),
        }


STEPS = ("export", "int8", "prune")


def page(found: dict[str, Any]) -> str:
    """The record as a Markdown page."""
    counts = [f"{sum(r[step]['works'] for r in found['rows'])} of {len(found['rows'])} {step}" for step in STEPS]
    parts = [
        "# Every network through export, int8 and pruning", "",
        f"Made by `every_net.py --page`: {found['images']} real images of {found['size']} px, random weights, "
        f"{RATIO:.0%} of the channels pruned by magnitude. A file counts where it answers as its network does "
        f"(largest difference below {export.PARITY_TOLERANCE:g} of the logits' spread); int8 where it runs, its top-1 "
        "agreement beside it (random weights answer at random: trained ones agree far more).", "",
        f"**{'; '.join(counts)}.**" + (f" Not run: {', '.join(found['left_out'])}." if found["left_out"] else ""), "",
        "| network | parameters | MMAC | export | int8: bytes, agreement | pruned: MACs left, export |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]  # fmt: skip
    for row in found["rows"]:
        cells = [_cell(row, "export", "{max_difference_of_spread:.0e}"),
                 _cell(row, "int8", "{size_bytes:,}, {top1_agreement_fraction:.0%}"),
                 _cell(row, "prune", "{macs_share:.0%}, {max_difference_of_spread:.0e}")]  # fmt: skip
        parts.append(
            f"| `{row['net']}` | {row['parameters']:,} | {row['macs'] / 1e6:.1f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(parts) + "\n"


def _cell(row: dict[str, Any], step: str, words: str) -> str:
    found = row[step]
    return words.format(**found) if found["works"] else f"**no**: {found['reason']}"


def main() -> int:
    options = arguments()
    if not options.page:
        every = [name for name in catalog.names("nets") if name not in ("torchvision", "timm")]
        images = digits(options.size, options.images)
        partial = options.record.with_suffix(".partial.json")
        rows = read_json(partial)["rows"] if partial.exists() else []  # a script that was stopped goes on
        there = {row["net"] for row in rows}
        for spec in options.names or [*every, *EXTRA]:
            if spec in there:
                continue
            rows.append(row_of(spec, options.size, images))
            say(f"{spec}: " + ", ".join(f"{step} {'yes' if rows[-1][step]['works'] else 'NO'}" for step in STEPS))
            write_json(partial, {"rows": rows})
        left_out = [name for name in (*every, *EXTRA) if name not in {row["net"] for row in rows}]
        facts = {"size": options.size, "images": options.images, "left_out": left_out, "rows": rows}
        record.write(options.record, facts)
        partial.unlink()
        return record.CLAIM_HOLDS if all(r[s]["works"] for r in rows for s in STEPS) else record.CLAIM_FAILS
    write_atomic(PAGE, page(read_json(options.record)).encode())
    return record.CLAIM_HOLDS


if __name__ == "__main__":
    record.run(main)
