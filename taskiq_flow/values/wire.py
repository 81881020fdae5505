"""Values in messages and in results: encoded where JSON does not carry them, and marked as such.

Only what is marked is decoded. A call that is encoded has one keyword argument, ``VALUES``, which
the signature of no task has, so that taskiq's own parsing leaves it alone. A result that is encoded
has a label of that name; the error of one stands there beside the form that taskiq gives it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from taskiq import TaskiqResult
from taskiq.serializers import JSONSerializer, PickleSerializer

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.plain import MAX_DEPTH, is_plain
from taskiq_flow.values.size import is_large
from taskiq_flow.values.store import StoredObject, ValueStore
from taskiq_flow.values.worker_traceback import add_note, worker_traceback

VALUES = "taskiq_flow_values"
"""The keyword argument of an encoded call, and the label of an encoded result."""

_VALUE, _REFERENCES, _SEAL, _OBJECT = "value", "references", "seal", "object"
_ERROR, _TRACEBACK = "error", "traceback"

_SEAL_BYTES = 16

_COMPACT = json.JSONEncoder(separators=(",", ":"))

Place: TypeAlias = tuple[int | str, ...]
"""Where a value is in a call: the number or the name of an argument, and indices in its lists."""


class Wire:
    """How the processes of one broker encode values for each other.

    ``classes``: those that may be restored. ``secret``: seals what is encoded, so that nothing else
    is decoded here (keyed BLAKE2; RFC 7693). ``store``: where large values are stored.
    """

    def __init__(
        self,
        codec: ValueCodec,
        classes: Classes,
        secret: bytes | None = None,
        store: ValueStore | None = None,
    ) -> None:
        self.codec = codec
        self.store = store
        self._classes = classes
        self._secret = secret

    # Calls

    def encode_call(
        self,
        task_id: str,
        args: list[Any],
        kwargs: dict[str, Any],
        references: Sequence[tuple[Place, Mapping[str, Any]]],
    ) -> dict[str, Any]:
        """The keyword arguments of an encoded call.

        ``references``: places, and what is to be read for them; what stands there does not count.
        Raises ``SerializationError``.
        """
        payload: dict[str, Any] = {_VALUE: self.codec.encode([args, kwargs], strict=True)}
        if references:
            payload[_REFERENCES] = [[[*place], dict(reference)] for place, reference in references]
        return {VALUES: self._sealed(task_id, payload)}

    def is_encoded(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether these are the keyword arguments of an encoded call."""
        return bool(kwargs.get(VALUES))

    def references_of(self, kwargs: Mapping[str, Any]) -> list[tuple[Place, dict[str, Any]]]:
        """The references in an encoded call, with their places.

        Earlier versions write the place of an argument by itself.
        """
        return [
            (tuple(place) if isinstance(place, list) else (place,), reference)
            for place, reference in kwargs[VALUES].get(_REFERENCES, ())
        ]

    def decode_call(
        self, task_id: str, kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of an encoded call. Raises ``SerializationError``."""
        payload = kwargs[VALUES]
        self._check(task_id, payload, _VALUE)
        match self.codec.decode(payload[_VALUE], self._classes):
            case [list(own_args), dict(own_kwargs)]:
                return own_args, own_kwargs
        raise SerializationError("the message of this task does not hold the arguments of a call")

    # Results

    def encode_result(
        self, task_id: str, result: TaskiqResult[Any], *, strict: bool
    ) -> TaskiqResult[Any]:
        """The result as it is stored: itself if its value needs no encoding.

        ``strict``: whether the serializer may refuse what JSON carries. Raises
        ``SerializationError``.
        """
        if result.error is not None:
            return self._with_error(task_id, result, result.error)
        value = result.return_value
        if result.is_err or (not strict and is_plain(value)):
            return result
        encoded = self.codec.encode(value, strict=True)
        if encoded is value:
            return result
        payload = self._sealed(task_id, {_VALUE: encoded})
        return result.model_copy(update={"return_value": payload, "labels": {VALUES: "1"}})

    def decode_result(self, task_id: str, result: TaskiqResult[Any]) -> TaskiqResult[Any]:
        """An encoded result with its own value. Raises ``SerializationError``."""
        payload = result.return_value
        self._check(task_id, payload, _VALUE)
        value = self.codec.decode(payload[_VALUE], self._classes)
        return result.model_copy(update={"return_value": value, "labels": {}})

    def _with_error(
        self, task_id: str, result: TaskiqResult[Any], error: BaseException
    ) -> TaskiqResult[Any]:
        """A failed result that has its error as the codec encodes it, too, and its traceback.

        taskiq calls the class with the arguments, which fails for some, and leaves out attributes.
        It alone carries errors that are large or whose class or arguments the codec refuses.
        """
        text = worker_traceback(error)
        beside = {} if text is None else {_TRACEBACK: text}
        try:
            form = None if _is_large_error(error) else self.codec.encode_failure(error)
            payload = self._sealed(task_id, {_ERROR: form, **beside})
        except Exception:  # whatever the error's attributes raise, too
            form, payload = None, self._sealed(task_id, {_ERROR: None, **beside})
        if form is None and text is None:
            return result
        return result.model_copy(update={"return_value": payload, "labels": {VALUES: "1"}})

    def decode_error(self, task_id: str, result: TaskiqResult[Any]) -> TaskiqResult[Any]:
        """A failed result with the error as it was raised, if it can be restored here.

        The traceback on its worker becomes a note on it.
        """
        if VALUES not in (result.labels or {}):
            return result
        error, payload, restored = result.error, result.return_value, None
        try:
            self._check(task_id, payload, _ERROR)
        except Exception:  # as of values that another secret has sealed
            payload = {}
        with contextlib.suppress(Exception):  # as of a class that is not imported here
            restored = self.codec.decode(payload.get(_ERROR), self._classes)
        if isinstance(restored, BaseException):
            context = None if error is None else error.__context__
            BaseException.__setattr__(restored, "__context__", context)  # it may allow no changes
            error = restored
        if error is not None and isinstance(text := payload.get(_TRACEBACK), str):
            add_note(error, text)
        return result.model_copy(update={"return_value": None, "labels": {}, "error": error})

    def refer_to(
        self, task_id: str, result: TaskiqResult[Any], stored: StoredObject
    ) -> TaskiqResult[Any]:
        """The result as it is stored, with an object of the store in place of its value."""
        payload = self._sealed(task_id, {_OBJECT: stored.content()})
        return result.model_copy(update={"return_value": payload, "labels": {VALUES: "1"}})

    async def read_object(self, task_id: str, result: TaskiqResult[Any]) -> TaskiqResult[Any]:
        """A result whose value is an object of the store, with the value.

        Raises ``SerializationError`` if it is damaged or sealed by somebody else, and
        ``ResultUnavailableError`` if the store does not have it.
        """
        what = f"the value of task {task_id!r}"
        if self.store is None:
            raise SerializationError(
                f"{what} is in a store, and this process has none; give the FlowMiddleware of "
                "engines and workers the same store="
            )
        self._check(task_id, result.return_value, _OBJECT)
        value = await self.store.get(StoredObject.of(result.return_value[_OBJECT]), what)
        return result.model_copy(update={"return_value": value, "labels": {}})

    # Items of generators

    def encode_item(self, value: Any) -> bytes:
        """An item as JSON. Raises ``SerializationError``."""
        return _COMPACT.encode(self.codec.encode(value)).encode()

    def seal_of_items(self, task_id: str, first: int, content: bytes) -> str:
        """The seal of successive items, as a JSON list. ``first``: the index of the first one."""
        if self._secret is None:
            return ""
        return _keyed(self._secret, f"items {first} {task_id} ".encode() + content)

    def decode_items(
        self, task_id: str, first: int, content: bytes, seal: str, newest: int
    ) -> list[Any]:
        """The last ``newest`` of the items of a JSON list. Raises ``SerializationError``."""
        expected = self.seal_of_items(task_id, first, content)
        if self._secret is not None and not hmac.compare_digest(seal.encode(), expected.encode()):
            raise _not_sealed(task_id)
        try:
            trees = json.loads(content)
        except (ValueError, RecursionError):  # no JSON, or nested too deeply
            trees = None
        if not isinstance(trees, list) or len(trees) < newest:
            raise SerializationError(f"the items of task {task_id!r} are damaged")
        return [self.codec.decode(tree, self._classes) for tree in trees[-newest:]]

    # Seals

    def _sealed(self, task_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        if self._secret is not None:
            payload[_SEAL] = self._seal(self._secret, task_id, payload)
        return payload

    def _check(self, task_id: str, payload: Any, key: str) -> None:
        if not isinstance(payload, dict) or key not in payload:
            raise SerializationError(f"the encoded values of task {task_id!r} are damaged")
        if self._secret is None:
            return
        seal = payload.get(_SEAL)
        expected = self._seal(self._secret, task_id, payload)
        if not isinstance(seal, str) or not hmac.compare_digest(seal.encode(), expected.encode()):
            raise _not_sealed(task_id)

    def _seal(self, secret: bytes, task_id: str, payload: Mapping[str, Any]) -> str:
        content = {key: part for key, part in payload.items() if key != _SEAL}
        text = json.dumps([task_id, content], sort_keys=True, separators=(",", ":"))
        return _keyed(secret, text.encode())


def _keyed(secret: bytes, content: bytes) -> str:
    key = hashlib.blake2b(secret, digest_size=32).digest()
    return hashlib.blake2b(content, key=key, digest_size=_SEAL_BYTES).hexdigest()


def _not_sealed(task_id: str) -> SerializationError:
    return SerializationError(
        f"the values of task {task_id!r} are not sealed with this process's secret; give the "
        "FlowMiddleware of engines and workers the same secret="
    )


def _is_large_error(error: BaseException) -> bool:
    parts: list[Any] = []
    pending = [error]
    while pending and len(parts) <= 2 * MAX_DEPTH:
        each = pending.pop()
        parts += [each.args, vars(each)]
        if each.__cause__ is not None:
            pending.append(each.__cause__)
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return bool(pending) or is_large(parts)


def is_encoded_result(result: TaskiqResult[Any]) -> bool:
    """Whether a worker has encoded the value of a result."""
    return not result.is_err and VALUES in (result.labels or {})


def stored_size(result: TaskiqResult[Any]) -> int | None:
    """The bytes of the object that a result refers to. ``None`` if it has its value itself."""
    payload = result.return_value
    if is_encoded_result(result) and isinstance(payload, dict) and _OBJECT in payload:
        try:
            return StoredObject.of(payload[_OBJECT]).size
        except SerializationError:  # whoever reads the object says so
            return 0
    return None


def is_strict(backend: object) -> bool:
    """Whether the serializer of a result backend may refuse what JSON carries."""
    serializer = getattr(backend, "serializer", None)
    return not isinstance(serializer, (JSONSerializer, PickleSerializer, type(None)))
