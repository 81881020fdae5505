"""What every cache store keeps to, whatever it is made of."""

from __future__ import annotations

from taskiq_flow.cache.store import CacheStore


async def check_values(store: CacheStore) -> None:
    """One value for each key, until it is replaced."""
    assert await store.get("a") is None
    await store.put("a", b"1", None)
    await store.put("b", b"2", 60.0)
    await store.put("a", b"3", None)
    assert [await store.get(key) for key in ("a", "b", "c")] == [b"3", b"2", None]


async def check_expiry(store: CacheStore) -> None:
    """A value whose time is over is not given any more, and may be kept anew."""
    await store.put("a", b"1", 0.001)
    await store.put("b", b"2", 60.0)
    while await store.get("a") is not None:
        pass
    assert await store.get("b") == b"2"
    await store.put("a", b"3", None)
    assert await store.get("a") == b"3"


async def check_claims(store: CacheStore) -> None:
    """One owner for each key, until it gives the claim back or the claim is over."""
    assert await store.claim("a", "me", 60.0)
    assert await store.claim("a", "me", 60.0)
    assert not await store.claim("a", "other", 60.0)
    await store.release("a", "other")
    assert not await store.claim("a", "other", 60.0)
    assert await store.claim("b", "other", 60.0)
    await store.release("a", "me")
    assert await store.claim("a", "other", 0.001)
    while not await store.claim("a", "me", 60.0):
        pass


CHECKS = (check_values, check_expiry, check_claims)
