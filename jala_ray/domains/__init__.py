"""Domains of clips, a file each."""

from jala_ray.domains.base import DOMAIN_KINDS, DomainKind

__all__ = ["DOMAIN_KINDS", "DomainKind"]
