"""Removes acknowledged messages with which a killed NATS server has come back. Imports its client.

A work queue deletes a message when it is acknowledged. The server writes its deletions and the
state of its consumers to different files. If it is killed, it may come back with the second alone:
with messages that no consumer is given again, and that would stay for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import RetentionPolicy

from taskiq_flow.reconnect import text_of

logger = logging.getLogger("taskiq_flow")

LOOK_EVERY = 30.0
"""Seconds between two looks: a message behind one that is not acknowledged goes with that."""


async def remove_acknowledged(broker: Any) -> None:
    """Remove such messages from a broker's work queue, now and from time to time.

    Ends when it is cancelled, or if the stream keeps messages on purpose.
    """
    may_be_some = True
    while may_be_some:
        try:
            may_be_some = await _look(broker)
        except (NatsError, OSError) as error:
            logger.debug("acknowledged messages were not removed: %s", text_of(error))
        if may_be_some:
            await asyncio.sleep(LOOK_EVERY)


async def _look(broker: Any) -> bool:
    """Remove what there is now, and tell whether there may be some later."""
    consumer = await broker.consumer.consumer_info()
    stream, config = consumer.stream_name, consumer.config
    info = await broker.js.stream_info(stream)
    # With ``max_deliver``, the server leaves messages to the user that were delivered so often.
    if info.config.retention != RetentionPolicy.WORK_QUEUE or (config.max_deliver or 0) > 0:
        return False
    # The consumer has no other messages up to here. A stream that the server has lost begins at 1
    # again, below the floor of a consumer that was not lost.
    floor = consumer.ack_floor.stream_seq
    if info.state.first_seq <= floor <= info.state.last_seq:
        for subject in config.filter_subjects or [config.filter_subject]:
            await broker.js.purge_stream(stream, seq=floor + 1, subject=subject)
    return True
