"""Where a server listens, and for whom."""

from __future__ import annotations

import hmac
import ipaddress
import logging
from dataclasses import dataclass, field
from pathlib import Path

from jala_ray.serving.codec import MAX_BYTES
from jala_ray.types import ConfigError

LOOPBACK = "127.0.0.1"
DRAIN_S = 30.0
"""For which a server that is told to stop goes on with what it has begun; orchestrators kill after 30 s as a rule."""
LOG = logging.getLogger("jala_ray.serving")


@dataclass(frozen=True)
class Listen:
    """Raises `ConfigError` for an address that others reach, without a token."""

    port: int
    """0: any that is free."""
    host: str = LOOPBACK
    token: str | None = field(default=None, repr=False)
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if not self.local and self.token is None:
            remedy = f"Pass --token-file FILE; or listen on {LOOPBACK}, where only this machine reaches it."
            raise ConfigError("host", self.host, "a token, as others reach this address", remedy)

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def admits(self, given: object) -> bool:
        """Whether this token is the one; in a time that tells nothing of it."""
        if self.token is None:
            return True
        return isinstance(given, str) and hmac.compare_digest(given.encode(), self.token.encode())


def read_token(path: str) -> str:
    """The first line of a file. Raises `ConfigError` for none, or one that is easily guessed."""
    try:
        lines = Path(path).read_text().strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("token-file", path, "a file that can be read", str(error)) from None
    if len(lines) != 1 or len(lines[0]) < 16 or not lines[0].isascii():
        remedy = "For example: openssl rand -hex 32 > token"
        raise ConfigError("token-file", path, "one line of at least 16 ASCII characters", remedy)
    return lines[0]
