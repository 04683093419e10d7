"""What every test stands on: one thread for small matrices, and pictures without a screen."""

from __future__ import annotations

import matplotlib
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)
