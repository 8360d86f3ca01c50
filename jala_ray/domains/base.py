"""What a domain is: an open word of the manifest for where clips come from, with its rules. Found, not listed."""

from __future__ import annotations

from dataclasses import dataclass

from jala_ray.registry import Registry


@dataclass(frozen=True)
class DomainKind:
    """Rules of one domain. A file `jala_ray/domains/NAME.py`, or an entry point of `jala_ray.domains`, registers one under its name."""

    title: str
    """On pages."""
    time_scale: float = 1.0
    """Source seconds per second of model time that its clips should have."""
    thinned: bool = False
    """`data.wild_fraction` takes a share of its clips."""


DOMAIN_KINDS: Registry[DomainKind] = Registry("domain", "jala_ray.domains", "jala_ray.domains")
"""By name."""
