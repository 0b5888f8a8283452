"""The reader of pickles against Python's own writer, numpy's, Python 2's, an attacker's, and chance's."""

from __future__ import annotations

import collections
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grcf_ray import console
from grcf_ray.data.unpickle import RefusedError, read_pickle, repaired_text
from grcf_ray.errors import DataError

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
PLAIN = {
    "text": ["fine", "ünï 文", b"bytes\xff", "", b""],
    "numbers": (1, -2, 2**40, 1.5, True, None, 1j),
    "kinds": [{1, 2}, frozenset({3}), bytearray(b"ab"), bytearray(), set(), {"a": {"b": []}}],
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "missing": collections.defaultdict(list, {"x": [1]}),
}
ARRAYS = [
    ROWS,
    np.asfortranarray(ROWS),
    ROWS.astype(">f8"),
    ROWS.astype(np.float16)[:, :1],
    np.array(3.5),
    np.zeros((0, 5), np.int64),
    np.array([[-np.inf, np.nan]]),
    np.array([True, False]),
    np.array(["ab", "文"]),
    np.array([b"vid[3]", b""]),
    np.array([b"\x00\xe9"], object),
    np.array([["a", 1.5], [None, [1, 2]]], object),
]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "some.pkl"
    path.write_bytes(content)
    return path


def test_a_long_pickle_tells_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_QUIET_S", 0)
    read_pickle(write(tmp_path, pickle.dumps({"rows": [ROWS, ROWS + 1]}, 2)))
    first, *_ = capsys.readouterr().err.splitlines()
    assert "  reading some.pkl 0.0 MB/0.0 MB  ETA 1 s" in first


def same(actual: Any, expected: np.ndarray[Any, Any]) -> None:
    assert isinstance(actual, np.ndarray)
    # numpy turns bytes into this machine's order where it reads a state.
    assert (actual.dtype, actual.shape) == (expected.dtype.newbyteorder("="), expected.shape)
    np.testing.assert_array_equal(np.asarray(actual), expected)


def with_numpy_1_names(content: bytes) -> bytes:
    """As numpy 1 wrote it, whose modules have other names."""
    old, new = b"numpy.core", b"numpy._core"
    for module in (b".multiarray", b".numeric"):
        long, short = new + module, old + module
        content = content.replace(b"\x8c" + bytes([len(long)]) + long, b"\x8c" + bytes([len(short)]) + short)
    content = content.replace(new, old)
    if content[2:3] == b"\x95":
        # A single frame, which names its length.
        content = content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]
    return content


@pytest.mark.parametrize("protocol", range(6))
def test_containers_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    assert read_pickle(write(tmp_path, pickle.dumps(PLAIN, protocol))) == PLAIN


@pytest.mark.parametrize("numpy", [1, 2])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_of_every_protocol(array: np.ndarray[Any, Any], protocol: int, numpy: int, tmp_path: Path) -> None:
    content = pickle.dumps({"x": array, "again": [array]}, protocol)
    if numpy == 1:
        content = with_numpy_1_names(content)
        assert b"_core" not in content
    result = read_pickle(write(tmp_path, content))
    same(result["x"], array)
    assert result["again"][0] is result["x"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("number", [np.float64(1.5), np.float32(-0.25), np.int64(7), np.bool_(True), np.str_("文")])
def test_scalars_are_pythons(number: Any, protocol: int, tmp_path: Path) -> None:
    result = read_pickle(write(tmp_path, pickle.dumps([number], protocol)))
    assert result == [number.item()]
    assert type(result[0]) is type(number.item())


def test_arrays_of_python_2(tmp_path: Path) -> None:
    """numpy 1 on Python 2, protocols 0 and 2: names, data and byte order are strings of bytes."""
    raw = np.array([1.5, 233.0], "<f4").tobytes()
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
    dtype = b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    text = b"S" + repr(raw)[1:].encode() + b"\ntb."
    result = read_pickle(write(tmp_path, head.replace(b"tS'b'", b"tS'b'") + dtype + text))
    same(result, np.array([1.5, 233.0], "<f4"))
    binary = b"T" + struct.pack("<i", len(raw)) + raw + b"tb."
    same(read_pickle(write(tmp_path, head + dtype + binary)), np.array([1.5, 233.0], "<f4"))


def test_texts_of_python_2_are_repaired() -> None:
    assert repaired_text("ünï 文") == "ünï 文"
    assert repaired_text("ünï 文".encode()) == "ünï 文"
    assert repaired_text("ünï 文".encode().decode("latin-1")) == "ünï 文"
    assert repaired_text("caf\xe9") == "caf\xe9"
    assert repaired_text(b"caf\xe9") == "caf\xe9"


class Calls:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._function, self._arguments = function, arguments

    def __reduce__(self) -> Any:
        return self._function, self._arguments


def attacks(file: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that would write a file, and what each is refused for."""
    import codecs
    import os

    command = f"touch {file}"
    python = f"open({file!r}, 'w').close()"
    return {
        "os.system": (pickle.dumps(Calls(os.system, command)), "posix.system"),
        "eval": (pickle.dumps(Calls(eval, python)), "builtins.eval"),
        "exec of Python 2": (pickle.dumps(Calls(exec, python), 0).replace(b"builtins", b"__builtin__"), "exec"),
        "nested": (pickle.dumps({"train": [(Calls(Calls, Calls(os.system, command)),)]}, 4), "Calls"),
        "in an array": (pickle.dumps(np.array([Calls(os.system, command)], object)), "posix.system"),
        "numpy's writer": (pickle.dumps(Calls(np.save, file, ROWS)), "numpy.save"),
        "numpy's tofile": (pickle.dumps(Calls(getattr, ROWS, "tofile")), "builtins.getattr"),
        "numpy's memmap": (pickle.dumps(Calls(np.memmap, file, "u1", "w+", 0, (3,))), "memmap"),
        "open": (pickle.dumps(Calls(open, file, "w")), "open"),
        "subprocess": (pickle.dumps(Calls(subprocess.Popen, command)), "subprocess.Popen"),
        "torch's storage": (b"ctorch._utils\n_rebuild_tensor_v2\n.", "convert them with .numpy()"),
        "INST": (f"(S'{command}'\nios\nsystem\n.".encode(), "os.system"),
        "OBJ": (f"(cos\nsystem\nS'{command}'\no.".encode(), "os.system"),
        "a dotted name": (b"\x80\x04\x8c\x08builtins\x8c\x0dset.__class__\x93.", "builtins.set.__class__"),
        "another codec": (pickle.dumps(Calls(codecs.encode, "x" * 9, "zip")), "encod"),
        "memory": (b"cbuiltins\nbytearray\n(L99999999999999L\ntR.", "a call of bytearray with a number"),
        "memory of bytes": (b"c__builtin__\nbytes\n(L99999999999999L\ntR.", "a call of bytes with arguments"),
        "the state of a function": (b"c_codecs\nencode\n}(S'a'\nI1\nub.", "the state of a function"),
        "slots of a function": (b"c_codecs\nencode\nN}(S'__doc__'\nI1\nu\x86b.", "the state of a function"),
        "a subclass of arrays": (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nmatrix\n(I0\ntS'b'\ntR.",
            "numpy.matrix",
        ),
        "a structured array": (pickle.dumps(np.zeros(1, [("a", "f4")])), "V4"),
    }


@pytest.mark.parametrize("name", attacks("x"))
def test_what_is_no_data_is_refused_by_name_and_not_run(name: str, tmp_path: Path) -> None:
    target = tmp_path / "written"
    content, says = attacks(str(target))[name]
    path = write(tmp_path, content)
    with pytest.raises(RefusedError, match=r"refused, no code of it was run") as caught:
        read_pickle(path)
    assert says in str(caught.value)
    assert caught.value.exit_code == 3
    assert not target.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Python's own reader runs them."""
    for name in ("os.system", "eval", "INST", "OBJ", "numpy's memmap"):
        target = tmp_path / f"written by {name.split()[-1]}".replace(" ", "_")
        path = write(tmp_path, attacks(str(target))[name][0])
        subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(path)!r}, 'rb'))"], check=False)
        assert target.exists(), name


def test_objects_in_disguise(tmp_path: Path) -> None:
    """An array whose type claims that its objects are bytes of the file: numpy would take them for addresses."""
    content = pickle.dumps(np.array([None, None], object), 2)
    (position,) = [at for op, _, at in pickletools.genops(content) if op.name == "EMPTY_LIST"]
    forged = content[:position] + b"U\x10" + b"A" * 16 + b"tb."
    with pytest.raises(DataError, match="without its 2 objects"):
        read_pickle(write(tmp_path, forged))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\x80\x04\x95", "cut short"),
        (pickle.dumps(ROWS)[:-5], "cut short"),
        (pickle.dumps(list(range(99)))[:-1], "cut short"),
        (b"B\xff\xff\xff\xffab.", "cut short"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.", "cut short"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00ab.", "cut short"),
        (b"Nr\xff\xff\xff\xff.x", None),
        (b"\x80\x63N.", "unsupported pickle protocol: 99"),
        (b"]}]s.", "not a readable pickle"),
        (b"Pmine\n.", "persistent"),
        (b"no pickle at all", "not a readable pickle"),
    ],
)
def test_what_is_no_pickle(content: bytes, says: str | None, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    if says is None:
        assert read_pickle(path) is None
        return
    with pytest.raises(DataError, match=says):
        read_pickle(path)


def array_of(code: str, shape: bytes, content: bytes = b"C\x00") -> bytes:
    """The opcodes of an array: its type's code, its shape as opcodes, its content as opcodes."""
    kind = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(code)) + code.encode() + b"K\x00K\x01tR"
    kind += b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return head + b"(K\x01" + shape + kind + b"\x89" + content + b"tb"


def long_text(length: int) -> bytes:
    return b"X" + struct.pack("<I", length) + b"x" * length


def bombs() -> dict[str, bytes]:
    """Pickles of a few kilobytes, which would take gigabytes or hours."""
    nine = b"B" + struct.pack("<I", 9000) + b"x" * 9000
    many, none = b"J\x80\xc3\xc9\x01", b"K\x00"
    laughs = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    nested = b"Nq\x00" + laughs
    colliding = b"}(" + b"".join(pickle.dumps(n * (2**61 - 1), 2)[2:-1] + b"N" for n in range(1, 99)) + b"u."
    length = struct.pack("<Q", 1 << 32)
    parts = {
        "a length of bytes": b"\x8e" + length + b"ab",
        "a length of text": b"\x8d" + length + b"ab",
        "a length of writable bytes": b"\x96" + length + b"ab",
        "bytes of no length": array_of("S0", b"(" + many + b"t"),
        "texts of no length": array_of("U0", b"(" + many + b"t"),
        "objects that are none": array_of("O8", b"(" + many + none + b"t", b"]"),
        "a wide text that is none": array_of("S999999999", b"(" + none + b"t"),
        "a text encoded again": b"c_codecs\nencode\nq\x00" + long_text(9000) + b"q\x01](" + ENCODED * 9000 + b"e",
        "a list copied again": b"c__builtin__\ntuple\nq\x00](" + b"N" * 9000 + b"eq\x01](" + COPIED * 9000 + b"e",
        "an array named again": b"](" + array_of("S9000", b"(K\x01t", nine) + b"q\x02" + b"h\x02" * 90_000 + b"e",
        "a text named again": long_text(9000) + b"q\x02](" + b"h\x02" * 90_000 + b"e",
        "lists within lists": nested,
        "keys within keys": b"}](" + nested + b"e0h\x3cNs",
        "keys of one hash": colliding[:-1],
    }
    return {name: b"\x80\x02" + content + b"." for name, content in parts.items()}


ENCODED = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R"
COPIED = b"h\x00h\x01\x85R"


@pytest.mark.parametrize("name", bombs())
def test_a_small_pickle_takes_little_memory(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, bombs()[name])
    tracemalloc.start()
    with pytest.raises(DataError):
        read_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 26


def test_parts_may_be_shared_and_hold_themselves(tmp_path: Path) -> None:
    shared = np.zeros((50, 74), np.float32)
    itself: list[Any] = [shared]
    itself.append(itself)
    result = read_pickle(write(tmp_path, pickle.dumps([itself, *[shared] * 200])))
    assert result[0][1] is result[0] and result[0][0] is result[200]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_chance_gives_data_or_a_data_error(protocol: int, tmp_path: Path) -> None:
    """Bytes flipped, cut out and put in: no other error, and no call of anything that is not ours."""
    good = pickle.dumps({"train": [((["a", "b"], ROWS, ROWS.astype(">f8")), np.array([[1.5]]), b"v[1]")] * 2}, protocol)
    rng = random.Random(protocol)
    read = 0
    for _ in range(400):
        content = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(content))
            what = rng.randrange(4)
            if what == 0:
                content[at] = rng.randrange(256)
            elif what == 1:
                del content[at : at + rng.choice((1, 2, 16))]
            elif what == 2:
                content[at:at] = rng.randbytes(rng.choice((1, 4)))
            else:
                content[at] ^= 1 << rng.randrange(8)
            if not content:
                break
        try:
            read_pickle(write(tmp_path, bytes(content)))
            read += 1
        except DataError:
            pass
    assert 0 < read < 400
