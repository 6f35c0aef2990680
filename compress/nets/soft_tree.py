"""Soft decision tree: a filter in each inner node turns an image left or right, each leaf holds one distribution.

    p_i = σ(β (x·w_i + b_i))      the image turns right at inner node i
    P^l                           product of the branch probabilities on the way to leaf l
    Q^l = softmax(φ^l)            the answer of leaf l
    C = −λ Σ_i 2^−d_i (½ log a_i + ½ log(1 − a_i)),   a_i = Σ_x P^i p_i / Σ_x P^i

x is the flattened, normalised image, β `beta`, λ `balance`, d_i the depth of node i (the root's is 0).
Source: Frosst and Hinton 2017, "Distilling a Neural Network Into a Soft Decision Tree", sections 2 and 3. In training
the answer is m_k = Σ_l P^l log Q^l_k, so that −Σ_k T_k m_k is the expected cross-entropy over the leaves; otherwise it
is log Q of the leaf with the largest P^l. The trainer adds `penalty()`, the paper's C, to the objective.
The a_i are running averages whose window grows with 2^d_i, as in the paper. How the gradient passes them it leaves
open: here it is the current batch's, as if the whole window moved with it. β is one for all nodes and not learned; λ is
that of kimhc6028/soft-decision-tree. Trees want larger learning rates than other networks, and say so to the trainer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.config import knob
from compress.errors import CompressError
from compress.losses import full_precision

# nodes of the tree of depth d: 2^d − 1 filters of all pixels with their biases, 2^d leaves of all classes
PARAMETERS = {
    ("soft_tree", 10, (1, 8, 8)): 31 * 65 + 32 * 10,
    ("soft_tree:depth=8", 10, (1, 28, 28)): 255 * 785 + 256 * 10,
}

# one for each weight of the filters
MACS = {
    ("soft_tree", 10, (1, 8, 8)): 1_984,
    ("soft_tree:depth=8", 10, (1, 28, 28)): 199_920,
}

# added to what went left and right of a node (a share of the images): a node that nobody reaches counts as balanced
SMALLEST_SHARE = 1e-8


@dataclass(frozen=True, kw_only=True)
class Config:
    depth: int = knob(5, "inner nodes on the way to a leaf; 2^depth leaves", low=1, high=10)
    beta: float = knob(1.0, "inverse temperature of the decisions; large ones are harder", low=0.01, high=100)
    balance: float = knob(0.1, "strength of the penalty on nodes that send all images one way", low=0, high=100)


def log_reach(node_logits: Tensor) -> list[Tensor]:
    """Log probability to reach each node, level by level (`[B,1]`, `[B,2]`, … the leaves last), of logits `[B,nodes]`.

    Nodes are numbered as in a heap: the children of i are 2i+1 (left) and 2i+2 (right).

    >>> [level.exp().tolist() for level in log_reach(torch.zeros(1, 3))]
    [[[1.0]], [[0.5, 0.5]], [[0.25, 0.25, 0.25, 0.25]]]
    """
    levels = [torch.zeros_like(node_logits[:, :1])]
    while (above := levels[-1]).shape[1] <= node_logits.shape[1]:
        nodes = node_logits[:, above.shape[1] - 1 : 2 * above.shape[1] - 1]
        turns = torch.stack([F.logsigmoid(-nodes), F.logsigmoid(nodes)], dim=2)
        levels.append((above.unsqueeze(2) + turns).flatten(1))
    return levels


def most_probable_leaf(node_logits: Tensor) -> Tensor:
    """The leaf `[B]` with the largest path probability, of logits `[B,nodes]`.

    The largest is at least 2^−depth, so that these plain products cannot underflow where it matters; they also stay
    in [0,1], which 8 bits can hold and logarithms cannot.
    """
    turns = torch.stack([torch.sigmoid(-node_logits), torch.sigmoid(node_logits)], dim=2)
    paths = turns[:, 0]
    while (above := paths.shape[1]) <= node_logits.shape[1]:
        paths = (paths.unsqueeze(2) * turns[:, above - 1 : 2 * above - 1]).flatten(1)
    return paths.argmax(1)


def decay(nodes: int) -> Tensor:
    """2^−d_i of each inner node: `[nodes]`."""
    return torch.cat([torch.full((2**d,), 0.5**d) for d in range(nodes.bit_length())])


def imbalance(branches: Tensor) -> Tensor:
    """C / λ of the shares of the images that went left and right at each inner node: `[nodes,2]`.

    Least, and log 2 for each level, where every node sends half of its images either way.

    >>> round(imbalance(torch.tensor([[0.5, 0.5]])).item(), 6)
    0.693147
    """
    branches = branches + SMALLEST_SHARE
    logs = torch.log(branches / branches.sum(1, keepdim=True))
    return -(decay(len(branches)).to(branches) * logs.mean(1)).sum()


class SoftTree(nn.Module):
    """Inner nodes and leaves are numbered together, as in a heap: leaf l is node `nodes + l`."""

    learning_rate_factor = 20.0  # the product of probabilities on a path makes gradients small
    branches: Tensor
    _latest: Tensor | None = None  # `[nodes,2]` of the last training forward, with its graph
    _counted = False  # whether `branches` has it already

    def __init__(self, config: Config, num_classes: int, input_shape: tuple[int, int, int]):
        super().__init__()
        nodes = 2**config.depth - 1
        self.beta, self.balance, self.input_shape = config.beta, config.balance, input_shape
        self.filters = nn.Linear(math.prod(input_shape), nodes)
        self.leaves = nn.Parameter(torch.randn(nodes + 1, num_classes))
        self.register_buffer("branches", torch.zeros(nodes, 2))

    def node_logits(self, x: Tensor) -> Tensor:
        """β (x·w + b) of images `[B,C,H,W]`: `[B,nodes]`, in float32 at least."""
        # the third axis says that this is no classifier and its input, the pixels, no embedding
        logits = self.filters(x.flatten(1).unsqueeze(1)).squeeze(1)
        return self.beta * full_precision(logits)

    def log_leaves(self) -> Tensor:
        """log Q `[leaves,K]`."""
        return F.log_softmax(full_precision(self.leaves), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        node_logits = self.node_logits(x)
        if not self.training:
            return self.log_leaves().index_select(0, most_probable_leaf(node_logits))
        levels = log_reach(node_logits)
        self._latest, self._counted = torch.cat(levels[1:], dim=1).exp().mean(0).view(-1, 2), False
        with torch.autocast(x.device.type, enabled=False):  # three digits are too few for sums of logarithms
            return levels[-1].exp() @ self.log_leaves()

    def penalty(self) -> Tensor:
        """The penalty C of the last training forward.

        The running averages move here, once for a forward: a forward that nobody asks about leaves no trace in them,
        and asking again changes nothing.
        """
        if self._latest is None:
            raise CompressError(
                "the penalty of a soft tree is that of a forward pass in training mode: there was none",
                code="E-NET-READ",
            )
        if not self._counted:
            news = decay(len(self.branches)).to(self.branches).unsqueeze(1)
            self.branches.lerp_(self._latest.detach().to(self.branches), news)
            self._counted = True
        moving = self.branches + (self._latest - self._latest.detach())
        return self.balance * imbalance(moving)

    def train(self, mode: bool = True) -> "SoftTree":
        self._latest = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # a tensor in the middle of a graph can be neither copied nor saved
        return {k: v for k, v in self.__dict__.items() if k not in ("_latest", "_counted")}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What there is to draw of a tree: `filters` `[nodes,C,H,W]` (positive pixels speak for the right), `leaves`
    `[leaves,K]` (probabilities), `paths` int64 `[B,depth+1]` (heap numbers from the root to the leaf of each image).
    """

    filters: Tensor
    leaves: Tensor
    paths: Tensor


def path_to(leaf: Tensor, depth: int) -> Tensor:
    """Heap numbers `[B,depth+1]` from the root to leaves `[B]`, which count from 0.

    >>> path_to(torch.tensor([2]), 2).tolist()  # right, then left
    [[0, 2, 5]]
    """
    return torch.stack([(leaf + 2**depth >> depth - d) - 1 for d in range(depth + 1)], dim=1)


@torch.no_grad()
def picture(tree: SoftTree, images: Tensor) -> Picture:
    """The tree, and the paths that it answers by for normalised images `[B,C,H,W]`."""
    node_logits = tree.node_logits(images)
    return Picture(
        filters=tree.filters.weight.clone().view(-1, *tree.input_shape),
        leaves=tree.log_leaves().exp(),
        paths=path_to(most_probable_leaf(node_logits), node_logits.shape[1].bit_length()),
    )


def build(config: Config, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return SoftTree(config, num_classes, input_shape)
