"""Robots: episodes with states and actions, in real time."""

from jala_ray.domains.base import DOMAIN_KINDS, DomainKind

DOMAIN_KINDS.register("robot", place=3)(DomainKind("Robot"))
