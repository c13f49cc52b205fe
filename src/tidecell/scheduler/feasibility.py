"""Which rows of a fleet could hold a replica, and how many of them. Pure.

Jobs that ask for the same resources in the same places are one placement class (Borg's equivalence
classes, EuroSys 2015, section 3.4): where they may go at all is worked out once for all of them.
Letters of array names: N rows, R = (cpu_millis, memory_bytes), G devices of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidecell.scheduler.attributes import Bools, holds_N, meets_N, of_alloc_N
from tidecell.scheduler.fleet import CPU, MEMORY, Fleet, Ints
from tidecell.structs.job import JobSpec, Shape
from tidecell.structs.resources import GPU, Resources

Floats = NDArray[np.float64]
ANY_NUMBER = 1 << 30  # copies of a request that asks for nothing
PREFERENCE = 1e5  # in a score, a weight of 1: more than packing and evenness together can be


class Room(NamedTuple):
    """What may be used of each row: cpu and memory, and thousandths of each device. May be negative."""

    free_NR: Ints
    gpu_NG: Ints

    def copy(self) -> Room:
        """Return a room that can be written to."""
        return Room(self.free_NR.copy(), self.gpu_NG.copy())


@dataclass(eq=False)
class PlacementClass:
    """Where replicas of one shape may go, machines taken as empty.

    Attributes:
        allowed_N: Rows that take this work at all.
        typed_NG: Devices of the type asked for; None where none is asked for.
        bias_N: Added to the score of a row: what is preferred is below 0; None: nothing is.
    """

    shape: Shape
    allowed_N: Bools
    typed_NG: Bools | None
    bias_N: Floats | None = None

    @property
    def request(self) -> Resources:
        """What one replica asks for."""
        return self.shape.resources


def placement_class(
    fleet: Fleet, spec: JobSpec, shape: int, known: dict[tuple[object, ...], Bools] | None = None
) -> PlacementClass:
    """Return where replicas of a job in one of its shapes may go.

    Args:
        fleet: The machines.
        spec: Whose replicas.
        shape: Which of its shapes.
        known: Sets of rows that were worked out for other classes; found and added there.
    """
    wanted = spec.shapes[shape]
    asked = [resources.gpu_millis for _, _, resources in spec.sizes]
    has_devices = bool(wanted.accelerator_type or wanted.resources.gpu_millis or any(asked))
    typed_NG = devices_of_type(fleet, wanted.accelerator_type)[0] if has_devices else None
    # Some replicas of several sizes may need no accelerator, and each size is looked at by itself.
    accelerator_type = wanted.accelerator_type if has_devices and not asked else None
    key = (accelerator_type, spec.constraints, spec.alloc)
    allowed_N = known.get(key) if known is not None else None
    if allowed_N is None:
        allowed_N = _allowed_N(fleet, spec, accelerator_type)
        if known is not None:
            known[key] = allowed_N
    return PlacementClass(wanted, allowed_N, typed_NG, _bias_N(fleet, spec))


def _allowed_N(fleet: Fleet, spec: JobSpec, accelerator_type: str | None) -> Bools:
    """Return the rows that take this work at all: those with such accelerators, unless that is None."""
    allowed_N: Bools = fleet.open_N & of_alloc_N(fleet, spec.alloc)
    if accelerator_type is not None:
        allowed_N &= devices_of_type(fleet, accelerator_type)[1]
    for condition in spec.constraints:
        allowed_N &= meets_N(fleet, condition)
    return allowed_N


def class_key(spec: JobSpec, shape: int) -> tuple[object, ...]:
    """Return what makes two jobs one placement class."""
    return (spec.shapes[shape], spec.constraints, spec.prefer, spec.data, spec.sizes, spec.alloc)


def _bias_N(fleet: Fleet, spec: JobSpec) -> Floats | None:
    """Return how much better rows are that meet preferences or hold the job's data; None: all are alike."""
    if not spec.prefer and not spec.data:
        return None
    weight_N = np.zeros(len(fleet.specs), np.int64)
    for preference in spec.prefer:
        weight_N += preference.weight * meets_N(fleet, preference.when)
    for name in spec.data:
        weight_N += holds_N(fleet, name)
    bias_N: Floats = -PREFERENCE * weight_N.astype(np.float64)
    return bias_N if weight_N.any() else None


def devices_of_type(fleet: Fleet, accelerator_type: str) -> tuple[Bools, Bools]:
    """Return which devices are of a type, and which rows have one; an empty type is any.

    Names match on a part. What machines have does not change, so a fleet's copies share the answers.
    """
    known = fleet.type_masks.get(accelerator_type)
    if known is not None:
        return known
    wanted = accelerator_type.lower()
    matches: Bools = np.array([wanted in name.lower() for name in fleet.types] + [False], np.bool_)
    typed_NG: Bools = matches[fleet.gpu_type_NG]  # -1, no device, is the last entry
    some_N: Bools = np.asarray(typed_NG.any(axis=1), np.bool_)
    fleet.type_masks[accelerator_type] = (typed_NG, some_N)
    return typed_NG, some_N


def fits_N(room: Room, request: Resources, typed_NG: Bools | None) -> Bools:
    """Return on which rows one replica fits."""
    ok_N = np.ones(len(room.free_NR), np.bool_)
    if request.cpu_millis:
        ok_N &= room.free_NR[:, CPU] >= request.cpu_millis
    if request.memory_bytes:
        ok_N &= room.free_NR[:, MEMORY] >= request.memory_bytes
    if request.gpu_millis and typed_NG is not None:
        if request.gpu_millis < GPU:
            ok_N &= ((room.gpu_NG >= request.gpu_millis) & typed_NG).any(axis=1)
        else:
            whole_N = ((room.gpu_NG >= GPU) & typed_NG).sum(axis=1)
            ok_N &= whole_N >= request.num_accelerators
    return ok_N


def copies_N(room: Room, request: Resources, typed_NG: Bools | None) -> Ints:
    """Return how many replicas each row could hold together."""
    count_N = np.full(len(room.free_NR), ANY_NUMBER, np.int64)
    if request.cpu_millis:
        count_N = np.minimum(count_N, room.free_NR[:, CPU] // request.cpu_millis)
    if request.memory_bytes:
        count_N = np.minimum(count_N, room.free_NR[:, MEMORY] // request.memory_bytes)
    if request.gpu_millis and typed_NG is not None:
        if request.gpu_millis < GPU:
            shares_N = np.where(typed_NG, np.maximum(room.gpu_NG, 0) // request.gpu_millis, 0).sum(axis=1)
        else:
            shares_N = ((room.gpu_NG >= GPU) & typed_NG).sum(axis=1) // request.num_accelerators
        count_N = np.minimum(count_N, shares_N)
    return np.maximum(count_N, 0)


def choose_devices(gpu_G: Ints | Sequence[int], typed_G: Bools | None, gpu_millis: int) -> list[int]:
    """Return the columns of the devices a request gets: whole ones from the lowest, a share by best fit.

    Empty if they do not suffice.
    """
    if not gpu_millis or typed_G is None:
        return []
    if gpu_millis < GPU:
        able = [g for g in range(len(gpu_G)) if typed_G[g] and gpu_G[g] >= gpu_millis]
        return [min(able, key=lambda g: (gpu_G[g], g))] if able else []
    whole = [g for g in range(len(gpu_G)) if typed_G[g] and gpu_G[g] >= GPU]
    count = gpu_millis // GPU
    return whole[:count] if len(whole) >= count else []
