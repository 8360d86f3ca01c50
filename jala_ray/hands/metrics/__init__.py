"""Hand-motion metrics (method.md 8): one hand of one clip, a file per metric. A file that is added is a metric that is added."""

from jala_ray.hands.metrics.base import CM, METRICS, N_HAND_JOINTS, WRIST, Metric, frame_errors, hand_metrics, metric
from jala_ray.hands.metrics.mde import mde_cm
from jala_ray.hands.metrics.mpjpe import mpjpe_cm
from jala_ray.hands.metrics.mwte import mwte_cm
from jala_ray.hands.metrics.pa_mpjpe import pa_mpjpe_cm
from jala_ray.hands.similarity import Similarity, procrustes

__all__ = [
    "CM",
    "METRICS",
    "N_HAND_JOINTS",
    "WRIST",
    "Metric",
    "Similarity",
    "frame_errors",
    "hand_metrics",
    "mde_cm",
    "metric",
    "mpjpe_cm",
    "mwte_cm",
    "pa_mpjpe_cm",
    "procrustes",
]
