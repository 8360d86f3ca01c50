"""Recordings with measured hands (method.md 1)."""

from jala_ray.domains.base import DOMAIN_KINDS, DomainKind

DOMAIN_KINDS.register("lab", place=1)(DomainKind("Lab"))
