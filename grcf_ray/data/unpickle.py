"""Read untrusted pickles without running their code: NumPy arrays and builtin containers only.

A pickle is a program. This reader admits only the functions that build arrays and containers, each replaced by a
function of this module that checks its arguments. It refuses all others by name. NumPy's own functions are replaced
too, since its dtype trusts the file about the memory of objects. The size of the file bounds the memory of the result:
neither arrays without bytes nor parts that the file names many times can exceed a multiple of it.
"""

from __future__ import annotations

import itertools
import math
import mmap
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from grcf_ray.console import Progress, size
from grcf_ray.errors import DataError

# Most bytes that calls may make from one byte of the file. One byte can name an object, whose pointer in an array takes
# eight; texts of Python 2 are copied as well.
_MADE = 16
# Parts that a file names again count each time, since tables copy them; real files share words and labels.
_REPEATED = 100
_SMALL = 1 << 24
"""Bytes of memory that a file of any size may take."""
_MOST_DIMENSIONS = 32
_LARGEST_KEY = 1 << 60
"""Larger integers can share one hash, which makes a dict of them extremely slow."""


class RefusedError(DataError):
    """A pickle asks for something other than arrays and containers."""


def read_pickle(path: Path) -> Any:
    """Read a pickle of protocols 0 to 5; a text of Python 2 has one character for each of its bytes.

    Arrays are `numpy.ndarray`; NumPy scalars become Python's. RefusedError names anything but data; DataError for a
    damaged pickle.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise DataError(f"{path}: the file is empty")
        # Mapped, so that a read of a damaged length ends with the file.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                value = _Reader(content, path.name).load()
                _check_weight(value, _SMALL + _REPEATED * len(content))
                return value
            except RefusedError as error:
                raise RefusedError(f"{path}: refused, no code of it was run: {error}") from error
            # Damaged bytes can cause any error, such as a TypeError for a key that is a list.
            except Exception as error:
                if content.tell() == len(content):
                    raise DataError(f"{path}: the pickle is cut short; download it again") from error
                raise DataError(f"{path}: not a readable pickle ({str(error) or type(error).__name__})") from error


def repaired_text(text: str | bytes) -> str:
    """Decode bytes, and texts that Python 2 wrote as bytes: as UTF-8, or else as Latin-1."""
    try:
        return (text if isinstance(text, bytes) else text.encode("latin-1")).decode("utf-8")
    except UnicodeEncodeError:
        assert isinstance(text, str)
        return text
    except UnicodeDecodeError:
        return text.decode("latin-1") if isinstance(text, bytes) else text


class _Type:
    """A NumPy dtype of numbers, texts or objects, as a file describes it."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([?bBhHiIlLqQefdg]|[biufSUO]\d{0,9})", code):
            raise RefusedError(f"arrays of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields, *_ = state
        if subdtype is not None or names is not None or fields is not None:
            raise RefusedError("arrays with fields")
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array that checks every claim of the file."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        shape, dtype = _shape(shape), _dtype(kind)
        count = math.prod(shape)
        # An array without bytes in the file could have any size.
        if (not dtype.itemsize and count > 1) or (not count and max((*shape, dtype.itemsize)) > _SMALL >> 8):
            raise ValueError(f"an array of type {dtype} and shape {shape} without a byte")
        if dtype.hasobject:
            if not isinstance(content, list) or len(content) != count:
                raise ValueError(f"an array of shape {shape} without its {count} objects")
        else:
            content = _bytes(content)
            if len(content) != count * dtype.itemsize:
                raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
        # NumPy's stub asks for a numpy.bool, which NumPy refuses.
        super().__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]


class _Admitted:
    """A function that a pickle may call; not a type, and without a state that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("the state of a function")


_NDARRAY = "numpy.ndarray"
"""Stands for the type, which pickles only use as an argument."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise RefusedError(f"arrays that are {kind!r}")
    return _Array((0,), np.uint8)


def _frombuffer(content: Any, kind: Any, shape: Any, order: Any = "C", axis_order: Any = None) -> _Array:
    if axis_order is not None:
        raise RefusedError("arrays of axes in another order")
    array = _Array((0,), np.uint8)
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _scalar(kind: Any, content: Any = b"") -> Any:
    dtype = _dtype(kind)
    content = _bytes(content)
    if dtype.hasobject or len(content) != dtype.itemsize:
        raise ValueError(f"a number of type {dtype} in {len(content)} bytes")
    return np.frombuffer(content, dtype, 1)[0].item() if content else dtype.type().item()


def _encode(text: Any, encoding: Any = "latin-1", *_: Any) -> bytes:
    # Python 3 writes bytes for Python 2 in this way. Other encodings can expand a few bytes to many.
    if encoding not in ("latin-1", "latin1", "iso-8859-1"):
        raise RefusedError(f"the encoding {encoding!r}")
    if not isinstance(text, str):
        raise TypeError(text)
    return text.encode("latin-1")


def _no_bytes(*content: Any) -> bytes:
    # bytes(n) would allocate n bytes.
    if content:
        raise RefusedError("a call of bytes with arguments")
    return b""


def _bytearray(content: Any = b"", encoding: Any = "latin-1") -> bytearray:
    if isinstance(content, list):
        return bytearray(content)
    if not isinstance(content, (str, bytes, bytearray)):
        raise RefusedError("a call of bytearray with a number")
    return bytearray(_bytes(content))


def _items(content: Any = ()) -> Any:
    if not isinstance(content, (list, tuple, set, frozenset, dict)):
        raise TypeError(content)
    return content


def _keys(content: Any) -> Any:
    """Return the members of a set or the keys of a dict; RefusedError for those that hash slowly."""
    for key in content:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, (str, bytes, int, float, complex, type(None))) for part in parts):
            raise RefusedError(f"a key that is a {type(key).__name__} of containers")
        if any(isinstance(part, int) and abs(part) >= _LARGEST_KEY for part in parts):
            raise RefusedError("a key that is a number of more than 60 bits")
    return content


def _pairs(*content: Any) -> dict[Any, Any]:
    # An OrderedDict comes with its pairs, a defaultdict with a factory, which is never called.
    pairs = [(key, value) for key, value in content[0]] if content and isinstance(content[0], list) else []
    _keys(key for key, _ in pairs)
    return dict(pairs)


_CONTAINERS: dict[str, Callable[..., Any]] = {
    "set": lambda *content: set(_keys(_items(*content))),
    "frozenset": lambda *content: frozenset(_keys(_items(*content))),
    "list": lambda *content: list(_items(*content)),
    "tuple": lambda *content: tuple(_items(*content)),
    "dict": _pairs,
    "bytes": _no_bytes,
    "bytearray": _bytearray,
    "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
}
_NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
_ADMITTED: dict[str, Any] = {
    **{f"{core}.{name}": _Admitted(call) for core in ("numpy.core", "numpy._core") for name, call in _NUMPY.items()},
    **{f"{core}.{name}": _Admitted(call) for core in ("builtins", "__builtin__") for name, call in _CONTAINERS.items()},
    "numpy.dtype": _Admitted(_Type),
    "numpy.ndarray": _NDARRAY,
    "collections.OrderedDict": _Admitted(_pairs),
    "collections.defaultdict": _Admitted(_pairs),
    "_codecs.encode": _Admitted(_encode),
}


_TENSORS = "it holds PyTorch tensors: load it with PyTorch, convert them with .numpy(), and pickle the arrays"
_CONTAINER_TYPES = (list, tuple, set, frozenset, dict)
_NUMBERS = {int, float, bool, complex, type(None)}
_POINTER = 8


def _counting(opcode: bytes) -> Callable[[_Reader], None]:
    return lambda reader: reader._counted(opcode)


class _Reader(pickle._Unpickler):
    """Python's unpickler in Python, whose memory grows with the bytes read, not with the sizes that a file names."""

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]
    """These four are set by `load`."""

    def __init__(self, content: mmap.mmap, name: str) -> None:
        super().__init__(content, encoding="latin-1")
        self._content, self._progress = content, Progress(f"reading {name}", len(content), show=size)
        self._left = _SMALL + _MADE * len(content)

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a function; RefusedError for any other name."""
        full = f"{module}.{name}"
        if full not in _ADMITTED:
            remedy = f"; {_TENSORS}" if module.partition(".")[0] == "torch" else ""
            raise RefusedError(f"it asks for {full}, which is neither an array nor a container{remedy}")
        return _ADMITTED[full]

    def load_bytearray8(self) -> None:
        """Read at most the bytes of the file: Python's own method first allocates the size that the file names."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def load_setitem(self) -> None:
        """Set one item of a dict and of no other type: an array would spread the value over its elements."""
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        """Set several items of a dict."""
        pairs = self.pop_mark()
        self._put(self.stack[-1], pairs)

    def load_dict(self) -> None:
        """Make a dict of pairs."""
        made: dict[Any, Any] = {}
        self._put(made, self.pop_mark())
        self.append(made)

    def load_additems(self) -> None:
        """Add members to a set."""
        members = _keys(self.pop_mark())
        if not isinstance(self.stack[-1], set):
            raise TypeError(self.stack[-1])
        self.stack[-1].update(members)

    def load_frozenset(self) -> None:
        """Make a frozen set of members."""
        members = frozenset(_keys(self.pop_mark()))
        self.append(members)

    def _put(self, target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict):
            raise TypeError(target)
        target.update(zip(_keys(pairs[::2]), pairs[1::2], strict=True))
        self._progress.reach(self._content.tell())

    def _counted(self, opcode: bytes) -> None:
        """Run an opcode, and count the memory of its result, which may be a copy of another part."""
        pickle._Unpickler.dispatch[opcode[0]](cast(Any, self))
        self._progress.reach(self._content.tell())
        self._left -= _own_weight(self.stack[-1])
        if self._left < 0:
            raise RefusedError("its calls make far more data than the file holds")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        **{code[0]: _counting(code) for code in (pickle.REDUCE, pickle.BUILD, pickle.INST, pickle.OBJ)},
    }


def _own_weight(value: Any) -> int:
    """Estimate the bytes of a value, without those of its members."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    return _POINTER * len(value) if isinstance(value, _CONTAINER_TYPES) else 0


def _members(value: Any) -> Iterable[Any]:
    """Return the members of a container or an array of objects."""
    if isinstance(value, np.ndarray):
        return value.ravel().tolist() if _holds_objects(value) else ()
    if isinstance(value, dict):
        return itertools.chain(value, value.values())
    return value if isinstance(value, _CONTAINER_TYPES) else ()


def _check_weight(value: Any, most: int) -> None:
    """Raise RefusedError if a value with a copy of each part for each mention takes more than `most` bytes.

    Each container is weighed once, after its members; a container inside itself is not weighed again.
    """
    weights = {id(value): _own_weight(value)}
    unfinished = [(value, iter(_members(value)))]
    while unfinished:
        part, members = unfinished[-1]
        for member in members:
            if type(member) in _NUMBERS:
                continue
            if not isinstance(member, _CONTAINER_TYPES) and not _holds_objects(member):
                weights[id(part)] += _own_weight(member)
            elif id(member) in weights:
                weights[id(part)] += weights[id(member)]
            else:
                weights[id(member)] = _own_weight(member)
                unfinished.append((member, iter(_members(member))))
                break
        else:
            unfinished.pop()
            if unfinished:
                weights[id(unfinished[-1][0])] += weights[id(part)]
        # Checked at each step, since the weight of nested parts grows exponentially.
        if weights[id(part)] > most:
            raise RefusedError("it names its parts so often that they would take far more memory than the file")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.hasobject


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("a shape that is not a tuple of sizes")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"the shape {shape!r}")
    return shape


def _dtype(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, _Type):
        raise TypeError(kind)
    return kind.dtype


def _bytes(content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode("latin-1")
    if not isinstance(content, (bytes, bytearray)):
        raise TypeError(type(content).__name__)
    return bytes(content)
