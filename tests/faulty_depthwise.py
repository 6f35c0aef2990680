"""The smallest network on which ncnn 1.0.20261020's fp16 arithmetic on aarch64 is wrong, made when it is needed."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES = 16, 10


def faulty_depthwise(path: Path, size: int = 14, channels: int = CHANNELS) -> None:
    """Writes the ONNX file `[1,3,size,size]` -> 1x1 conv -> depthwise 3x3 stride 2 -> ten sums of all pixels.

    The kernel in question runs where channels % 8 == 0, and reads the wrong rows where the output's width % 4 is 2
    or 3: size 14 gives 7 columns. Sizes 8 and 16 (4 and 8 columns) are right. Source: `convdw3x3s2_pack8_fp16sa_neon`.
    The sums have random signs: a mean over the pixels would hide most of it, as wrong rows have nearly the right mean.
    """
    draw = np.random.default_rng(0)
    pixels = channels * ((size + 1) // 2) ** 2
    weights = {
        "spread_w": draw.normal(0, 0.5, (channels, 3, 1, 1)),
        "depthwise_w": draw.normal(0, 0.5, (channels, 1, 3, 3)),
        "classes_w": draw.normal(0, pixels**-0.5, (pixels, CLASSES)),
        "classes_b": np.zeros(CLASSES),
    }
    nodes = [
        helper.make_node("Conv", ["image", "spread_w"], ["spread"], kernel_shape=[1, 1]),
        helper.make_node(
            "Conv",
            ["spread", "depthwise_w"],
            ["depthwise"],
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[2, 2],
            group=channels,
        ),
        helper.make_node("Flatten", ["depthwise"], ["flat"]),
        helper.make_node("Gemm", ["flat", "classes_w", "classes_b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "faulty_depthwise",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
