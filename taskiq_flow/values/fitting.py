"""Checks values against annotations. A value that fits is passed on; another is converted.

taskiq's own parsing converts whatever pydantic can: ``True`` under ``int`` becomes 1, a datetime
under ``date`` loses its time, an array under ``list[float]`` is rebuilt. Here a value is converted
only if it does not fit.
"""

from __future__ import annotations

import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from inspect import Parameter
from typing import Any, TypeAlias, cast

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from taskiq_flow.errors import AnnotationError
from taskiq_flow.values.annotations import awaited, is_typed_dict, is_unpacked, members, named_type
from taskiq_flow.values.inspection import ONCE_ONLY, type_name

Check: TypeAlias = Callable[[Any], bool]
"""Whether a value fits."""

_ANYTHING = (Any, object, Parameter.empty)

_OF_JSON = (bool, int, float, str, type(None))

_WITH_ITEMS = ("builtins", "collections", "collections.abc")
"""Modules whose generic classes have their items' types as arguments."""


class Fit:
    """One annotation, and how values are made to fit it."""

    __slots__ = ("_adapter", "annotation", "fits")

    def __init__(self, annotation: Any, fits: Check) -> None:
        self.annotation = annotation
        self.fits = fits
        self._adapter: TypeAdapter[Any] | None = None

    @classmethod
    def of(cls, annotation: Any) -> Fit | None:
        """``None`` for an annotation that every value fits, or of which that cannot be told."""
        check = check_of(annotation)
        return None if check is None else cls(annotation, check)

    def convert(self, value: Any) -> Any:
        """The value, or what pydantic makes of it if it does not fit. Raises what pydantic raises.

        Raises ``TypeError`` for a value that does not fit a type that pydantic does not know.
        """
        if self.fits(value):
            return value
        if self._adapter is None:
            try:
                self._adapter = _adapter_of(self.annotation)
            except (PydanticSchemaGenerationError, PydanticUserError):
                raise TypeError(f"it is no {name_of(self.annotation)}") from None
        made = self._adapter.validate_python(value)
        return value if self._meets_constraints(value, made) else made

    def convert_whole(self, value: Any) -> Any:
        """Like ``convert``, and checks all items of collections, also of JSON's own types."""
        value = self.convert(value)
        if not isinstance(value, (list, tuple, set, frozenset, dict)):
            return value
        try:
            adapter = _adapter_of(self.annotation)
        except (PydanticSchemaGenerationError, PydanticUserError):
            return value
        made = adapter.validate_python(value)
        return value if made == value else made

    def convert_strictly(self, value: Any) -> Any:
        """Like ``convert``, and raises if the value contains what does not fit as it is.

        That is for values of tests: items of JSON's own types and entries of typed dictionaries,
        which ``convert`` passes on unseen, are converted by nothing in a run.
        """
        made = self.convert(value)
        check = check_of(self.annotation, in_full=True)
        if check is None or check(made):
            return made
        with contextlib.suppress(PydanticSchemaGenerationError, PydanticUserError):
            _adapter_of(self.annotation).validate_python(made, strict=True)  # names the place
        raise TypeError(f"it is no {name_of(self.annotation)}")

    def _meets_constraints(self, value: Any, made: Any) -> bool:
        """Whether only constraints were to be checked, and the value meets them as it is."""
        if typing.get_origin(self.annotation) is not typing.Annotated:
            return False
        check = check_of(typing.get_args(self.annotation)[0])
        try:
            return (check is None or check(value)) and bool(made == value)
        except Exception:  # arrays, and whatever a value's own code raises
            return False


class Signature:
    """The annotations of a function: what its arguments and its result are held against."""

    def __init__(self, name: str, signature: inspect.Signature, *, returns_items: bool) -> None:
        self._name = name
        self._parameters: dict[str, Fit | None] = {}  # by the names that can be passed
        self._positional: list[tuple[str, Fit | None]] = []
        self._var_args: tuple[str, Fit | None] = ("", None)
        self._var_kwargs: Fit | None = None
        for parameter in signature.parameters.values():
            name, kind, fit = parameter.name, parameter.kind, Fit.of(parameter.annotation)
            if kind is Parameter.VAR_POSITIONAL:
                self._var_args = (name, fit)
            elif kind is Parameter.VAR_KEYWORD:
                self._var_kwargs = fit
            else:
                if kind is not Parameter.KEYWORD_ONLY:
                    self._positional.append((name, fit))
                if kind is not Parameter.POSITIONAL_ONLY:
                    self._parameters[name] = fit
        # What a generator function is annotated with is the generator, not the list of its items.
        returns = awaited(signature.return_annotation)
        self._result = None if returns_items else Fit.of(returns)
        by_place = [fit for _, fit in (*self._positional, self._var_args)]
        self.checks_arguments = any((*by_place, *self._parameters.values(), self._var_kwargs))

    def arguments(
        self, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call, converted where they do not fit.

        Raises ``AnnotationError`` for one that cannot be converted.
        """
        # Most values are of the annotated class itself: that is found out in one frame.
        positional, count, made = self._positional, len(self._positional), args
        for place, value in enumerate(args):
            name, fit = positional[place] if place < count else self._var_args
            if fit is not None and type(value) is not fit.annotation:
                made = list(args) if made is args else made
                made[place] = self._argument(name, fit, value)
        by_name = kwargs
        for name, value in kwargs.items():
            fit = self._parameters.get(name, self._var_kwargs)
            if fit is not None and type(value) is not fit.annotation:
                by_name = dict(kwargs) if by_name is kwargs else by_name
                by_name[name] = self._argument(name, fit, value)
        return made, by_name

    def _argument(self, parameter: str, fit: Fit, value: Any) -> Any:
        try:
            return fit.convert(value)
        except Exception as error:  # whatever pydantic or a class's own code raises
            takes = f"parameter {parameter!r} of {self._name} takes {name_of(fit.annotation)}"
            raise misfit(f"{takes}, and was given", value, error, parameter) from error

    def result(self, value: Any) -> Any:
        """The result of a call, converted if it does not fit.

        Raises ``AnnotationError`` if it cannot be converted.
        """
        fit = self._result
        if fit is None or type(value) is fit.annotation:
            return value
        try:
            return fit.convert(value)
        except Exception as error:  # whatever pydantic or a class's own code raises
            returns = f"{self._name} is annotated to return {name_of(fit.annotation)}"
            raise misfit(f"{returns}, and returned", value, error) from error


def misfit(
    what: str, value: Any, error: Exception, parameter: str | None = None
) -> AnnotationError:
    """The error of a value that cannot be converted. ``what``: the annotation, and who has it."""
    text = f"{what} {_shown(value)}: {first_line(error)}"
    return AnnotationError(text, key=parameter, value_type=type(value))


def _adapter_of(annotation: Any) -> TypeAdapter[Any]:
    """Converts into an annotation. Classes that pydantic does not know are checked by instance."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # models, dataclasses and typed dictionaries have their own
        return TypeAdapter(annotation)


def check_of(  # noqa: PLR0911 - one line per form
    annotation: Any, *, in_full: bool = False
) -> Check | None:
    """How to tell whether a value fits an annotation. ``None``: every value does.

    ``in_full``: whether to look at items of JSON's own types and into typed dictionaries.
    Constraints, for which a value goes to pydantic, are left out then.
    """
    annotation = named_type(annotation)
    if annotation in _ANYTHING if _is_hashable(annotation) else False:
        return None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        constraints = [extra for extra in annotation.__metadata__ if _is_constraint(extra)]
        return _never if constraints and not in_full else check_of(args[0], in_full=in_full)
    if (parts := members(annotation)) is not None:
        checks = [check_of(part, in_full=in_full) for part in parts]
        known = [check for check in checks if check is not None]
        return None if len(known) < len(checks) else lambda value: any(c(value) for c in known)
    if origin is typing.Literal:
        return lambda value: any(value == arg and type(value) is type(arg) for arg in args)
    if annotation is typing.Tuple:  # noqa: UP006 - not the empty tuple, which has no arguments too
        return _check_of_class(tuple)
    if isinstance(origin, type):
        return _check_of_generic(origin, args, in_full=in_full)
    if in_full and is_typed_dict(annotation):
        return partial(_fits_typed_dict, annotation)
    if isinstance(annotation, type):
        return _check_of_class(annotation)
    return None


def _check_of_class(kind: type) -> Check | None:  # noqa: PLR0911 - one for each form
    if kind is object or issubclass(kind, ONCE_ONLY):
        return None
    if is_typed_dict(kind):
        return lambda value: isinstance(value, dict)
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return None
    if kind is float:
        return partial(_is_number, kinds=(float, int), of_numpy="floating")
    if kind is complex:
        return partial(_is_number, kinds=(complex, float, int), of_numpy="complexfloating")
    if kind is int:
        return partial(_is_number, kinds=(int,), of_numpy="integer")
    return lambda value: isinstance(value, kind)


def _is_number(value: Any, kinds: tuple[type, ...], of_numpy: str) -> bool:
    if isinstance(value, kinds):
        return True
    kind = type(value)
    return (
        kind.__module__ == "numpy"
        and kind.__name__ != "timedelta64"  # which numpy derives from its integers
        and any(base.__name__ in {of_numpy, "integer"} for base in kind.__mro__)
    )


def _fits_typed_dict(kind: Any, value: Any) -> bool:
    """Whether a value has the entries of a typed dictionary, which may be one of its own kind."""
    hints = typing.get_type_hints(kind, include_extras=True)
    optional = {key for key, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired}
    # Where annotations are texts, the class does not know that an entry is not required.
    if not (isinstance(value, dict) and kind.__required_keys__ - optional <= value.keys()):
        return False
    checks = {key: check_of(hints[key], in_full=True) for key in hints.keys() & value.keys()}
    return all(check is None or check(value[key]) for key, check in checks.items())


def _check_of_generic(origin: type, args: tuple[Any, ...], *, in_full: bool) -> Check | None:
    if issubclass(origin, ONCE_ONLY):
        return None
    if origin.__module__ not in _WITH_ITEMS:  # what its arguments mean is its own affair
        return _check_of_class(origin)
    if issubclass(origin, tuple):
        if args[1:] != (...,):
            return _of_places(origin, args, in_full=in_full)
        args = args[:1]
    if issubclass(origin, Mapping) and len(args) == 2:  # noqa: PLR2004 - keys and values
        keys, values = (_check_of_item(arg, in_full=in_full) for arg in args)
        return _check_of_mapping(origin, keys, values)
    if issubclass(origin, Iterable) and len(args) == 1:
        return _check_of_items(origin, _check_of_item(args[0], in_full=in_full))
    return _check_of_class(origin)


def _check_of_mapping(
    origin: type[Mapping[Any, Any]], keys: Check | None, values: Check | None
) -> Check:
    def fits_mapping(value: Any) -> bool:
        return (
            isinstance(value, origin)
            and (keys is None or all(map(keys, value)))
            and (values is None or all(map(values, value.values())))
        )

    return fits_mapping


def _check_of_items(origin: type, check: Check | None) -> Check:
    def fits_items(value: Any) -> bool:
        if not isinstance(value, origin):
            return False
        return check is None or not isinstance(value, Collection) or all(map(check, value))

    return fits_items


def _of_places(origin: type, args: tuple[Any, ...], *, in_full: bool) -> Check:
    if any(map(is_unpacked, args)):
        return lambda value: isinstance(value, origin)
    checks = [check_of(arg, in_full=in_full) for arg in args]

    def fits_places(value: Any) -> bool:
        return (
            isinstance(value, origin)
            and len(cast("tuple[Any, ...]", value)) == len(checks)
            and all(
                check is None or check(part)
                for check, part in zip(checks, cast("tuple[Any, ...]", value), strict=True)
            )
        )

    return fits_places


def _check_of_item(annotation: Any, *, in_full: bool) -> Check | None:
    """How to check the items of a collection. Unless in full, those of JSON's types are not."""
    if _is_of_json(annotation) and not in_full:
        return None
    return check_of(annotation, in_full=in_full)


def _is_of_json(annotation: Any) -> bool:
    if annotation in _OF_JSON if _is_hashable(annotation) else False:
        return True
    args = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (list, dict, tuple, typing.Union, types.UnionType):
        return all(arg is ... or _is_of_json(arg) for arg in args)
    return annotation in (list, dict) if _is_hashable(annotation) else False


def _is_constraint(extra: Any) -> bool:
    module = type(extra).__module__.partition(".")[0]
    if hasattr(extra, "__get_pydantic_core_schema__"):
        return True
    return module in {"annotated_types", "pydantic"}


def _never(_: Any) -> bool:
    return False


def _is_hashable(annotation: Any) -> bool:
    try:
        hash(annotation)
    except TypeError:
        return False
    return True


def name_of(annotation: Any) -> str:
    """An annotation as a user writes it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")


_LONGEST = 80


def _shown(value: Any) -> str:
    """A value in an error: its type, and its text if that is short."""
    if isinstance(value, (str, bytes, int, float)) and len(text := repr(value)) <= _LONGEST:
        return f"{text} ({type_name(value)})"
    return f"a {type_name(value)}"


def first_line(error: Exception) -> str:
    """What is wrong, without pydantic's headline and links."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        first = errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error).partition("\n")[0]
