"""ExecuTorch with XNNPACK on the CPU: PyTorch's own runtime for phones and boards."""

from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = "executorch>=1.5,<1.6"
PACKAGES = ("executorch", "torch")
FORMAT = "pte"
# As for litert, whose kernels XNNPACK's are.
TOLERANCE = {"float32": 1e-3, "int8": 0.25}
# in the folders of `compress convert`: HERE is the folder, `image` float32 [1,C,H,W] in [0,1]
SNIPPET = """
import torch
from executorch.runtime import Runtime, Verification

program = Runtime.get().load_program(HERE / "model.pte", verification=Verification.Minimal)
logits = program.load_method("forward").execute([torch.from_numpy(image)])[0].numpy()
"""


def unavailable() -> str:
    """Why this runtime cannot be used here; empty when it can."""
    return "" if util.find_spec("executorch") else f"executorch is not installed: pip install '{REQUIRES}'"


def version() -> str:
    """Version of the library; importing it is part of this call."""
    _native()
    return metadata.version("executorch")


def _native() -> Any:
    """The native runtime. `executorch.runtime`, which calls it, also imports the whole exporter: 10 s a process."""
    import torch  # noqa: F401  (the extension needs its libraries)
    from executorch.extension.pybindings import _C

    return _C


def convert(source: Path, folder: Path, precision: str) -> dict[str, Any]:
    """`model.pte` from the ONNX file, by way of a torch module that does the same, lowered to XNNPACK: batch 1, float32
    NCHW in, float32 out. An int8 file keeps the ONNX file's levels and scales.

    InputRejected for an operator that the module has no counterpart of.
    """
    import onnx
    import torch
    from executorch.backends.xnnpack.partition.graphs import bilinear_2d
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    from compress.rebuilt import Rebuilt

    model = onnx.load(source)
    shape = [1, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    # Four graphs of resizing are exported to look for them, which takes 3 of 20 s; the module has no such operator.
    bilinear_2d.get_graphs_dict = dict
    program = torch.export.export(Rebuilt(model).eval(), (torch.zeros(shape),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    info = get_delegation_info(lowered.exported_program().graph_module)
    (folder / "model.pte").write_bytes(lowered.to_executorch().buffer)
    if not info.num_delegated_subgraphs:
        raise RuntimeError("XNNPACK took no part of the graph")
    plural = "s" * (info.num_delegated_subgraphs != 1)
    left = sorted(
        f"{row.non_delegated} {name}"
        for name, row in info.delegation_by_operator.items()
        if row.non_delegated and name != "getitem"
    )
    return {
        "tools": {"executorch": metadata.version("executorch"), "torch": torch.__version__},
        "notes": [
            f"{info.num_delegated_subgraphs} part{plural} delegated to XNNPACK",
            f"not delegated: {', '.join(left)}" if left else "every operator is delegated",
        ],
    }


def open_session(path: str, threads: int) -> Any:
    """The program `model.pte` in the folder `path`."""
    import torch

    # One pool for the whole process, of all cores by default, made when a program is loaded.
    _native()._unsafe_reset_threadpool(threads)
    torch.set_num_threads(threads)
    return _native()._load_for_executorch(str(Path(path) / "model.pte"))


def run(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Logits float32 `[1,K]` of one image float32 `[1,C,H,W]` in [0,1]."""
    import torch

    return session.forward([torch.from_numpy(inputs)])[0].numpy().copy()


def effective(session: Any) -> dict[str, Any]:
    """The threads of the pool that is used, read back."""
    return {"intra_op_threads": _native()._threadpool_get_thread_count(), "fixed_batch": 1}
