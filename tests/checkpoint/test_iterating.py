"""An iterator of a DataLoader that is in use at a save is found, and no other object."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, dataloader

import mlflow_track as mt
from mlflow_track.checkpoint.exact import iterating
from mlflow_track.checkpoint.exact.iterating import Loaders


@pytest.fixture
def loaders() -> Loaders:
    return Loaders()


def loader(**options: Any) -> DataLoader[int]:
    return DataLoader(list(range(6)), batch_size=2, **options)


def test_loader_counts_from_its_first_batch_to_the_one_before_the_last(loaders: Loaders) -> None:
    assert not loaders.is_iterating({})
    assert [loaders.is_iterating({}) for _ in loader()] == [True, True, False]
    assert not loaders.is_iterating({})


def test_loader_that_was_left_early_counts_only_while_it_is_alive(loaders: Loaders) -> None:
    batches = iter(loader())
    next(batches)
    assert loaders.is_iterating({})
    del batches
    assert not loaders.is_iterating({})


def test_evaluation_that_has_ended_does_not_count(loaders: Loaders) -> None:
    kept = iter(loader())
    for _ in kept:
        pass
    assert not loaders.is_iterating({})


def test_workers_that_persist_count_only_while_they_have_batches(loaders: Loaders) -> None:
    source = loader(num_workers=1, persistent_workers=True)
    for _ in range(2):
        assert [loaders.is_iterating({}) for _ in source] == [True, True, False]
        assert not loaders.is_iterating({})


class Stream(dataloader.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_stream_without_a_length_counts_until_it_has_ended(loaders: Loaders) -> None:
    assert [loaders.is_iterating({}) for _ in DataLoader(Stream())] == [True] * 3
    assert not loaders.is_iterating({})


def test_iterator_of_a_subclass_counts(loaders: Loaders) -> None:
    class Own(dataloader._SingleProcessDataLoaderIter):
        pass

    batches = Own(loader())
    assert loaders.is_iterating({})
    del batches
    assert not loaders.is_iterating({})


def test_iterator_that_died_in_a_cycle_does_not_count(loaders: Loaders) -> None:
    gc.disable()
    try:
        cycle: list[Any] = [iter(loader())]
        cycle.append(cycle)
        del cycle
        assert not loaders.is_iterating({})
    finally:
        gc.enable()


class Holder:
    """Has the place of a loader, as a wrapper of the caller's has it."""

    def __init__(self, iterator: Any, *, by_attribute: bool) -> None:
        if by_attribute:
            self._iterator = iterator
        else:
            self.holds_loader_iterator = lambda other: other is iterator

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("by_attribute", [False, True])
def test_loader_whose_place_is_in_the_state_does_not_count(
    loaders: Loaders, by_attribute: bool
) -> None:
    mine, other = iter(loader()), iter(loader())
    state = {"data": Holder(mine, by_attribute=by_attribute)}
    assert loaders.is_iterating(state)
    del other
    assert not loaders.is_iterating(state)
    assert loaders.is_iterating({})
    del mine


def test_objects_are_not_looked_through_again_for_what_is_known(
    loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = iter(loader())
    assert loaders.is_iterating({})
    monkeypatch.setattr(gc, "get_objects", lambda: pytest.fail("looked again"))
    assert loaders.is_iterating({})
    del batches
    assert not loaders.is_iterating({})


def test_many_epochs_are_looked_through_only_now_and_then(
    loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, real = [], gc.get_objects
    monkeypatch.setattr(gc, "get_objects", lambda: looks.append(1) or real())
    monkeypatch.setattr(iterating, "_FREE_LOOKS", 2)
    for _ in range(9):
        batches = iter(loader())
        assert loaders.is_iterating({})
        del batches
    assert len(looks) <= 4


def restored(is_inside: bool) -> str:
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        for _ in loader():
            if is_inside:
                checkpoints.save(0, {"n": 1})
        checkpoints.save(1, {"n": 1})
        if is_inside:
            checkpoints.wait()
    with mt.start_run(resume=run.id) as again:
        again.checkpoints().restore({"n": 0}, step=0 if is_inside else 1)
    return (run.path / "training.log").read_text()


def test_resume_from_a_save_inside_of_a_loader_is_unknown() -> None:
    words = "exact: unknown: a DataLoader was iterating and is not in the state"
    assert words in restored(is_inside=True)
    assert "exact: yes" in restored(is_inside=False)
