"""What ``celery worker`` imports."""

from __future__ import annotations

from benchmarks.distributed.celery_peer import Peer
from benchmarks.distributed.streams import address

app = Peer(*address()).app
