"""Hostile and damaged files: each ends in one short line, nothing is executed, and memory and time
are bounded by the file's size."""

import copyreg
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES
from hostile import members_of, nothing_runs, number, pickled, pt_of, storage, tensor, text, zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.export import save_model
from hpc_ecg.weights.initialize import load_model
from hpc_ecg.weights.metadata import OUR_FORMAT
from hpc_ecg.weights.reading import read_checkpoint

pytestmark = pytest.mark.slow  # hundreds of files, each under limits of memory and time

BASE, AFIB = FIXTURES / "tiny_base_ssl.pt", FIXTURES / "tiny_wcr_afib_5y.pt"
NO_RUN = "refused, nothing in it was run"
GOOD = pickled(("model", tensor()))


def result_or_error(read, path):
    """The result of reading, or its error, which must be one short line that names the file."""
    with nothing_runs():
        try:
            return read(path)
        except ValueError as error:
            message = str(error)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) - len(str(path)) < 400
    return message


def refusal(path, content=None, read=read_checkpoint):
    if content is not None:
        path.write_bytes(content)
    message = result_or_error(read, path)
    assert isinstance(message, str), "it was read"
    return message


def archive_refusal(path, content):
    return refusal(path, content, read_archive)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


def content_of(path=AFIB):
    return torch.load(path, weights_only=True)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@cache
def slim():
    """The tiny file as torch writes it, without the state of its training."""
    out = io.BytesIO()
    content = content_of()
    torch.save({key: content[key] for key in ("cfg", "model")}, out)
    return out.getvalue()


def slim_members():
    return members_of(io.BytesIO(slim()))


def with_weights(path, change, kind=AFIB):
    content = content_of(kind)
    change(content["model"])
    return refusal(saved(path, content))


def test_the_audit_detects_what_runs(tmp_path):
    for run in (
        lambda: eval("1"),
        lambda: exec("1"),
        lambda: os.system("true"),
        lambda: (tmp_path / "x").touch(),
        lambda: (tmp_path / "x").write_text("x"),
        lambda: subprocess.run(["true"], check=False),
        lambda: pickle.loads(b"cos\nsystem\n."),
    ):
        with pytest.raises(AssertionError), nothing_runs():
            run()


# Pickles that would run code.


def touch(marker):
    Path(marker).touch()


class Reduced:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_that_makes_a_call_is_refused_in_every_protocol(path, tmp_path, protocol):
    marker = str(tmp_path / "ran")
    for call in (
        (touch, (marker,)),
        (eval, (f"open({marker!r}, 'w')",)),
        (dict, (), None, None, iter([(1, Reduced(touch, (marker,)))])),
        (OrderedDict, (), (None, {"x": Reduced(touch, (marker,))})),
        (list, (), None, iter([Reduced(touch, (marker,))])),
        (copyreg.__newobj__, (Reduced, marker)),
        (copyreg._reconstructor, (Path, object, None)),
        (torch.load, (marker,)),
    ):
        data = pickle.dumps({"model": {"a": Reduced(*call)}}, protocol)
        assert "refused" in archive_refusal(path, pt_of(data))
        assert not Path(marker).exists()


CALLS = {
    "REDUCE": b"cos\nsystem\n(" + text("true") + b"tR",
    "REDUCE of a builtin": b"c__builtin__\neval\n(" + text("1") + b"tR",
    "BUILD with __setstate__": b"ccollections\nOrderedDict\n)R}"
    + text("__setstate__")
    + b"cos\nsystem\nsb"
    + text("true")
    + b"b",
    "BUILD of a list": b"]}b",
    "BUILD of a tensor": tensor() + b"}" + text("__class__") + b"Nsb",
    "BUILD with slots": tensor() + b"N}" + text("offset") + b"K\x00s\x86b",
    "BUILD of a name": b"ctorch\nSize\n}" + text("x") + b"K\x01sb",
    "INST": b"(" + text("true") + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text("true") + b"o",
    "OBJ of a known name": b"(ccollections\nOrderedDict\no",
    "NEWOBJ": b"cos\nsystem\n" + text("true") + b"\x85\x81",
    "NEWOBJ of a known name": b"ctorch\nSize\n" + text("true") + b"\x85\x81",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93(" + text("true") + b"tR",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x01",
    "EXT4": b"\x84\x01\x01\x01\x01",
    "a dotted global": b"ctorch\nFloatStorage.__init__\n)R",
    "a dotted module": b"ctorch.serialization.os\nsystem\n)R",
    "a known name with other arguments": b"ccollections\nOrderedDict\n(]tR",
    "a storage that is called": b"ctorch\nFloatStorage\n)R",
    "_rebuild_tensor_v2 of texts": b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("x") + b"tR",
    "_rebuild_parameter of a dict": b"ctorch._utils\n_rebuild_parameter\n(}tR",
    "a call of a dict": b"})R",
    "a call without a tuple": b"ccollections\nOrderedDict\n]R",
    "a call of a call": b"ccollections\nOrderedDict\n)R)R",
    "PERSID as text": b"Pstorage\n",
    "a set": b"c__builtin__\nset\n(]tR",
    "a name without an end": b"c" + b"a" * 100_000,
    "a long name": b"c" + b"a" * 100_000 + b"\n" + b"b" * 100_000 + b"\n)R",
    "a name in other bytes": b"c\x1b[2J\nsystem\n)R",
    "a buffer out of band": b"\x97",
    "a bytearray": b"\x96\x03\x00\x00\x00\x00\x00\x00\x00abc",
    "FRAME": b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    "no opcode": b"\xff",
}


@pytest.mark.parametrize("what", CALLS)
def test_opcodes_that_would_call_or_create_objects_are_refused(path, what):
    copyreg.add_extension("pathlib", "Path", 1)
    copyreg.add_extension("os", "system", 0x101)
    copyreg.add_extension("os", "abort", 0x1010101)
    try:
        for data in (
            pickled(("model", CALLS[what])),
            pickled(("model", b"}" + text("a") + CALLS[what] + b"s")),
            pickled(("model", storage(key=CALLS[what]))),
            pickled(("model", tensor(first=CALLS[what]))),
            pickled(("model", tensor(shape=[CALLS[what]]))),
        ):
            line = archive_refusal(path, pt_of(data))
            assert NO_RUN in line
            assert "byte " in line
    finally:
        copyreg.remove_extension("pathlib", "Path", 1)
        copyreg.remove_extension("os", "system", 0x101)
        copyreg.remove_extension("os", "abort", 0x1010101)


def test_attributes_of_a_dict_are_ignored(path):
    state = b"}" + text("get") + b"K\x01s"
    path.write_bytes(pt_of(pickled(("model", b"ccollections\nOrderedDict\n)R" + state + b"b"))))
    assert read_archive(path) == {"model": {}}
    assert type(read_archive(path)["model"]) is dict


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_formats_of_torch_are_refused(path):
    old = saved(path, content_of(), _use_new_zipfile_serialization=False)
    assert "an old torch file" in refusal(old)
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    assert "refused" in refusal(path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "asks for torch.nn.modules.linear.Linear" in refusal(path)


# The memo, persistent ids, containers.


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"h\x07", "uses a memo entry that it never stored"),
        (b"j\xff\xff\xff\xff", "uses a memo entry that it never stored"),
        (b"r\x00\x00\x00\x80", "damaged"),
        (b"(q\x01h\x01", "damaged"),
        (b"t", "damaged"),
        (b"u", "damaged"),
        (b"(s", "damaged"),
        (b"(K\x01u", "damaged"),
        (b"Q", "damaged"),
        (b"((((", "damaged"),
        (b"0", "uses POP"),
        (b"2", "uses DUP"),
        (b"1", "uses POP_MARK"),
        (b"g1\n", "uses GET"),
        (b"p1\n", "uses PUT"),
        (b"I" + b"9" * 100_000 + b"\n", "uses INT"),
        (b"L" + b"9" * 100_000 + b"L\n", "uses LONG"),
        (b"S'" + b"a" * 100_000 + b"'\n", "uses STRING"),
        (b"\x8b\xff\xff\xff\x7f", "uses LONG4"),
        (number(1 << 100_000), "uses LONG4"),
        (b"X\xff\xff\xff\xff", "ends within a text"),
        (b"X\x02\x00\x00\x00\xc3\x28", "damaged"),
        (text("\ud800"), "damaged"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", "uses BINUNICODE8"),
        (b"B\xff\xff\xff\x7fa", "uses BINBYTES"),
        (b"J\x01", "damaged"),
        (b"", "damaged"),
    ],
)
def test_misuse_of_the_stack_and_the_memo_is_refused_in_one_line(path, opcodes, message):
    assert message in archive_refusal(path, pt_of(b"\x80\x02" + opcodes + b"."))
    archive_refusal(path, pt_of(b"\x80\x02}" + text("a") + opcodes + b"s."))
    archive_refusal(path, pt_of(b"\x80\x02}" + opcodes))


def test_a_huge_memo_index_takes_one_entry(path):
    path.write_bytes(pt_of(pickled(("a", b"]r\x00\x00\x00\x80j\x00\x00\x00\x80a"))))
    assert list(result_or_error(read_archive, path)) == ["a"]


@pytest.mark.parametrize(
    "reference",
    [
        b"NQ",
        b")Q",
        text("storage") + b"Q",
        storage() + b"Q",
        storage(key=storage()),
        storage(key=tensor()),
        storage(key=b"K\x00"),
        storage(key=b"N"),
        storage(key=text("../data.pkl")),
        storage(key=text("0/../0")),
        storage(key=text("/etc/passwd")),
        storage(key=text("0\0")),
        storage(key=text("a" * 60_000)),
        storage(key=text("a" * 200_000)),
        storage(key=text("")),
        storage(numel=b"\x88"),
        storage(numel=b"J\xff\xff\xff\xff"),
        storage(numel=number(2**62)),
        storage(numel=number(2**64 + 3)),
        storage(numel=number(2**2000)),
        storage(numel=b"G\x40\x08\x00\x00\x00\x00\x00\x00"),
        storage(numel=storage()),
        storage(kind=b"UntypedStorage"),
        storage(kind=b"ComplexFloatStorage"),
        storage(kind=b"DoubleStorage"),
        storage(kind=b"LongStorage"),
        storage(kind=b"Size"),
        b"]" + storage()[:-2] + b"eQ",
        b"(" + b"K\x01" * 100_000 + b"tQ",
    ],
)
def test_a_reference_that_is_no_storage_of_the_archive_is_refused(path, reference):
    for value in (reference, tensor(reference)):
        assert "refused" in archive_refusal(path, pt_of(pickled(("a", value)))) or "no data/" in (
            archive_refusal(path, pt_of(pickled(("a", value))))
        )


RECURSIVE = {
    "a dict": b"}q\x09" + text("me") + b"h\x09s",
    "a list": b"]q\x09h\x09a",
    "a tuple in itself": b"]q\x09h\x09\x85a\x85",
    "a deep list": b"]" * 100_000 + b"a" * 99_999,
    "a deep tuple": b"K\x00" + b"\x85" * 100_000,
    "deep dicts": (b"}" + text("a")) * 60_000 + b"N" + b"s" * 60_000,
    "tuples of a billion laughs": b"K\x00" + b"q\x01h\x01\x86" * 50_000,
    "lists of a billion laughs": b"(]q\x01" + b"]h\x01ah\x01aq\x01" * 30_000 + b"t",
}


@pytest.mark.parametrize("what", RECURSIVE)
def test_recursive_and_endless_containers_are_harmless(path, what):
    for content in (
        {"model": b"}" + text("a") + RECURSIVE[what] + b"s", "cfg": b"}" + text("model") + b"}s"},
        {"model": b"}", "cfg": b"}" + text("model") + RECURSIVE[what] + b"s"},
        {"model": b"}", "cfg": RECURSIVE[what]},
    ):
        refusal(path, pt_of(pickled(*content.items())))
    keyed = b"}" + RECURSIVE[what] + b"Ns"
    assert "has a key that is a" in archive_refusal(path, pt_of(pickled(("model", keyed))))


def test_a_good_file_with_odd_extra_values_is_read(path):
    members = members_of(AFIB)
    whole = members["data.pkl"]
    for name, value in RECURSIVE.items():
        if name.startswith("deep"):
            continue  # more steps than a pickle may have, together with the rest
        members["data.pkl"] = whole[:-1] + text("extra") + value + b"s."
        path.write_bytes(zip_of((f"x/{n}", data) for n, data in members.items()))
        assert result_or_error(read_checkpoint, path).num_labels == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"K\x01", "key that is int"),
        (b"N", "key that is NoneType"),
        (b"\x88", "key that is bool"),
        (b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", "key that is float"),
        (number(2**61 - 1), "has a key that is a int"),
        (b")", "has a key that is a tuple"),
        (tensor(), "has a key that is a StoredTensor"),
        (text("a" * 100_000), "has a key that is a Placeholder"),
        (text("\n\x1b[31m" * 10_000), "weights of another model"),
    ],
)
def test_the_key_of_a_weight_must_be_a_name(path, key, message):
    sizes = ("cfg", b"}" + text("model") + b"}s")
    data = pickled(("model", b"}" + key + tensor() + b"s"), sizes)
    assert message in refusal(path, pt_of(data))


def test_a_duplicate_key_is_refused(path):
    twice = b"}" + (text("a") + tensor() + b"s") * 2
    assert "holds the key 'a' twice" in archive_refusal(path, pt_of(pickled(("model", twice))))
    data = pickled(("model", b"}"), ("model", b"}"))
    assert "holds the key 'model' twice" in archive_refusal(path, pt_of(data))


# The zip.


def test_duplicate_names_and_names_outside_the_folder_are_refused(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = pt_of(GOOD, [("data.pkl", GOOD), ("data/0", bytes(12))])
    assert "holds x/data.pkl twice" in archive_refusal(path, twice)
    for name in ("../data.pkl", "data/../../0", "/etc/passwd", "data//0"):
        line = archive_refusal(path, pt_of(GOOD, [("data/0", bytes(12)), (name, b"")]))
        assert "outside of its folder" in line
    for name in ("y/data.pkl", "/x/data.pkl", "../x", "\\x\\data.pkl", "data.pkl"):
        content = zip_of([("x/data.pkl", GOOD), ("x/data/0", bytes(12)), (name, GOOD)])
        assert "this archive 2" in archive_refusal(path, content)
    for name in ("x/y/data.pkl", "x/DATA.PKL", "data.pkl", "x/data.pkl/"):
        content = zip_of([(name, GOOD)])
        assert "holds no data.pkl" in archive_refusal(path, content)


def test_an_archive_inside_an_archive_is_not_opened(path):
    evil = pt_of(pickled(("a", CALLS["REDUCE"])))
    path.write_bytes(pt_of(GOOD, [("data/0", bytes(12)), ("code.zip", evil), ("y/data.pkl", evil)]))
    assert list(result_or_error(read_archive, path)) == ["model"]
    path.write_bytes(pt_of(evil))
    assert NO_RUN in archive_refusal(path, None) or "damaged" in archive_refusal(path, None)


DIRECTORY = {
    "flags": 8,
    "method": 10,
    "crc": 16,
    "packed": 20,
    "size": 24,
    "disk": 34,
    "header": 42,
}
END = {"disk": 4, "first": 6, "here": 8, "count": 10, "size": 12, "start": 16, "comment": 20}
LOCAL = {"method": 8, "named": 26, "extra": 28, "name": 30}


def with_false_field(where, name, value, entry=0, content=None):
    """A small good file with one number of its zip replaced."""
    data = bytearray(content or pt_of(GOOD))
    start = {"LOCAL": data.find(b"PK\x03\x04"), "END": data.rfind(b"PK\x05\x06")}
    start["DIRECTORY"] = data.find(b"PK\x01\x02")
    for _ in range(entry):
        start["DIRECTORY"] = data.find(b"PK\x01\x02", start["DIRECTORY"] + 1)
    at = start[where] + globals()[where][name]
    layout = "<I" if name in ("crc", "packed", "header", "start") or (name == "size") else "<H"
    struct.pack_into(layout, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("where", "name", "value", "message"),
    [
        ("DIRECTORY", "flags", 1, "encrypted"),
        ("DIRECTORY", "method", 8, "compressed"),
        ("DIRECTORY", "method", 99, "compressed"),
        ("DIRECTORY", "crc", 7, "not what was written"),
        ("DIRECTORY", "packed", 1, "compressed"),
        ("DIRECTORY", "size", 2**32 - 1, "compressed"),
        ("DIRECTORY", "disk", 1, "damaged"),
        ("DIRECTORY", "header", 2**32 - 1, "not lie where"),
        ("DIRECTORY", "header", 5, "not lie where"),
        ("END", "disk", 1, "damaged"),
        ("END", "first", 1, "damaged"),
        ("END", "here", 1, "damaged"),
        ("END", "count", 65535, "damaged"),
        ("END", "size", 2**32 - 1, "damaged"),
        ("END", "start", 2**32 - 1, "damaged"),
        ("END", "start", 0, "damaged"),
        ("END", "comment", 5, "damaged"),
        ("LOCAL", "method", 8, "not lie where"),
        ("LOCAL", "named", 65535, "not lie where"),
        ("LOCAL", "named", 0, "not lie where"),
        ("LOCAL", "extra", 65535, "not lie where"),
        ("LOCAL", "extra", 4, "not lie where"),
        ("LOCAL", "name", 65, "not lie where"),
    ],
)
def test_a_zip_with_a_false_field_is_refused(path, where, name, value, message):
    assert message in archive_refusal(path, with_false_field(where, name, value))


def test_members_that_share_bytes_are_refused(path):
    assert "not lie where" in archive_refusal(
        path, with_false_field("DIRECTORY", "header", 0, entry=1)
    )
    inner = pt_of(GOOD)
    within = pt_of(GOOD, [("a", inner), ("data/0", bytes(12))])
    at = within.find(inner) + inner.find(b"PK\x03\x04", 1)  # a whole header inside another member
    assert "not lie where" in archive_refusal(
        path, with_false_field("DIRECTORY", "header", at, entry=2, content=within)
    )


def test_a_zip64_directory_must_agree_with_the_file(path):
    good = Path(AFIB).read_bytes()
    at = good.rfind(b"PK\x06\x07")
    for offset in (2**64 - 1, 2**63, 2**62, len(good), 0):
        content = bytearray(good)
        struct.pack_into("<Q", content, at + 8, offset)
        assert "damaged" in refusal(path, bytes(content))
    end64 = good.rfind(b"PK\x06\x06")
    for field in range(16, 56, 8):
        for value in (2**64 - 1, 2**63, 2**32, 1):
            content = bytearray(good)
            struct.pack_into("<Q", content, end64 + field, value)
            assert "damaged" in refusal(path, bytes(content))


def test_a_file_truncated_at_any_kilobyte_or_near_its_end_is_refused(path):
    whole = AFIB.read_bytes()
    path.write_bytes(whole)
    near_end = range(len(whole) - 2048, len(whole))
    for kept in [*reversed(near_end), *reversed(range(0, len(whole), 1000))]:
        os.truncate(path, kept)
        assert refusal(path)


def same(one, other):
    return one.tensors.keys() == other.tensors.keys() and all(
        (tensor.array() == other.tensors[key].array()).all() for key, tensor in one.tensors.items()
    )


def test_a_flipped_bit_is_refused_or_changes_nothing(path):
    whole, chance = slim(), random.Random(0)
    good, directory = read_checkpoint(AFIB), whole.find(b"PK\x01\x02")
    pickle_size = len(slim_members()["data.pkl"])
    spots = [chance.randrange(len(whole)) for _ in range(12)]
    spots += [chance.randrange(pickle_size) for _ in range(8)]  # the pickle
    spots += [chance.randrange(directory, len(whole)) for _ in range(8)]
    spots += [*range(0, 30, 6), *range(len(whole) - 98, len(whole), 9)]
    caught = 0
    for spot in spots:
        for bit in range(8):
            content = bytearray(whole)
            content[spot] ^= 1 << bit
            path.write_bytes(content)
            result = result_or_error(read_checkpoint, path)
            caught += isinstance(result, str)
            assert isinstance(result, str) or same(result, good)
    assert caught > len(spots) * 2


def test_a_flipped_bit_of_any_weight_is_caught(path):
    whole = slim()
    path.write_bytes(whole)
    for key, tensor_ in read_checkpoint(path).tensors.items():
        content = bytearray(whole)
        content[tensor_.offset] ^= 1
        line = refusal(path, bytes(content))
        assert f"{key} is not what was written" in line


# Tensors.


@pytest.mark.parametrize(
    ("first", "shape", "strides"),
    [
        (0, [4], [1]),
        (0, [2**62], [1]),
        (0, [2**40, 2**40], [2**40, 1]),
        (0, [2**2000], [1]),
        (0, [3], [2**61]),
        (0, [3], [2**62]),
        (0, [3], [-1]),
        (2, [3], [-1]),
        (-1, [3], [1]),
        (2**62, [3], [1]),
        (2**61, [], []),
        (4, [0], [1]),
        (0, [0, 2**61], [1, 1]),
        (0, [0, 2**30, 2**30, 2**30], [1, 1, 1, 1]),
        (0, [-3], [1]),
        (0, [-1, -3], [1, 1]),
        (0, [3], []),
        (0, [], [1]),
        (0, [1] * 9, [1] * 9),
        (0, [1] * 100_000, [1] * 100_000),
        (b"\x88", [1], [1]),
        (0, [b"\x88"], [1]),
        (0, [1], [b"\x88"]),
        (0, [b"G\x3f\xf0\x00\x00\x00\x00\x00\x00"], [1]),
        (0, [b"N"], [1]),
    ],
)
def test_a_tensor_of_impossible_size_is_refused(path, first, shape, strides):
    value = tensor(first=first, shape=shape, strides=strides)
    line = archive_refusal(path, pt_of(pickled(("a", value))))
    assert "no possible shape" in line or "claims shape" in line


def test_tensors_that_share_elements_are_refused(path):
    one = torch.ones(48)

    def expand(model):
        model["proj.weight"] = torch.ones(1).expand(1, 48)

    def overlap(model):
        model["proj.weight"] = torch.ones(60).as_strided((1, 48), (1, 1))
        key = "encoder.encoder.layers.0.fc2.weight"
        model[key] = torch.ones(200).as_strided((48, 96), (2, 1))

    def two_on_one(model):
        model["encoder.encoder.layer_norm.weight"] = one
        model["encoder.encoder.layer_norm.bias"] = one

    def within_each_other(model):
        both = torch.ones(60)
        model["encoder.encoder.layer_norm.weight"] = both[:48]
        model["encoder.encoder.layer_norm.bias"] = both[12:]

    assert "proj.weight claims shape (1, 48) by counting elements twice" in with_weights(
        path, expand
    )
    assert "counting elements twice (strides (2, 1))" in with_weights(path, overlap)
    for change in (two_on_one, within_each_other):
        assert "lie on the same bytes" in with_weights(path, change)


def test_an_axis_of_size_1_may_have_any_stride_and_a_weight_needs_values(path):
    content = content_of()
    content["model"]["proj.weight"] = content["model"]["proj.weight"].as_strided((1, 48), (77, 1))
    assert same(read_checkpoint(saved(path, content)), read_checkpoint(AFIB))
    huge = tensor(shape=(1, 3), strides=(2**61, 1))
    path.write_bytes(pt_of(pickled(("a", huge))))
    assert read_archive(path)["a"].array().shape == (1, 3)
    assert read_archive(path)["a"].to_torch().shape == (1, 3)

    def empty(model):
        model["proj.weight"] = torch.ones(0, 48)

    def scalar(model):
        model["proj.bias"] = torch.tensor(1.0)

    assert "holds no values" in with_weights(path, empty)
    assert "(file (), model (1,))" in with_weights(path, scalar)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_found_wherever_they_are(path, value, dtype):
    key = "encoder.encoder.layers.1.fc1.weight"
    for place in (0, 1000, -1):

        def spoil(model, place=place):
            model[key] = model[key].to(dtype)
            model[key].view(-1)[place] = value

        assert f"{key} holds NaN or infinite" in with_weights(path, spoil)


def test_infinities_that_cancel_and_values_too_large_for_float32_are_found(path):
    def cancel(model):
        model["proj.weight"][0, :2] = torch.tensor([float("inf"), -float("inf")])

    def too_large(model):
        model["proj.weight"] = model["proj.weight"].double()
        model["proj.weight"][0, 3] = 1e300

    for change in (cancel, too_large):
        assert "proj.weight holds NaN or infinite" in with_weights(path, change)


def test_a_sum_that_overflows_does_not_count_as_infinite_values(path):
    content = content_of()
    content["model"]["encoder.encoder.layers.1.fc1.weight"][:] = 3e38
    assert read_checkpoint(saved(path, content)).num_labels == 1


def test_two_keys_for_one_name_are_refused(path):
    stem = "encoder.conv_pos.pos_conv.0."

    def both(model):
        new = f"{stem}parametrizations.weight.original0"
        model[new] = model[f"{stem}weight_g"].clone()

    def ours_besides(model):
        model["backbone.layer_norm.weight"] = model["encoder.layer_norm.weight"].clone()

    def ours_first(model):
        old = dict(model)
        model.clear()
        model["head.weight"] = old["proj.weight"].clone()
        model.update(old)

    def ours_instead(model):
        model["head.weight"] = model.pop("proj.weight")

    for change in (both, ours_besides, ours_first, ours_instead):
        assert "1 not in the model" in with_weights(path, change)


@pytest.mark.parametrize(
    "value", ["x" * 10_000_000, "\n" * 1000, "\x1b[2J", 10**600, -1, True, 2.0, float("nan"), ()]
)
def test_a_value_of_any_length_in_cfg_makes_a_short_line(path, value):
    for name in ("encoder_layers", "conv_feature_layers", "extractor_mode"):
        content = content_of()
        content["cfg"]["model"][name] = value
        assert f"cfg.model.{name} must be" in refusal(saved(path, content))
    content = content_of()
    content["cfg"]["model"]["conv_feature_layers"] = "[" * 1000
    assert "conv_feature_layers must be" in refusal(saved(path, content))


# Safetensors.


def raw_safetensors(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        raw_safetensors(b""),
        raw_safetensors({}, length=2**60),
        raw_safetensors({}, length=2**64 - 1),
        raw_safetensors({}, length=10**6),
        raw_safetensors(b"\xff" * 20),
        raw_safetensors(b"not JSON"),
        raw_safetensors(b"[]"),
        raw_safetensors(b"[" * 100_000),
        raw_safetensors(b'{"a":' * 100_000),
        raw_safetensors(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        raw_safetensors({"a": ONE | {"x": 0}}),
        raw_safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
        raw_safetensors({"a": ONE | {"data_offsets": [0, 2**60]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"data_offsets": [4, 0]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"data_offsets": [-4, 0]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"data_offsets": [0]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"shape": [2**62, 4]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"shape": [2**32, 2**32, 1]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"shape": [-1]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"shape": [True]}}, bytes(4)),
        raw_safetensors({"a": ONE | {"shape": [1] * 100_000}}, bytes(4)),
        raw_safetensors({"a": ONE | {"dtype": "F31"}}, bytes(4)),
        raw_safetensors({"a": ONE | {"dtype": "F8_E4M3", "shape": [4]}}, bytes(4)),
        raw_safetensors({"a": ONE}, bytes(5)),
        raw_safetensors({"a": ONE, "b": ONE}, bytes(4)),
        raw_safetensors({"a": ONE, "b": ONE | {"data_offsets": [2, 6]}}, bytes(6)),
        raw_safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
        raw_safetensors(b'{"a":%b,"\\u0061":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(4)),
        raw_safetensors(b'{"__metadata__":{"a":"1","a":"2"}}'),
        raw_safetensors({"__metadata__": {"format": "x" * 10**6}}),
        raw_safetensors({"__metadata__": {"format": OUR_FORMAT}}),
        raw_safetensors({"a\n" * 100_000: ONE | {"dtype": "F8_E5M2", "shape": [4]}}, bytes(4)),
        pickle.dumps({"a": 1}),
        pt_of(GOOD),
    ],
    ids=range(36),
)
def test_a_false_header_is_refused(tmp_path, content):
    refusal(tmp_path / "x.safetensors", content)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Header and data of a small file of ours, without the digest that edits would break."""
    path = tmp_path_factory.mktemp("ours") / "x.safetensors"
    from hpc_ecg.ecg.signal import SignalSpec

    model = load_model(AFIB)
    save_model(path, model, model.architecture, ["af"], SignalSpec())
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["sha256"]
    return header, data[8 + length :]


def test_our_file_is_read_whatever_the_order_of_its_header(ours, tmp_path):
    header, data = ours
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors(dict(reversed(header.items())), data))
    assert same(result_or_error(read_checkpoint, path), read_checkpoint(path))


@pytest.mark.parametrize(
    ("name", "text_", "message"),
    [
        ("architecture", "[" * 100_000, "metadata `architecture` must be a JSON dict"),
        ("architecture", "null", "metadata `architecture` must be a JSON dict"),
        ("architecture", '{"encoder_layers": 2, "encoder_layers": 2}', "must be a JSON dict"),
        ("architecture", "{}", "is missing; every size must be stated"),
        ("architecture", '{"in_d": NaN}', "must be a JSON"),
        ("labels", '{"a": 1}', "metadata `labels` must be a JSON list"),
        ("labels", "[1]", "metadata `labels` must be a JSON list of str"),
        ("labels", "[[" * 100_000, "metadata `labels` must be a JSON list"),
        ("labels", '["a", "b"]', "2 label names for a head of 1"),
        ("labels", "[]", "0 label names for a head of 1"),
        ("signal", "{}", "a signal spec has the fields"),
        ("signal", "[]", "metadata `signal` must be a JSON dict"),
        ("signal", "9" * 5000, "metadata `signal` must be a JSON dict"),
        ("provenance", '["x"]', "metadata `provenance` must be a JSON list of dict"),
        ("provenance", "NaN", "metadata `provenance` must be a JSON list of dict"),
    ],
)
def test_our_metadata_is_checked(ours, tmp_path, name, text_, message):
    header, data = ours
    about = {"__metadata__": header["__metadata__"] | {name: text_}}
    path = tmp_path / "x.safetensors"
    assert message in refusal(path, raw_safetensors(header | about, data))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("leads", "I,II"),
        ("leads", [1, 2]),
        ("sample_rate_hz", "250"),
        ("sample_rate_hz", 2.5),
        ("num_samples", None),
        ("num_samples", True),
        ("unit", ["mV"]),
    ],
)
def test_a_signal_of_wrong_types_is_refused(ours, tmp_path, field, value):
    header, data = ours
    signal = json.loads(header["__metadata__"]["signal"]) | {field: value}
    about = {"__metadata__": header["__metadata__"] | {"signal": json.dumps(signal)}}
    line = refusal(tmp_path / "x.safetensors", raw_safetensors(header | about, data))
    assert f"signal.{field}" in line


def test_nan_in_our_file_is_found(ours, tmp_path):
    header, data = ours
    data = b"\x00\x00\xc0\x7f" + data[4:]
    assert "holds NaN" in refusal(tmp_path / "x.safetensors", raw_safetensors(header, data))


def test_our_file_truncated_or_with_flipped_bits_is_refused_or_read(ours, tmp_path):
    whole, chance = raw_safetensors(*ours), random.Random(1)
    path = tmp_path / "x.safetensors"
    for kept in [*range(0, len(whole), 4000), len(whole) - 1]:
        assert "damaged safetensors" in refusal(path, whole[:kept])
    header_size = len(whole) - len(ours[1])
    for _ in range(300):
        content = bytearray(whole)
        content[chance.randrange(header_size)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        result_or_error(read_checkpoint, path)


# Memory and time.

MEASURE = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from hpc_ecg.weights.reading import read_checkpoint

    def kilobytes(name):
        status = Path("/proc/self/status").read_text()
        return int(status.partition(name + ":")[2].split()[0])

    read_checkpoint(sys.argv[1])
    for path in map(Path, sys.argv[2:]):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, start = kilobytes("VmRSS"), time.perf_counter()
        try:
            read_checkpoint(path)
            outcome = "read"
        except ValueError as error:
            outcome = str(error)
        seconds = round(time.perf_counter() - start, 2)
        grown = (kilobytes("VmHWM") - before) * 1024
        print(path.name, grown, path.stat().st_size, seconds, outcome)
""")


def bombs(folder):
    """Small files that ask for much memory or time."""
    model = ("model", b"}"), ("cfg", b"}" + text("model") + b"}s")

    def pt(name, *pairs):
        (folder / f"{name}.pt").write_bytes(pt_of(pickled(*pairs)))

    (folder / "deflated.pt").write_bytes(
        zip_of([("x/data.pkl", bytes(300_000_000))], zipfile.ZIP_DEFLATED)
    )
    pt("dicts", ("a", b"(" + b"}" * 5_000_000 + b"t"))
    pt("marks", ("a", b"(" * 5_000_000))
    pt("text", ("a", text("a" * 20_000_000 + "\U0001f600")))
    pt("texts", ("a", b"(" + text("a" * 60_000 + "\U0001f600") * 400 + b"t"))
    pt("names", ("a", b"(" + b"ctorch\nSize\n" * 260_000 + b"t"))
    pt("memo", ("a", b"(" + b"".join(b"]r" + struct.pack("<I", i) for i in range(130_000)) + b"t"))
    pt("name", ("a", b"c" + b"a" * 20_000_000))
    pt("laughs", ("a", RECURSIVE["tuples of a billion laughs"]), *model)
    colliding = b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 40_000))
    pt("colliding_keys", ("a", b"}(" + colliding + b"u"))
    shifted = b"".join(number((i * (2**61 - 1)) % 2**31) + b"N" for i in range(1, 40_000))
    pt("near_keys", ("a", b"}(" + shifted + b"u"))
    for count in (16_000, 20_000):
        many = [(f"data/{i}", b"") for i in range(count)]
        (folder / f"{count}_members.pt").write_bytes(pt_of(GOOD, many))
    content = content_of(BASE)
    content["model"]["mask_emb"] = torch.zeros(12_000_000, dtype=torch.bfloat16)
    saved(folder / "large_bfloat16.pt", content)
    content["model"]["mask_emb"] = torch.zeros(12_000_000, dtype=torch.float64)[::2]
    saved(folder / "large_strided.pt", content)
    whole = torch.zeros(5_000_000)
    content = content_of(AFIB)
    content["model"] |= {f"encoder.{i}": whole[i : i + 1] for i in range(3_000)}
    saved(folder / "many_in_one.pt", content)
    content = content_of(AFIB)
    content["model"]["proj.weight"] = torch.zeros(1).expand(2**40, 48)
    saved(folder / "expanded.pt", content)
    metadata = {"format": OUR_FORMAT, "architecture": json.dumps(SIZES | {"encoder_layers": 2**20})}
    save_file({"backbone.layer_norm.weight": torch.ones(16)}, folder / "deep.safetensors", metadata)
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(15_000)) + b"}"
    (folder / "many.safetensors").write_bytes(raw_safetensors(header))
    (folder / "header.safetensors").write_bytes(raw_safetensors(header[:-1] + b" " * 10**7 + b"}"))
    return sorted(folder.iterdir())


SIZES = {
    **{"encoder_layers": 2, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 96, "in_d": 12},
    **{"encoder_attention_heads": 4, "conv_feature_layers": "[(16, 2, 2)] * 4"},
    **{"conv_pos": 8, "conv_pos_groups": 4},
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.timeout(120)
def test_memory_is_bounded_by_the_files_size_and_time_by_seconds(tmp_path):
    files = bombs(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(AFIB), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    lines = [line.split(" ", 4) for line in done.stdout.splitlines()]
    assert len(lines) == len(files)
    for name, grown, size, seconds, outcome in lines:
        assert int(grown) <= int(size) + 32_000_000, name
        assert float(seconds) < 5, name
        assert outcome != "read" or name.startswith("large"), name


# Random changes.

FUZZ = {"derandomize": True, "deadline": None, "max_examples": 150, "database": None}
FUZZ |= {"suppress_health_check": list(HealthCheck)}


def mutated(data, cuts):
    """Bytes changed, removed, inserted, repeated and moved."""
    for kind, at, length, value in cuts:
        at %= len(data)
        part = data[at : at + length]
        data = {
            "set": data[:at] + value + data[at + len(value) :],
            "drop": data[:at] + data[at + length :],
            "put": data[:at] + value + data[at:],
            "twice": data[: at + length] + part + data[at + length :],
            "move": part + data[:at] + data[at + length :],
        }[kind] or data
    return data


CUTS = st.lists(
    st.tuples(
        st.sampled_from(["set", "drop", "put", "twice", "move"]),
        st.integers(0, 2**20),
        st.integers(1, 40),
        st.one_of(
            st.binary(min_size=1, max_size=5),
            st.sampled_from(
                [b"R", b"b", b"Q", b"t", b"(", b"u", b"h\x05", b"\x93", b"cos\nsystem\n"]
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(cuts=CUTS)
@settings(**FUZZ)
def test_a_randomly_changed_pickle_is_refused_or_read(tmp_path_factory, cuts):
    members = slim_members()
    members = members | {"data.pkl": mutated(members["data.pkl"], cuts)}
    path = tmp_path_factory.getbasetemp() / "fuzz.pt"
    path.write_bytes(zip_of((f"x/{name}", data) for name, data in members.items()))
    result_or_error(read_checkpoint, path)


@given(cuts=CUTS, at_end=st.booleans())
@settings(**FUZZ)
def test_a_randomly_changed_zip_is_refused_or_unchanged(tmp_path_factory, cuts, at_end):
    whole = zip_of((f"x/{name}", data) for name, data in slim_members().items())
    directory = whole.find(b"PK\x01\x02")
    parts = whole[:directory], whole[directory:]
    path = tmp_path_factory.getbasetemp() / "fuzz.pt"
    path.write_bytes(
        parts[0] + mutated(parts[1], cuts) if at_end else mutated(parts[0], cuts) + parts[1]
    )
    result = result_or_error(read_checkpoint, path)
    assert isinstance(result, str) or same(result, read_checkpoint(AFIB))
