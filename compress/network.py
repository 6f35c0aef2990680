"""A classifier as this package holds it: a body that a `nets/` entry built, with its own input normalisation.

Images in [0,1] go in, logits come out, for every network: teacher and student each apply their own mean and std, and
the exported file carries them. On disk a network is `network.json` (what to build) and `weights.safetensors`; no
pickle anywhere.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import save as save_safetensors_bytes
from torch import Tensor, nn

from compress import catalog, randomness, relu6
from compress.errors import InputRejected
from compress.store import read_json, write_atomic, write_json


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a network was built for: everything but its weights. `widths` holds the shapes that pruning changed; `size`
    is the side in pixels that images are resized to inside, 0 for none.
    """

    spec: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    widths: dict[str, list[int]]
    size: int = 0


class Network(nn.Module):
    """`body((x − mean) / std)`: float32 `[B,C,H,W]` in [0,1] → logits `[B,K]`, x resized first where it must be."""

    def __init__(self, body: nn.Module, contract: Contract):
        super().__init__()
        self.body = body
        self.contract = contract
        # scale and shift instead of mean and std: one multiply and one add in the exported graph
        scale = 1.0 / torch.tensor(contract.std, dtype=torch.float32)
        shift = -torch.tensor(contract.mean, dtype=torch.float32) * scale
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.contract.size:
            images = F.interpolate(images, (self.contract.size, self.contract.size), mode="bilinear", antialias=True)
        normalised = images * self.scale + self.shift
        return self.body(normalised.to(next(self.body.parameters()).dtype))


def build(
    spec: str,
    *,
    class_names: tuple[str, ...],
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    size: int = 0,
    plugins: tuple[Path, ...] = (),
) -> Network:
    """A fresh network. Its initial weights are a function of `seed` and the spec alone."""
    entry = catalog.load("nets", spec, plugins)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive("weights", seed, entry.spec))
        inner_shape = (input_shape[0], size, size) if size else input_shape
        body = entry.module.build(entry.config, len(class_names), inner_shape)
    relu6.use_result(body)
    contract = Contract(
        spec=entry.spec, class_names=class_names, input_shape=input_shape, mean=mean, std=std, widths={}, size=size
    )
    return Network(body, contract)


def reshape(network: Network, widths: dict[str, list[int]]) -> None:
    """Give the body's layers the weight shapes in `widths` (parameter name → shape), as pruning left them.

    The values of reshaped weights are zero until a state is loaded.
    """
    for name, shape in widths.items():
        path, _, leaf = name.rpartition(".")
        layer = network.get_submodule(path)
        old = getattr(layer, leaf)
        new = torch.zeros(shape, dtype=old.dtype)
        setattr(layer, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if leaf != "weight":
            continue
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels > 1
            layer.out_channels = shape[0]
            layer.groups = shape[0] if depthwise else layer.groups
            layer.in_channels = shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = shape
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = shape[0]


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def save(network: Network, folder: Path) -> None:
    """Write `network.json` and `weights.safetensors` into `folder`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to("cpu").contiguous().clone() for k, v in network.state_dict().items()}
    write_atomic(folder / "weights.safetensors", save_safetensors_bytes(state))
    contract = network.contract
    write_json(folder / "network.json", {k: getattr(contract, k) for k in Contract.__dataclass_fields__})


def load(folder: Path, plugins: tuple[Path, ...] = ()) -> Network:
    """The network saved in `folder`, in eval mode. Raises InputRejected when the files do not fit each other."""
    record = read_json(folder / "network.json")
    try:
        widths = record.pop("widths")
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        network = build(**fields, seed=0, plugins=plugins)
        reshape(network, widths)
        network.contract = Contract(**fields, widths=widths)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputRejected(
            f"{folder / 'network.json'} does not describe a network: {error}", code="E-STORE-DAMAGED"
        ) from error
    load_state(network, read_checkpoint(folder / "weights.safetensors"), folder / "weights.safetensors")
    return network.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a user's checkpoint: safetensors, or a torch file read with `weights_only=True` and no fallback.

    A nested `state_dict`/`model` table is entered; `module.` and `_orig_mod.` prefixes are stripped.
    Raises InputRejected naming the file: missing, not a checkpoint, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise InputRejected(f"checkpoint {path} does not exist or is not a file", code="E-FILE-READ")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_safetensors_bytes(path.read_bytes())
        except SafetensorError as error:
            raise InputRejected(
                f"checkpoint {path} is not a valid safetensors file: {error}", code="E-CHECKPOINT-READ"
            ) from error
    else:
        state = _read_torch_file(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise InputRejected(
            f"checkpoint {path} holds no table of tensors", code="E-CHECKPOINT-READ", hint="save `model.state_dict()`"
        )
    return {_strip(key): value for key, value in tensors.items()}


def _read_torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputRejected(
            f"checkpoint {path} was refused: it is damaged, or holds Python objects that would run code when read "
            "(only tensors in plain containers are read)",
            code="E-CHECKPOINT-PICKLE",
            hint="save only `model.state_dict()`, or convert the file to safetensors where you trust it",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, TypeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputRejected(
            f"checkpoint {path} is not a readable torch file: {reason}", code="E-CHECKPOINT-READ"
        ) from error


def _strip(key: str) -> str:
    while key.startswith(("module.", "_orig_mod.")):
        key = key.partition(".")[2]
    return key


def load_state(network: Network, state: dict[str, Tensor], path: Path) -> None:
    """Load `state` into the network or, for a file from elsewhere, into its body.

    Raises InputRejected that lists missing, unexpected and wrong-shape keys.
    """
    target: nn.Module = network if any(k.startswith("body.") for k in state) else network.body
    own = target.state_dict()
    # checkpoints of old torch versions lack this counter, which nothing here reads
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    wrong = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    wrong += [
        f"{k} {state[k].dtype} instead of {own[k].dtype}"
        for k in own
        if k in state and state[k].is_floating_point() != own[k].is_floating_point()
    ]
    if missing or extra or wrong:
        parts = [
            f"{len(keys)} {what} ({_some(keys)})"
            for what, keys in (("missing", missing), ("unexpected", extra), ("of the wrong shape or type", wrong))
            if keys
        ]
        raise InputRejected(
            f"checkpoint {path} does not fit `{network.contract.spec}` with {len(network.contract.class_names)} "
            f"classes: keys " + "; ".join(parts),
            code="E-CHECKPOINT-KEYS",
            hint=_mismatch_hint(wrong, missing, extra),
        )
    bad = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise InputRejected(f"checkpoint {path} holds NaN or infinite values in {_some(bad)}", code="E-CHECKPOINT-NAN")
    target.load_state_dict(state, strict=False)


def _mismatch_hint(wrong: list[str], missing: list[str], extra: list[str]) -> str:
    if wrong and not missing and not extra and len(wrong) <= 2:
        return "only the classifier differs: the checkpoint was trained with another number of classes"
    return "name the architecture that the checkpoint was made with; `compress list nets` shows what there is"


def _some(keys: list[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (f", … {len(keys) - limit} more" if len(keys) > limit else "")


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def count_macs(network: Network) -> int:
    """Multiply-accumulates of one image through Conv2d and Linear layers (FLOPs = 2 × MACs)."""
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weights_per_output = layer.weight[0].numel()
        total += weights_per_output * output[0].numel()

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = network.training
    try:
        with torch.no_grad():
            parameter = next(network.parameters())
            network.eval()(torch.zeros(1, *network.contract.input_shape, device=parameter.device))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return total


def digest(network: Network) -> str:
    """sha256 over the contract and every tensor's name, shape and bytes."""
    contract = {k: getattr(network.contract, k) for k in Contract.__dataclass_fields__}
    hasher = hashlib.sha256(json.dumps(contract, sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        hasher.update(name.encode() + str(tuple(value.shape)).encode())
        hasher.update(value.detach().to("cpu").contiguous().numpy().tobytes())
    return hasher.hexdigest()
