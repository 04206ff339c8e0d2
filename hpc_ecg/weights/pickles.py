"""The pickle inside a `.pt`, read as data: the few opcodes that torch.save writes, interpreted.

Nothing is imported or called. A name in the pickle is looked up in a table of what a checkpoint of
this family may hold, and stands for one of our own actions; every other name or opcode is refused.
(`torch.load(weights_only=True)` could be made to run code before torch 2.6, CVE-2025-32434, and
still lets a file ask for memory without end.) torch.save writes protocol 2; what is read here is
bounded: so many opcodes, and texts that are as long as only packed arrays are stay where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from hpc_ecg.weights.opcodes import NUMBERS, TEXTS, Inert, RefusedError, opcodes
from hpc_ecg.weights.stored import DTYPES, LONGEST_AXES, Block, StoredTensor
from hpc_ecg.weights.zipped import DamagedError

STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        **{"Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64"},
        **{"Char": "int8", "Byte": "uint8", "Short": "int16", "Int": "int32", "Long": "int64"},
        "Bool": "bool",
    }.items()
}
NUMPY = {
    *(
        f"numpy.{core}.multiarray {n}"
        for core in ("core", "_core")
        for n in ("_reconstruct", "scalar")
    ),
    *("numpy ndarray", "numpy dtype", "_codecs encode"),
    *(f"numpy.dtypes {name}DType" for name in ("Float16", "Float32", "Float64", "Int64", "Bool")),
}
REBUILD, PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
DICT, SIZE = "collections OrderedDict", "torch Size"
KNOWN = {*STORAGES, *NUMPY, REBUILD, PARAMETER, DICT, SIZE}
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LARGEST_KEY = 1 << 31  # whole numbers beyond can be chosen so that a dict of them never ends
END = object()


@dataclass(frozen=True, slots=True)
class Name:
    """A global of the pickle, looked up and not imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of the archive that tensors are views of."""

    name: str
    dtype: str
    block: Block = field(repr=False)

    def tensor(self, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> StoredTensor:
        whole = [type(n) is int and 0 <= n < 2**62 for n in (first, *shape, *strides)]
        if (
            not all(whole)
            or len(shape) != len(strides)
            or len(shape) > LONGEST_AXES
            or (0 in shape and prod(size or 1 for size in shape) >= 2**31)
        ):
            raise RefusedError(f"a tensor in {self.name} has no possible shape and strides")
        block, offset = self.block, self.block.start + first * DTYPES[self.dtype].itemsize
        view = StoredTensor(
            block=block, dtype=self.dtype, shape=shape, strides=strides, offset=offset
        )
        if max(view.offset, view.end) > block.end:
            raise DamagedError(
                f"a tensor in {self.name} claims shape {shape}, the file holds only "
                f"{block.end - block.start} bytes of it; refused"
            )
        return view


def read_pickle(data: memoryview, blocks: Mapping[str, Block]) -> Any:
    """The object of a pickle: dicts, lists, tuples, text, numbers, StoredTensor and Inert. One
    container may lie in several others, or in itself.

    `blocks`: the members of the archive. RefusedError: the pickle asks for more than tensors;
    ValueError and others: it is damaged.
    """
    machine = _Machine(blocks)
    for opcode, argument, position in opcodes(data):
        try:
            machine.step(opcode, argument)
        except RefusedError as error:
            raise RefusedError(f"{error}, byte {position} of its pickle") from None
    return machine.result()


class _Machine:
    """The stack of a pickle; a mark is an END on it."""

    def __init__(self, blocks: Mapping[str, Block]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.blocks = blocks

    def result(self) -> Any:
        (value,) = self.stack
        return value

    def step(self, opcode: str, argument: Any) -> None:  # noqa: PLR0912 - a table of opcodes
        stack = self.stack
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                stack.append(END)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(VALUES[opcode])
            case _ if opcode in NUMBERS or opcode in TEXTS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
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
                    raise ValueError("its pickle recalls what it never stored")
                stack.append(self.memo[argument])
            case "GLOBAL":
                if argument not in KNOWN:
                    raise RefusedError(f"it asks for {argument.replace(' ', '.')}")
                stack.append(Name(argument))
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
        if value is END:
            raise ValueError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while self.stack and self.stack[-1] is not END:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise RefusedError(f"it appends to {_kind(self.stack[-1])}")
        self.stack[-1].extend(items)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise RefusedError(f"it sets items of {_kind(target)}")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            small = type(key) is int and abs(key) < LARGEST_KEY
            if not small and type(key) not in (str, float, bool, type(None)):
                raise RefusedError(f"it has a key that is {_kind(key)}")  # a tuple may be endless
            if key in target:
                raise RefusedError(f"it holds the key {str(key)[:80]!r} twice")
            target[key] = value

    def storage(self, reference: Any) -> Storage:
        match reference:
            case ("storage", Name(kind), str(key), str(), int(numel)) if kind in STORAGES:
                if type(numel) is int and type(reference) is tuple:
                    return self.open_storage(STORAGES[kind], key, numel)
        raise RefusedError("it refers to something else than a storage of torch")

    def open_storage(self, dtype: str, key: str, numel: int) -> Storage:
        name, block = f"data/{key[:40]}", self.blocks.get(f"data/{key}")
        if block is None:
            raise DamagedError(f"no {name} in the archive; copy it again")
        if numel * DTYPES[dtype].itemsize != block.end - block.start:
            raise DamagedError(
                f"{name} should hold {str(numel)[:30]} values of {dtype}, the file holds only "
                f"{block.end - block.start} bytes of it; refused"
            )
        return Storage(name, dtype, block)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name) or type(arguments) is not tuple:
        raise RefusedError(f"it calls {_kind(function)}")
    match function.name, arguments:
        case (name, (Storage() as storage, int(start), tuple(shape), tuple(strides), *_)) if (
            name == REBUILD
        ):
            return storage.tensor(start, shape, strides)
        case (name, (StoredTensor() as tensor, *_)) if name == PARAMETER:
            return tensor
        case (name, (tuple(sizes),)) if name == SIZE:
            return sizes
        case (name, ()) if name == DICT:
            return {}
        case (name, _) if name in NUMPY:
            return Inert(name)
    raise RefusedError(f"it calls {function.name.replace(' ', '.')} in a way torch.save never does")


def _build(target: Any, state: Any) -> None:
    """State of numpy arrays: of it the shape is kept. Attributes of a dict are left out."""
    if isinstance(target, Inert):
        match state:
            case (int(), tuple(shape), *_) if all(type(size) is int for size in shape):
                target.shape = shape
    elif type(target) is not dict:
        raise RefusedError(f"it sets the state of {_kind(target)}")


def _kind(value: Any) -> str:
    return value.name.replace(" ", ".") if isinstance(value, Name) else f"a {type(value).__name__}"
