"""The profile of all property tests, and silence about tasks that are meant to fail."""

from __future__ import annotations

import logging

from hypothesis import settings

settings.register_profile(
    "properties",
    max_examples=500,
    deadline=None,
    derandomize=False,  # chance finds what nobody thought of; the blob brings a failure back
    print_blob=True,
)
settings.load_profile("properties")

logging.getLogger("taskiq").setLevel(logging.CRITICAL)
