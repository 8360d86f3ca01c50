"""Serve a policy to robots and simulators, by openpi's or GR00T's protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError

MIB = 1 << 20


@dataclass(frozen=True)
class Arguments:
    """Serve a policy until SIGTERM; what is in work then is still answered.

    Before the first client is let in, rows of the training set go through the policy's normalisation and back, and must be what they
    were. Without --token-file only this machine is listened to.
    """

    policy: Positional[Annotated[str, arg(metavar="POLICY")]]
    """A checkpoint's folder, local or s3://; or module:function, a function that returns an object with `act` and `metadata`."""
    protocol: Literal["openpi", "groot"] = "openpi"
    """openpi's websocket, or GR00T's ZMQ."""
    host: str = "127.0.0.1"
    """Address that is listened on; one that other machines reach needs --token-file."""
    port: int | None = None
    """None: 8000 for openpi, 5555 for groot; 0: any that is free."""
    token_file: str | None = None
    """A file of one line, which clients must send: openpi's as api_key, GR00T's as api_token."""
    convention: str | None = None
    """What clients' keys mean: libero, libero_raw, libero_rlds, droid, aloha, lerobot, groot, or a JSON file; None: groot for GR00T's
    protocol, else libero."""
    embodiment: str = ""
    """Whose statistics a checkpoint's policy takes, where it has learned from several robots."""
    max_mib: int = 64
    """Of one message of a client, MiB; larger ones are refused."""
    modality_config: Literal["n1.5", "newer"] = "n1.5"
    """Form of GR00T's get_modality_config: the one question that both of its generations ask in the same words."""
    metrics_port: int | None = None
    """Port of Prometheus' /metrics beside groot, on this machine alone; openpi has it at its own port."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    if arguments.max_mib < 1:
        raise ConfigError("max-mib", arguments.max_mib, "1 or more")
    if arguments.metrics_port is not None and arguments.protocol == "openpi":
        raise ConfigError("metrics-port", arguments.metrics_port, "none for openpi", "Read /metrics at its own port.")
    from jala_ray.serving.conventions import convention
    from jala_ray.serving.listening import Listen, read_token

    groot = arguments.protocol == "groot"
    known = convention(arguments.convention or ("groot" if groot else "libero"))
    token = None if arguments.token_file is None else read_token(arguments.token_file)
    port = (5555 if groot else 8000) if arguments.port is None else arguments.port
    listen = Listen(port, arguments.host, token, arguments.max_mib * MIB)
    try:
        from jala_ray.serving.engine import Engine
        from jala_ray.serving.groot import GrootServer
        from jala_ray.serving.openpi import OpenpiServer
        from jala_ray.serving.running import serve_forever
    except ModuleNotFoundError as error:
        remedy = "Install the extra: pip install 'jala-ray[serve]'."
        raise ConfigError("protocol", arguments.protocol, f"the package {error.name}", remedy) from None
    from jala_ray.serving.contract import proven
    from jala_ray.serving.loading import load

    policy = load(arguments.policy, embodiment=arguments.embodiment, options=arguments.storage)
    shown = proven(policy)
    engine = Engine(policy, known)
    server = GrootServer(engine, listen, arguments.modality_config) if groot else OpenpiServer(engine, listen)
    if arguments.metrics_port is not None:
        from prometheus_client import start_http_server

        start_http_server(arguments.metrics_port, "127.0.0.1", engine.metrics.registry)
    replayed = "training rows come back as they were" if shown else "it offers no training row, so nothing is proven"
    print(f"normalisation: {replayed}", flush=True)
    scheme = "tcp" if groot else "ws"
    serve_forever(server, lambda port: print(f"serving at {scheme}://{listen.host}:{port}", flush=True))
    return 0
