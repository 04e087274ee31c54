"""Peers by name."""

from __future__ import annotations

import os
from collections.abc import Callable

from fa_harness.project import Project
from fa_harness.speed.cold import Peer
from fa_harness.speed.peers.ik import IkPeer
from fa_harness.speed.peers.torch import TorchPeer

_SPIN_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPINS = 20_000  # about 1 ms

_OPEN: dict[str, Callable[[Project], Peer]] = {IkPeer.name: IkPeer, TorchPeer.name: TorchPeer}
NAMES = tuple(_OPEN)


def open_peer(project: Project, name: str) -> Peer:
    """Return a peer, built if it is missing.

    The threads of its OpenMP wait for the next call for about a millisecond, unless the environment
    says otherwise: long enough from call to call, and the next way has the cores to itself.
    """
    if not any(variable in os.environ for variable in _SPIN_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)  # read when libgomp is loaded
    return _OPEN[name](project)
