"""The handwritten digits that scikit-learn ships, and a small network that reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped] # ships no types
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped] # likewise
from torch import Tensor, nn

_VALIDATION_SHARE = 0.2


class Images(NamedTuple):
    """Scans ``(count, 1, 8, 8)``, float32 from 0 to 1, and digits ``(count,)``, int64 0 to 9."""

    scans: Tensor
    digits: Tensor


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers, about 150,000 parameters."""

    def __init__(self) -> None:
        """Initialise the layers from torch's global random generator."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, 10),
        )

    def forward(self, scans: Tensor) -> Tensor:
        """Return logits of shape ``(batch, 10)`` for ``scans`` of shape ``(batch, 1, 8, 8)``."""
        logits: Tensor = self.classifier(self.features(scans))
        return logits


def load_images(device: torch.device) -> tuple[Images, Images]:
    """Return the training and the validation images on ``device``.

    The split keeps the share of every digit and depends on no seed, so that the accuracies of
    all runs compare.
    """
    scans, digits = load_digits(return_X_y=True)
    parts = train_test_split(
        scans.reshape(-1, 1, 8, 8) / 16.0,
        digits,
        test_size=_VALIDATION_SHARE,
        stratify=digits,
        random_state=0,
    )
    train_scans, val_scans = (torch.from_numpy(part).float().to(device) for part in parts[:2])
    train_digits, val_digits = (torch.from_numpy(part).long().to(device) for part in parts[2:])
    return Images(train_scans, train_digits), Images(val_scans, val_digits)
