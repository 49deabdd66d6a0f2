"""Frozen values, such as plans: fields by annotation, equality, keyword construction.

What ``dataclass(frozen=True)`` does, in a tenth of the time: :mod:`dataclasses`
imports :mod:`inspect` and compiles methods for every class, and the verb that
makes a sandbox, and its proxy before QEMU starts, would both wait for that.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not imported: it is slow
if TYPE_CHECKING:
    from typing import Any, ClassVar, NoReturn, TypeVar, dataclass_transform

    T = TypeVar("T", bound="Record")
else:
    def dataclass_transform(**_how: object) -> object:
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Record:
    """Base of a frozen value.

    A subclass's annotations are its fields, in order; what the class assigns
    to one is its default (a dict is copied for every value).

    :raise TypeError: a field is missing or not known.
    """

    FIELDS: ClassVar[dict[str, str]] = {}  #: name -> annotation

    def __init_subclass__(cls) -> None:
        cls.FIELDS = {**cls.FIELDS, **{n: a for n, a in cls.__annotations__.items() if not a.startswith("ClassVar")}}

    def __init__(self, *args: Any, **values: Any) -> None:
        cls = type(self)
        own = self.__dict__
        for number, name in enumerate(cls.FIELDS):
            if number < len(args):
                own[name] = args[number]
            elif name in values:
                own[name] = values.pop(name)
            elif hasattr(cls, name):
                default = getattr(cls, name)
                own[name] = dict(default) if type(default) is dict else default
            else:
                raise TypeError(f"{cls.__name__} lacks {name}")
        if values or len(args) > len(cls.FIELDS):
            raise TypeError(f"{cls.__name__} has no {', '.join(values) or 'such number of fields'}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"


def replace(record: T, **changes: Any) -> T:
    """A copy with other values of some fields."""
    return type(record)(**{**record.__dict__, **changes})
