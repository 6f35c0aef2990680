"""The shipped files in tract, a reader of ONNX that shares no code with ONNX Runtime: what both read alike is the
format, not one program's habit. tract takes a fixed batch only.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

tract = pytest.importorskip("tract", reason="pip install 'tract>=0.23'")

RUN = Path(__file__).parents[1] / "models" / "digits-mobilenet"


def answers(path: Path, images: np.ndarray, folder: Path) -> np.ndarray:
    """Logits `[N,K]` of uint8 images `[N,H,W,C]`, asked one by one."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    onnx.save(model, folder / "one.onnx")
    runnable = tract.onnx().load(str(folder / "one.onnx")).into_model().into_runnable()
    inputs = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    return np.concatenate([runnable.run([one[None]])[0].to_numpy() for one in inputs])


@pytest.mark.parametrize(("name", "allowed"), [("teacher", 1e-5), ("student", 1e-5), ("student.int8", 0.05)])
def test_a_second_reader_gives_the_golden_answers(name, allowed, tmp_path):
    """int8: the golden answers come from a CPU that adds exactly; tract rounds in other places."""
    with np.load(RUN / f"{name}.golden.npz") as golden:
        images, expected = golden["images"], golden["logits"]
    got = answers(RUN / f"{name}.onnx", images, tmp_path)
    assert (got.argmax(1) == expected.argmax(1)).all()
    assert np.abs(got - expected).max() <= allowed * np.ptp(expected)
    # another image's answer would be told
    assert np.abs(np.roll(got, 1, axis=0) - expected).max() > 0.05 * np.ptp(expected)
