"""How patient a transfer is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransferOptions:
    """Times in seconds.

    Args:
        connect_timeout: until the server has accepted the connection.
        read_timeout: between two pieces of data.
        delays: before each new attempt after a failure that may pass; as many attempts as there are delays. Every
            attempt that got further than all before it starts the count again.
        max_delay: longest pause that a server may ask for.
        chunk_bytes: data written at once; what an interruption may lose.
        lock_patience: how long another process may hold the lock without its file growing.
        lock_poll: between two looks at that file.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    delays: tuple[float, ...] = (1.0, 2.0, 4.0)
    max_delay: float = 60.0
    chunk_bytes: int = 1 << 17
    lock_patience: float = 600.0
    lock_poll: float = 0.5
