"""Read the pickle inside a `.pt` as data, interpreting the few opcodes that torch.save writes.

Nothing is imported or called. A global in the pickle is looked up in a table of what a checkpoint
of this family may contain, each with a harmless action of ours; all other globals and opcodes are
refused. (`torch.load(weights_only=True)` could be made to run code before torch 2.6,
CVE-2025-32434, and still lets a file ask for any amount of memory.) torch.save writes protocol 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from hpc_ecg.weights.opcodes import Placeholder, RefusedError, read_opcodes
from hpc_ecg.weights.stored_tensor import DTYPES, MAX_AXES, ByteRange, DamagedError, StoredTensor

STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        **{"Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64"},
        **{"Char": "int8", "Byte": "uint8", "Short": "int16", "Int": "int32", "Long": "int64"},
        "Bool": "bool",
    }.items()
}
NUMPY = {
    *(f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray scalar" for core in ("core", "_core")),
    *("numpy ndarray", "numpy dtype", "_codecs encode"),
    *(f"numpy.dtypes {name}DType" for name in ("Float16", "Float32", "Float64", "Int64", "Bool")),
}
REBUILD, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
DICT, SIZE = "collections OrderedDict", "torch Size"
ALLOWED_GLOBALS = {*STORAGES, *NUMPY, REBUILD, PARAMETER, DICT, SIZE}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
VALUES = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
MAX_INT_KEY = 1 << 31  # larger integers can be chosen so that their hashes all collide
MARK = object()


@dataclass(frozen=True, slots=True)
class Global:
    """A global that the pickle names; it is not imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the archive that tensors are views of."""

    name: str
    dtype: str
    bytes: ByteRange = field(repr=False)


def read_pickle(data: memoryview, members: Mapping[str, ByteRange]) -> Any:
    """The object in a pickle, made of dicts, lists, tuples, text, numbers, StoredTensor and
    Placeholder. A container may appear in several others, or in itself.

    `members`: those of the archive, by name. RefusedError: the pickle needs more than tensors;
    ValueError and others: it is damaged.
    """
    machine = _StackMachine(members)
    for opcode, argument, position in read_opcodes(data):
        try:
            machine.step(opcode, argument)
        except RefusedError as error:
            raise RefusedError(f"{error}, byte {position} of its pickle") from None
    (value,) = machine.stack
    return value


class _StackMachine:
    def __init__(self, members: Mapping[str, ByteRange]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.members = members

    def step(self, opcode: str, argument: Any) -> None:  # noqa: PLR0912 - a table of opcodes
        stack = self.stack
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                stack.append(MARK)
            case _ if opcode in CONSTANTS:
                stack.append(CONSTANTS[opcode])
            case _ if opcode in EMPTY:
                stack.append(EMPTY[opcode]())
            case _ if opcode in VALUES:
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS":
                self.extend(self.pop_to_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise ValueError("its pickle uses a memo entry that it never stored")
                stack.append(self.memo[argument])
            case "GLOBAL":
                if argument not in ALLOWED_GLOBALS:
                    raise RefusedError(f"it asks for {argument.replace(' ', '.')}")
                stack.append(Global(argument))
            case "BINPERSID":
                stack.append(self.storage(self.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.pop(), self.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                state = self.pop()
                _build(stack[-1], state)
            case _:
                raise RefusedError(f"it uses {opcode}, which torch.save never writes")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise RefusedError(f"it appends to {_describe(self.stack[-1])}")
        self.stack[-1].extend(items)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise RefusedError(f"it sets items of {_describe(target)}")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            is_small = type(key) is int and abs(key) < MAX_INT_KEY
            if not is_small and type(key) not in (str, float, bool, type(None)):
                # hashing a deeply nested tuple may never end
                raise RefusedError(f"it has a key that is {_describe(key)}")
            if key in target:
                raise RefusedError(f"it holds the key {str(key)[:80]!r} twice")
            target[key] = value

    def storage(self, reference: Any) -> Storage:
        match reference:
            case tuple(("storage", Global(kind), str(key), str(), int(numel))) if (
                kind in STORAGES and type(numel) is int
            ):
                name, dtype = f"data/{key[:40]}", STORAGES[kind]
            case _:
                raise RefusedError("it refers to something other than a torch storage")
        member = self.members.get(f"data/{key}")
        if member is None:
            raise DamagedError(f"no {name} in the archive; copy it again")
        if numel * DTYPES[dtype].itemsize != member.size:
            raise DamagedError(
                f"{name} should hold {str(numel)[:30]} values of {dtype}, the file holds only "
                f"{member.size} bytes of it; refused"
            )
        return Storage(name, dtype, member)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or type(arguments) is not tuple:
        raise RefusedError(f"it calls {_describe(function)}")
    match function.name, arguments:
        case (name, (Storage() as storage, int(start), tuple(shape), tuple(strides), *_)) if (
            name == REBUILD
        ):
            return _rebuild_tensor(storage, start, shape, strides)
        case (name, (StoredTensor() as tensor, *_)) if name == PARAMETER:
            return tensor
        case (name, (tuple(sizes),)) if name == SIZE:
            return sizes
        case (name, ()) if name == DICT:
            return {}
        case (name, _) if name in NUMPY:
            return Placeholder(name)
    name = _describe(function)
    raise RefusedError(f"it calls {name} in a way torch.save never does")


def _rebuild_tensor(
    storage: Storage, first: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> StoredTensor:
    """`first`: index of the tensor's first element in its storage."""
    are_sizes = [type(n) is int and 0 <= n < 2**62 for n in (first, *shape, *strides)]
    if (
        not all(are_sizes)
        or len(shape) != len(strides)
        or len(shape) > MAX_AXES
        or (0 in shape and prod(size or 1 for size in shape) >= 2**31)
    ):
        raise RefusedError(f"a tensor in {storage.name} has no possible shape and strides")
    tensor = StoredTensor(
        storage=storage.bytes,
        dtype=storage.dtype,
        shape=shape,
        strides=strides,
        offset=storage.bytes.start + first * DTYPES[storage.dtype].itemsize,
    )
    if max(tensor.offset, tensor.end) > storage.bytes.end:
        raise DamagedError(
            f"a tensor in {storage.name} claims shape {shape}, the file holds only "
            f"{storage.bytes.size} bytes of it; refused"
        )
    return tensor


def _build(target: Any, state: Any) -> None:
    """Keep the shape that the state of a numpy array states; ignore attributes of a dict."""
    if isinstance(target, Placeholder):
        match state:
            case (int(), tuple(shape), *_) if all(type(size) is int for size in shape):
                target.shape = shape
    elif type(target) is not dict:
        raise RefusedError(f"it sets the state of {_describe(target)}")


def _describe(value: Any) -> str:
    is_global = isinstance(value, Global)
    return value.name.replace(" ", ".") if is_global else f"a {type(value).__name__}"
