"""CIFAR-100: 60,000 colour images of 32 x 32 pixels in 100 classes, through torchvision; fetched only when asked to.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Its test images are the `report` split.
"""

from dataclasses import dataclass
from pathlib import Path

from compress import torchvision_source
from compress.config import knob
from compress.data_source import Progress, Source

LICENSE = "its authors state none; images from the web, for research"


@dataclass(frozen=True, kw_only=True)
class Config:
    root: str = knob("", "folder that holds (or shall hold) cifar-100-python; empty: the store")


def load(
    config: Config, *, download: bool = False, on_bad: str = "fail", cache: Path, progress: Progress | None = None
) -> Source:
    """Images uint8 `[N,32,32,3]`. Raises InputRejected when the data set is not there and `download` is false."""
    return torchvision_source.load(
        "cifar100", "CIFAR100", "cifar-100-python", root=config.root, download=download, cache=cache
    )
