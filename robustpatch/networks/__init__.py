"""Base classifiers: the paper's, seen through NULL, and those that score all ablations in one pass; usual networks."""

from __future__ import annotations

from robustpatch.networks.band import BandNet
from robustpatch.networks.block import BlockNet
from robustpatch.networks.conv_block import ConvBlockNet
from robustpatch.networks.grid import GridNet
from robustpatch.networks.mlp import MLP
from robustpatch.networks.mnist_cnn import MnistCNN
from robustpatch.networks.one_pass import OnePass
from robustpatch.networks.pooled_cnn import PooledCNN
from robustpatch.networks.registry import build, one_pass_name, usual_name
from robustpatch.networks.residual_strip import ResidualStripNet
from robustpatch.networks.resnet import ResNet18
from robustpatch.networks.small_cnn import SmallCNN
from robustpatch.networks.strip import StripNet
from robustpatch.networks.union import UnionNet
from robustpatch.networks.vit import TokenDropViT
from robustpatch.networks.window import WindowNet

__all__ = [
    "MLP",
    "BandNet",
    "BlockNet",
    "ConvBlockNet",
    "GridNet",
    "MnistCNN",
    "OnePass",
    "PooledCNN",
    "ResNet18",
    "ResidualStripNet",
    "SmallCNN",
    "StripNet",
    "TokenDropViT",
    "UnionNet",
    "WindowNet",
    "build",
    "one_pass_name",
    "usual_name",
]
