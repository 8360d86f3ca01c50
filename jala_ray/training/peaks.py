"""What devices can do at most, by their names: FLOPs that are needed, over it, are utilisation (MFU)."""

from __future__ import annotations

import re

import torch

PEAK_TFLOPS = {
    "GH200": 989.0,
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 150.0,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense bf16 TFLOP/s by a part of the device's name, the first that is there."""
FLOAT32_TFLOPS = {"A100": 19.5, "H100": 67.0, "RTX 4090": 82.6}
"""Dense float32 TFLOP/s without TF32, which torch leaves off, of the cards that a dry run tells hours of."""
OTHERS = re.compile(r"\b(MIG|Laptop|Max-Q|RTX [34]090 (Ti|D))\b")
"""Devices that bear one of these names and are another."""


def peak_tflops(device: torch.device, setting: float | None = None) -> float | None:
    """Dense bf16 TFLOP/s of a device: the setting `log.peak_tflops`, or what is known by its name; None for a CPU and the unknown."""
    if setting is not None or device.type != "cuda":
        return setting
    return peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    if OTHERS.search(name):
        return None
    return next((peak for part, peak in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name)), None)
