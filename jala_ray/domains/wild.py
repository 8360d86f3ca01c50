"""Video of everyday life, slowed (method.md 1)."""

from jala_ray.domains.base import DOMAIN_KINDS, DomainKind
from jala_ray.types import WILD_TIME_SCALE

DOMAIN_KINDS.register("wild", place=2)(DomainKind("Wild", WILD_TIME_SCALE, thinned=True))
