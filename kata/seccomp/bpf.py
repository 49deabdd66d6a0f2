"""A filter as classic BPF over ``struct seccomp_data``: code generation only.

System calls are found by binary search over ranges of numbers with the same
outcome, a dozen steps where a chain of comparisons takes hundreds.  The guest
pays for the difference: its kernel runs the filter once for every system call
number when a process installs it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

#: (code, jt, jf, k): struct sock_filter.  Jumps are relative and go forward.
Instruction = tuple[int, int, int, int]
Code = list[Instruction]

_LD, _AND, _RET, _JA, _JEQ, _JGT, _JGE = 0x20, 0x54, 0x06, 0x05, 0x15, 0x25, 0x35  # linux/bpf_common.h
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_LOW, _HIGH = (0, 4) if sys.byteorder == "little" else (4, 0)
_FAIL = -1  #: a jump to the end of the rule, put in last
_LIMIT = 1 << 32


class Condition(NamedTuple):
    """An argument (0 to 5) compared with ``value``; for MASKED_EQ ``value`` is the mask and ``two`` the result."""

    argument: int
    operator: str  #: EQ NE LT LE GT GE MASKED_EQ
    value: int
    two: int = 0


class Rule(NamedTuple):
    """``action`` (SECCOMP_RET_*) if all conditions hold."""

    conditions: tuple[Condition, ...]
    action: int


#: What happens to a system call: rules tried in order, the last one without conditions.
Outcome = tuple[Rule, ...]


def always(action: int) -> Outcome:
    return (Rule((), action),)


class Ranges:
    """Outcome of every number from 0 to 2**32 - 1."""

    def __init__(self, default: Outcome) -> None:
        self._starts: dict[int, Outcome] = {0: default}

    def split(self, first: int, default: Outcome) -> None:
        """Another default from ``first`` on; called with growing numbers."""
        if first < _LIMIT:
            self._starts[first] = default

    def set(self, outcomes: Mapping[int, Outcome]) -> None:
        """Outcomes of single numbers."""
        defaults = dict(self._starts)
        starts = sorted(defaults)
        at = 0
        for number in sorted(outcomes):
            while at + 1 < len(starts) and starts[at + 1] <= number:
                at += 1
            after = defaults[starts[at]]
            self._starts[number] = outcomes[number]
            if number + 1 < _LIMIT and number + 1 not in outcomes:
                self._starts.setdefault(number + 1, after)

    def code(self) -> Code:
        """Code that expects the number to be loaded and returns an action."""
        merged: list[tuple[int, Outcome]] = []
        for start in sorted(self._starts):
            if not merged or merged[-1][1] != self._starts[start]:
                merged.append((start, self._starts[start]))
        return _search(merged)


def program(architectures: Iterable[tuple[int, Ranges]], otherwise: int) -> bytes:
    """The whole filter: a range table per AUDIT_ARCH_*, and the action for any other architecture."""
    code: Code = [(_RET, 0, 0, otherwise)]
    for token, ranges in reversed(list(architectures)):
        block = [(_LD, 0, 0, _NR), *ranges.code()]
        code = [*_branch(_JEQ, token, code), *code, *block]
    return b"".join(struct.pack("=HBBI", *line) for line in [(_LD, 0, 0, _ARCH), *code])


def _search(ranges: Sequence[tuple[int, Outcome]]) -> Code:
    if len(ranges) == 1:
        return _decide(ranges[0][1])
    middle = len(ranges) // 2
    left, right = _search(ranges[:middle]), _search(ranges[middle:])
    return [*_branch(_JGE, ranges[middle][0], left), *left, *right]


def _branch(code: int, value: int, skipped: Code) -> Code:
    """Jump over ``skipped`` if the comparison holds; a conditional jump reaches 255 instructions."""
    if len(skipped) <= 255:
        return [(code, len(skipped), 0, value)]
    return [(code, 0, 1, value), (_JA, 0, 0, len(skipped))]


def _decide(outcome: Outcome) -> Code:
    code: Code = []
    for rule in outcome:
        tests = [line for condition in rule.conditions for line in _test(condition)]
        # A failed test jumps over what is left of the tests and over the return.
        for i, (op, jt, jf, k) in enumerate(tests):
            distance = len(tests) - i
            code.append((op, distance if jt == _FAIL else jt, distance if jf == _FAIL else jf, k))
        code.append((_RET, 0, 0, rule.action))
    return code


def _test(condition: Condition) -> Code:
    """Code that goes on behind itself if the condition holds.  Arguments have 64 bits, a BPF register 32."""
    at = _ARGS + 8 * condition.argument
    load_high, load_low = (_LD, 0, 0, at + _HIGH), (_LD, 0, 0, at + _LOW)
    high, low = condition.value >> 32, condition.value & 0xFFFF_FFFF
    match condition.operator:
        case "EQ":
            return [load_high, (_JEQ, 0, _FAIL, high), load_low, (_JEQ, 0, _FAIL, low)]
        case "NE":
            return [load_high, (_JEQ, 0, 2, high), load_low, (_JEQ, _FAIL, 0, low)]
        case "GT" | "GE":
            last = _JGT if condition.operator == "GT" else _JGE
            return [load_high, (_JGT, 3, 0, high), (_JEQ, 0, _FAIL, high), load_low, (last, 0, _FAIL, low)]
        case "LT" | "LE":
            last = _JGE if condition.operator == "LT" else _JGT
            return [load_high, (_JGT, _FAIL, 0, high), (_JEQ, 0, 2, high), load_low, (last, _FAIL, 0, low)]
        case _:
            result = condition.two & condition.value
            return [load_high, (_AND, 0, 0, high), (_JEQ, 0, _FAIL, result >> 32),
                    load_low, (_AND, 0, 0, low), (_JEQ, 0, _FAIL, result & 0xFFFF_FFFF)]
