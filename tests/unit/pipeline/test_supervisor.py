"""The restart rule of `pipeline.supervisor.Keeper`, on a clock of its own."""

from __future__ import annotations

import itertools

from pipeline.supervisor import RESTARTS, Keeper, Part
from visionloop.errors import ServingError


class Toy:
    def __init__(self) -> None:
        self.running = True
        self.starts = 0
        self.refuses = False

    def start(self) -> None:
        self.starts += 1
        if self.refuses:
            raise ServingError("the port is taken.")
        self.running = True

    def stop(self) -> None:
        self.running = False

    def part(self) -> Part:
        return Part("toy", self.start, lambda: self.running, self.stop)


def test_a_living_part_is_left_alone() -> None:
    toy, said = Toy(), list[str]()
    keeper = Keeper([toy.part()], said.append)
    for second in range(100):
        keeper.step(second)
    assert (toy.starts, said) == (0, [])


def test_pauses_double_and_after_the_limit_it_is_given_up() -> None:
    toy, said = Toy(), list[str]()
    part = toy.part()
    keeper = Keeper([part], said.append)
    started: list[int] = []
    for second in range(200):
        before = toy.starts
        keeper.step(second)
        if toy.starts > before:
            started.append(second)
            toy.running = True
        else:
            toy.running = toy.running and part.due is not None  # it dies as soon as it runs
    assert toy.starts == RESTARTS
    # 2, 4, 8 and 16 s of pause, and one tick each to die and to be noticed.
    assert [later - earlier for earlier, later in itertools.pairwise(started)] == [4, 6, 10, 18]
    assert part.given_up
    assert "crashed 6 times within 10 minutes and is left alone" in said[-1]


def test_old_crashes_are_forgotten() -> None:
    toy, said = Toy(), list[str]()
    part = toy.part()
    keeper = Keeper([part], said.append)
    for hour in range(20):
        toy.running = False
        keeper.step(hour * 3600)
        keeper.step(hour * 3600 + 1)
    assert toy.starts == 20
    assert not part.given_up


def test_a_refused_start_counts_as_a_crash_and_is_said() -> None:
    toy, said = Toy(), list[str]()
    toy.running, toy.refuses = False, True
    part = toy.part()
    keeper = Keeper([part], said.append)
    for second in range(200):
        keeper.step(second)
    assert part.given_up
    assert said.count("toy: the port is taken.") == RESTARTS
