"""What all tests share: no network, and one torch thread, which is faster for tiny tensors on busy cores."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
