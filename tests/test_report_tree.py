"""The picture of a soft decision tree: what is counted from real images, and what the report makes of it."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import make_facts

from compress import network, plan, recipe, report, run_measurements, train, tree_facts
from compress.errors import InputRejected
from compress.nets import soft_tree
from compress.report import html, markdown
from compress.store import Store
from compress.types import Dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Dataset:
    return plan.load_data(recipe.Recipe(), Store(tmp_path_factory.mktemp("store"))).report


def a_tree(dataset: Dataset, depth: int = 3) -> network.Network:
    net = network.build(
        f"soft_tree:depth={depth}", class_names=dataset.class_names, input_shape=dataset.input_shape,
        mean=dataset.mean, std=dataset.std, seed=0,
    )  # fmt: skip
    with torch.no_grad():  # as trained: filters that split the images, leaves that are sure
        net.body.filters.weight.mul_(4)
        net.body.leaves.mul_(3)
    return net.eval()


def test_what_is_counted_is_what_the_tree_answers(digits: Dataset) -> None:
    net = a_tree(digits)
    facts = tree_facts.of_tree(net, soft_tree.picture, "distilled", digits)
    assert facts["depth"] == 3 and len(facts["filters"]) == 7 and len(facts["leaves"]) == 8
    reached = facts["reached"]
    assert reached[0] == len(digits.labels)
    assert all(reached[node] == reached[2 * node + 1] + reached[2 * node + 2] for node in range(7))
    answers = train.predict(net, digits.images)
    for sample in facts["samples"]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample["image"]))))
        (row,) = (i for i in range(len(digits.labels)) if np.array_equal(digits.images[i, ..., 0], pixels))
        assert sample["label"] == digits.class_names[digits.labels[row]]
        leaf = facts["leaves"][sample["path"][-1] - 7]
        assert np.allclose(leaf, np.exp(answers[row]), atol=1e-4)


def test_a_filter_is_blue_where_it_speaks_for_the_right(digits: Dataset) -> None:
    net = a_tree(digits)
    facts = tree_facts.of_tree(net, soft_tree.picture, "distilled", digits)
    weights = net.body.filters.weight[2].detach().numpy().reshape(8, 8)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(facts["filters"][2])))).astype(int)
    assert pixels.shape == (8, 8, 4) and pixels[..., 3].max() == 255
    assert np.array_equal(pixels[..., 2] > pixels[..., 0], weights > 0)
    assert np.allclose(pixels[..., 3] / 255, np.abs(weights) / np.abs(weights).max(), atol=0.003)


def test_networks_of_plugins_and_others_have_no_picture(digits: Dataset, tmp_path) -> None:
    plugin = tmp_path / "mynet.py"
    plugin.write_text(
        "from torch import nn\nfrom compress.config import NoKnobs as Config\n"
        "def build(config, num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    splits = plan.load_data(recipe.Recipe(), Store(tmp_path / "store"))
    for student, plugins in (("mynet", (plugin,)), ("mlp", ())):
        job = plan.make(recipe.from_values({"student": student, "teacher": "mlp"}), splits, plugins)
        assert run_measurements._tree(job, []) is None


def png(side: int = 8) -> str:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def with_tree(depth: int, drawn: int) -> dict:
    facts = make_facts()
    classes, leaves = len(facts["dataset"]["class_names"]), 2**depth
    distributions = np.eye(classes)[np.arange(leaves) % classes] * 0.9 + 0.1 / classes
    reached = [2 ** (depth - ((node + 1).bit_length() - 1)) for node in range(2 * leaves - 1)]
    path = [0]
    for _ in range(depth):
        path.append(2 * path[-1] + 2)
    label = facts["dataset"]["class_names"][(leaves - 1) % classes]
    samples = [{"image": png(), "label": label, "path": path}, {"image": png(), "label": "<b>no", "path": path}]
    facts["tree"] = {
        "stage": "distilled", "depth": depth, "filters": [png()] * (2**drawn - 1), "reached": reached,
        "leaves": distributions.tolist(), "samples": samples,
    }  # fmt: skip
    return facts


@pytest.mark.parametrize(("depth", "drawn"), [(1, 1), (3, 3), (5, 5), (8, 5)])
def test_the_page_shows_every_filter_that_there_is_and_every_path(depth: int, drawn: int) -> None:
    document = report.document_of(with_tree(depth, drawn))
    page = html.render(document)
    picture, ways = (re.search(rf'aria-labelledby="{name}-title.*?</svg>', page, re.S).group(0) for name in
                     ("tree", "tree-paths"))  # fmt: skip
    assert picture.count("<image") == 2**drawn - 1 and picture.count('class="flow"') == 2 * (2**drawn - 1)
    assert (picture.count('class="t number') == 2**depth) == (depth == drawn)
    assert ways.count("<image") == 2 * (1 + min(depth, drawn)) and ">right<" in ways and ">wrong<" in ways
    assert ("deeper than what is drawn" in page) == (depth > drawn)
    assert "<b>no" not in page and " style=" not in page
    assert document["derived"]["tree"]["samples"][0]["turns"] == ["right"] * depth
    text = markdown.render(document)
    assert text.count(": " + ", ".join(["right"] * depth) + " → ") == 2


def test_reports_without_a_tree_have_no_section() -> None:
    for tree in ({}, {"tree": None}):
        page = html.render(report.document_of(make_facts() | tree))
        assert "decision tree" not in page


@pytest.mark.parametrize(
    ("key", "value"),
    [("leaves", [[0.5, 0.5]]), ("depth", 4), ("filters", ["QUJD"] * 2), ("reached", [1]),
     ("samples", [{"image": "", "label": "", "path": [0, 1, 9, 3]}]),
     ("samples", [{"image": "", "label": "", "path": [0]}]), ("filters", ["QUJD"] * 7), ("filters", [png(513)] * 7),
     ("filters", [png()[:40]] * 7), ("filters", ["<svg onload=x>"] * 7)],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(key: str, value: object) -> None:
    facts = with_tree(3, 3)
    facts["tree"][key] = value
    with pytest.raises(InputRejected, match="tree") as caught:
        report.document_of(facts)
    print(caught.value)


def test_more_levels_than_are_drawn_are_refused() -> None:
    facts = with_tree(8, 5)
    facts["tree"]["filters"] = [png()] * 63
    with pytest.raises(InputRejected, match="five at most"):
        report.document_of(facts)
