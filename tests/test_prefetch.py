"""Batches on their way to a GPU. Without one, stand-ins write down what would be asked of it."""

from contextlib import contextmanager

import pytest
import torch

from googlenet_train.data import prefetch
from googlenet_train.data.loader import Batch

CPU = torch.device("cpu")


def batch(mixed: bool) -> Batch:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1])
    return Batch(images, labels, (labels.flip(0), torch.rand(4)) if mixed else None)


def same(batch: Batch, got: tuple) -> bool:
    ours = (batch.images, batch.labels, *(batch.second or ()))
    images, labels, second = got
    theirs = (images, labels, *(second or ()))
    return all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("mixed", [False, True])
def test_on_a_cpu_nothing_is_copied(mixed):
    whole = batch(mixed)
    assert prefetch.stream_for(CPU) is None
    assert prefetch.send(whole, None) is whole
    images, labels, second = prefetch.receive(whole, CPU)
    assert images is whole.images
    assert labels is whole.labels
    assert same(whole, (images, labels, second))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_step_waits_for_the_copy_and_the_memory_for_the_step(monkeypatch, mixed):
    asked: list[str] = []
    where = ["step"]  # the stream that is current

    class Stream:
        device = CPU

        def __init__(self, name: str) -> None:
            self.name = name

        def record_event(self) -> str:
            asked.append(f"{self.name}: event")
            return "event"

        def wait_event(self, event: str) -> None:
            asked.append(f"{self.name}: wait for {event}")

    @contextmanager
    def inside(stream: Stream):
        where.append(stream.name)
        yield
        where.pop()

    to = torch.Tensor.to
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(f"on {device}"))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("step"))
    monkeypatch.setattr(prefetch, "pinned", lambda batch: asked.append("pin") or batch)
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda t, *given, **named: (
            asked.append(f"{where[-1]}: copy{' at once' * (not named['non_blocking'])}")
            or to(t, *given, **named).clone()
        ),
    )
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda t, stream: asked.append(f"kept for {stream.name}")
    )
    whole = batch(mixed)
    sent = prefetch.send(whole, Stream("copies"))
    tensors = 4 if mixed else 2
    assert asked == ["on cpu", "pin", *["copies: copy"] * tensors, "copies: event"]
    assert sent.images is whole.images  # for weights, pictures and counts
    asked.clear()
    got = prefetch.receive(sent, CPU)
    assert asked == ["step: wait for event", *["kept for step"] * tensors]
    monkeypatch.undo()
    assert same(whole, got)
    assert got[0] is not whole.images


@pytest.mark.parametrize(("kind", "waits"), [("cuda", False), ("mps", True)])
def test_a_copy_waits_where_its_source_might_go(monkeypatch, kind, waits):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *given, **named: asked.append(named))
    prefetch.travel(torch.ones(1), torch.device(kind))
    assert asked == [{"non_blocking": not waits}]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("mixed", [False, True])
def test_on_a_gpu(mixed):
    device = torch.device("cuda", 0)
    stream = prefetch.stream_for(device)
    batches = [batch(mixed) for _ in range(50)]
    sent = [prefetch.send(one, stream) for one in batches]
    for one, there in zip(batches, sent, strict=True):
        got = prefetch.receive(there, device)
        assert got[0].device == device
        assert same(one, got)
