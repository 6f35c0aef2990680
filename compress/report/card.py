"""The card beside the artifacts: what it is, what it takes, how to use it, how good it is, how it was made."""

import json
import os
from pathlib import Path
from typing import Any

from compress.images import PREPROCESSING
from compress.report import format as fmt
from compress.report import markdown

_PYTHON = """import json, sys
import numpy as np, onnxruntime as ort
from PIL import Image, ImageOps
session = ort.InferenceSession("{file}", providers=["CPUExecutionProvider"])
photo = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("{mode}")
photo = ImageOps.fit(photo, ({width}, {height}), Image.Resampling.BILINEAR)
image = np.asarray(photo, np.float32).reshape(1, {height}, {width}, {channels}).transpose(0, 3, 1, 2) / 255
logits = session.run(None, {{"input": image}})[0]
classes = json.loads(session.get_modelmeta().custom_metadata_map["compress.class_names"])
print(classes[int(logits.argmax())])"""

_CPP = """#include <onnxruntime_cxx_api.h>
#include <vector>
// pixels: [channels][height][width] in [0,1]
std::vector<float> logits(Ort::Session& session, std::vector<float> pixels) {{
  const int64_t shape[] = {{1, {channels}, {height}, {width}}};
  const char *input = "input", *output = "logits";
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape, 4);
  auto answers = session.Run(Ort::RunOptions{{}}, &input, &image, 1, &output, 1);
  const float* first = answers[0].GetTensorData<float>();
  return {{first, first + {classes}}};
}}"""

_KOTLIN = """import ai.onnxruntime.*
import java.nio.FloatBuffer
// pixels: [channels][height][width] in [0,1]; model: the bytes of {file}
fun classOf(model: ByteArray, pixels: FloatArray): Int {{
    val environment = OrtEnvironment.getEnvironment()
    environment.createSession(model).use {{ session ->
        val shape = longArrayOf(1, {channels}, {height}, {width})
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(pixels), shape).use {{ image ->
            session.run(mapOf("input" to image)).use {{ answers ->
                val logits = (answers[0].value as Array<FloatArray>)[0]
                return logits.indices.maxByOrNull {{ logits[it] }}!!
            }}
        }}
    }}
}}"""


def render(document: dict[str, Any], converted: list[dict[str, Any]], models: Path, reports: Path) -> str:
    """The card as Markdown; `converted` are the manifest's entries of files for other runtimes, `models` and `reports`
    the folders of the run.
    """
    run, data = document["run"], document["dataset"]
    channels, height, width = data["input_shape"]
    files = [a for a in document["artifacts"] if a["file"]]
    rows = [f"| {a['file']} | {a['precision']} | {a['size_bytes']:,} | `{a['digest'][:16]}…` |" for a in files]
    names = ", ".join(map(markdown.escaped, data["class_names"]))
    return "\n".join([
        f"# {markdown.escaped(run['name'])}", "", document["derived"]["verdict"]["sentence"], "",
        "| file | precision | bytes | sha256 |", "| --- | --- | ---: | --- |", *rows, "",
        *_for_other_runtimes(converted, run["name"]),
        f"Input `input`: float32 `[batch, {channels}, {height}, {width}]`, values in [0,1]; the files normalise by "
        "themselves. Output `logits`.",
        f"Preprocessing of a photo: {json.dumps(PREPROCESSING)}",
        f"Classes, in order: {names}.",
        f"Data: {markdown.escaped(data['name'])}; {data['train']} train, {data['select']} select, "
        f"{data['report']} report images.", "",
        *_uses(document), *_limits(document),
        "## How it was made", "", f"    {run['command']}", "",
        "Check a copy of these files on your machine: `compress verify FOLDER`. The whole report:"
        f" `{os.path.relpath(reports / 'report.html', models)}`.", "",
        "## How good it is", "", markdown.fenced(markdown.summary(document).strip("\n"), "text"), "",
    ])  # fmt: skip


def _uses(document: dict[str, Any]) -> list[str]:
    """Ten lines in each of three languages, for the file that ships."""
    shipped = next((a for a in document["artifacts"] if a["stage"] == document["shipped"] and a["file"]), None)
    if shipped is None:
        return []
    channels, height, width = document["dataset"]["input_shape"]
    values = {
        "file": shipped["file"], "channels": channels, "height": height, "width": width,
        "mode": "RGB" if channels == 3 else "L", "classes": len(document["dataset"]["class_names"]),
    }  # fmt: skip
    parts = ["## How to use it", ""]
    for language, code in (("python", _PYTHON), ("cpp", _CPP), ("kotlin", _KOTLIN)):
        parts += [markdown.fenced(code.format(**values), language), ""]
    return parts


def _limits(document: dict[str, Any]) -> list[str]:
    data, machine, derived = document["dataset"], document["environment"], document["derived"]
    cell = next((c for c in derived["cells"] if c["cell"] == derived["primary_cell"]), None)
    timed = ""
    if cell and cell["latency_ns"]["value"] is not None:
        where = f"{cell['runtime']} at {fmt.threads(cell['threads'])}"
        timed = f", {fmt.latency_interval(cell['latency_ns'])} in {where}, median and 95 % interval,"
    licence = data.get("licence") or "not stated"
    return [
        "## Limits", "",
        f"- It answers with one of {fmt.count(len(data['class_names']))} classes whatever an image shows.",
        f"- Its accuracy is that on {fmt.count(data['report'])} images of {markdown.escaped(data['name'])}; other "
        "cameras and places may give another.",
        f"- Its latency{timed} is that of {markdown.escaped(machine['cpu_model'])}; of phones and boards it "
        "says nothing.",
        f"- Licence of the images: {markdown.escaped(licence)}. Its weights come from these and from its teacher's, "
        "which say what may be done with it.", "",
    ]  # fmt: skip


def _for_other_runtimes(converted: list[dict[str, Any]], name: str) -> list[str]:
    if not converted:
        return []
    rows = [f"| {', '.join(each['files'].values())} | {each['runtime']} | {each['precision']} |" for each in converted]
    said = (
        "Converted from these, and answering as they do in their runtimes; "
        f"`compress convert models/{name} --to RUNTIME --out DIR` makes a folder with an example that runs:"
    )
    return [said, "", "| files | runtime | precision |", "| --- | --- | --- |", *rows, ""]
