"""A folder that an app developer can take: the files of one runtime, what goes in, what comes out, an example that
runs, golden samples, and the versions that made it.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from compress import __version__
from compress.environment import tool_commit, versions
from compress.errors import InputRejected
from compress.images import PREPROCESSING
from compress.store import file_digest, write_atomic, write_json
from compress.types import Artifact

_EXAMPLE = '''"""One golden sample through the model: prints the answer, and what it should be."""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
labels = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
golden = np.load(HERE / "golden.npz")
# uint8 [height, width, channels], RGB or grey, becomes float32 [1, channels, height, width] in [0,1]
image = np.ascontiguousarray(golden["images"][:1].transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)

{snippet}
answer, expected = int(logits.argmax()), int(golden["logits"][0].argmax())
print(f"{{labels[answer]}} (expected: {{labels[expected]}})")
sys.exit(answer != expected)
'''

# The same in Node; `sample.json` holds the first golden sample, for JavaScript reads no .npz.
_SCRIPT = """// One golden sample through the model: prints the answer, and what it should be.
import {{ readFileSync }} from "node:fs";
{imports}

const here = (name) => new URL(name, import.meta.url);
const labels = JSON.parse(readFileSync(here("labels.json"), "utf8"));
const sample = JSON.parse(readFileSync(here("sample.json"), "utf8"));
const model = readFileSync(here("model.onnx"));
// [channels][height][width] in 0 to 255, RGB or grey, one row after another, becomes float32 [1, C, H, W] in [0,1]
const shape = sample.shape;
const image = Float32Array.from(sample.image, (value) => value / 255);

{snippet}

const highest = (values) => values.indexOf(Math.max(...values));
const answer = highest(Array.from(logits));
const expected = highest(sample.logits);
console.log(`${{labels[answer]}} (expected: ${{labels[expected]}})`);
process.exit(answer === expected ? 0 : 1);
"""

_READ_ME = """# {stage} for {runtime}

| | |
| --- | --- |
| files | {files} |
| input | float32 `[1, {channels}, {height}, {width}]`, {colour}, values in 0 to 1, as the ONNX file takes them |
| output | logits, one for each of the {classes} classes of `labels.json`{output} |
| made from | `{source}`, sha256 `{digest}` |
| made with | {tools} |
| checked | {gate} |

`{run}` asks the first of the golden samples (`golden.npz`: `images` uint8 `[N,H,W,C]`, `logits` float32
`[N,K]`, as {runtime} {version} gave them). It needs {needs}.

How a photo becomes an input is in `preprocessing.json`; the same steps, in the same order, belong into the app. Let
the app's tests ask the golden samples too: they find a swapped channel or another scale at once.
{notes}"""


def write(
    folder: Path, *, artifact: Artifact, source: Artifact, runtime: str, module: Any, version: str,
    conversion: dict[str, Any], gate: dict[str, Any], images: np.ndarray, logits: np.ndarray,
) -> None:  # fmt: skip
    """Makes `folder`, complete or not at all: `images` uint8 `[N,H,W,C]` and this runtime's `logits` `[N,K]` for them
    become the golden samples. Raises InputRejected where something is there already that is not such a folder.
    """
    from compress.export import write_golden

    refuse_foreign(folder)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if artifact.path.is_dir():
        shutil.copytree(artifact.path, new, dirs_exist_ok=True)
    else:
        shutil.copyfile(artifact.path, new / "model.onnx")
    made = sorted(path for path in new.rglob("*") if path.is_file())
    write_golden(new / "golden.npz", images, logits)
    channels, height, width = artifact.input_shape
    write_json(new / "labels.json", list(artifact.class_names))
    write_json(new / "preprocessing.json", {**PREPROCESSING, "size": [height, width], "channels": channels})
    run, needs = _example(new, module, images[:1], logits[0])
    tools = {**conversion.get("tools", {}), **versions("onnx"), runtime: version, "compress": __version__}
    commit = tool_commit()
    write_json(
        new / "versions.json",
        {
            "runtime": runtime, "tools": tools, "commit": commit, "gate": gate, "notes": conversion.get("notes", []),
            "source": {"file": source.path.name, "sha256": source.digest, "precision": source.precision},
            "files": [{"file": p.name, "sha256": file_digest(p), "size_bytes": p.stat().st_size} for p in made],
        },
    )  # fmt: skip
    text = _READ_ME.format(
        stage=source.stage, runtime=runtime, files=", ".join(f"`{p.name}` ({p.stat().st_size:,} bytes)" for p in made),
        channels=channels, height=height, width=width, colour="RGB" if channels == 3 else "grey",
        classes=len(artifact.class_names), output=getattr(module, "OUTPUT", ""), source=source.path.name,
        digest=source.digest, tools=", ".join(f"{name} {of}" for name, of in sorted(tools.items())),
        gate=_checked(gate), version=version, run=run, needs=needs,
        notes="".join(f"\n- {note}" for note in conversion.get("notes", [])) + "\n",
    )  # fmt: skip
    write_atomic(new / "README.md", text.encode())
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def refuse_foreign(folder: Path) -> None:
    """Raises InputRejected where something is at `folder` that `write` has not made."""
    if folder.exists() and not (folder / "versions.json").is_file():
        raise InputRejected(
            f"{folder} is there already and was not made by `compress convert`",
            code="E-OUT-FOREIGN",
            hint="name another",
        )


def _example(folder: Path, module: Any, image: np.ndarray, logits: np.ndarray) -> tuple[str, str]:
    """Writes the runtime's example; returns the command that runs it, and what that needs."""
    if not hasattr(module, "SCRIPT"):
        write_atomic(folder / "example.py", _EXAMPLE.format(snippet=module.SNIPPET.strip()).encode())
        return "python example.py", f"numpy and `pip install '{module.REQUIRES}'`"
    lines = module.SCRIPT.strip().splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    rest = "\n".join(line for line in lines if line not in imports).strip()
    text = _SCRIPT.format(imports="\n".join(imports), snippet=rest)
    write_atomic(folder / "example.mjs", text.encode())
    pixels = image.transpose(0, 3, 1, 2)
    sample = {"shape": list(pixels.shape), "image": pixels.ravel().tolist(), "logits": logits.tolist()}
    write_json(folder / "sample.json", sample)
    return "node example.mjs", f"Node 18 or newer and `npm install '{module.REQUIRES}'`"


def _checked(gate: dict[str, Any]) -> str:
    """The gate's figures in a sentence."""
    if not gate:
        return "it is the ONNX file itself, in the runtime that it was checked with"
    return (
        f"same answer as {gate['reference']} on {gate['agreement_fraction']:.2%} of {gate['images']} images, logits "
        f"within {gate['difference_of_spread']:.2g} of their spread"
    )
