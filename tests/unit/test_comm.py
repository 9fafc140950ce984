"""Ranks with other settings, and the port of a job."""
import socket
import threading

import numpy as np
import pytest

from mindspore import Parameter, Tensor

from mindseg import comm
from mindseg.errors import UserError
from tests.support.hostile import check_refused


@pytest.fixture
def ranks(monkeypatch):
    """Runs ``check_equal`` as several ranks, which are threads; gives the message of each, None where it passed."""
    def run(*settings):
        size, own = len(settings), threading.local()
        barrier, slot = threading.Barrier(size, timeout=30), {}

        def broadcast(values, root=0):     # of arrays: broadcast_object itself is the real one
            if own.rank == root:
                slot["value"] = values.copy()
            barrier.wait()
            found = slot["value"]
            barrier.wait()
            return found

        def total(values):
            slot[own.rank] = values
            barrier.wait()
            found = np.sum([slot[rank] for rank in range(size)], axis=0)
            barrier.wait()
            return found

        messages = [None] * size

        def start(rank):
            own.rank = rank
            try:
                comm.check_equal(settings[rank], rank, size)
            except UserError as error:
                messages[rank] = str(error)

        monkeypatch.setattr(comm, "_broadcast", broadcast)
        monkeypatch.setattr(comm, "all_reduce_sum", total)
        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return messages
    return run


def test_equal_settings_pass(ranks):
    settings = {"optim.lr": 0.1, "train.stages": ["a", "b"], "model.variant": None, "data.label_map": {0: 1, 7: 255}}
    assert ranks(settings, dict(settings), dict(settings)) == [None, None, None]


@pytest.mark.parametrize(("other", "words"), [
    ({"optim.lr": 0.2, "loss.name": "ohem"}, ("optim.lr is 0.1 on rank 0 and 0.2 on rank 2",)),
    ({"optim.lr": 0.1}, ("loss.name is 'ohem' on rank 0 and None on rank 2",)),
    ({"optim.lr": 0.1, "loss.name": "ohem", "new": "x" * 500}, ("new is None on rank 0 and 'xxx",))])
def test_all_ranks_name_the_key_that_differs(ranks, other, words):
    settings = {"optim.lr": 0.1, "loss.name": "ohem"}
    messages = ranks(settings, dict(settings), other)
    assert len(set(messages)) == 1
    assert "\n" not in messages[0]
    assert len(messages[0]) < 400
    for word in words:
        assert word in messages[0]


def test_the_first_rank_that_differs_is_named(ranks):
    assert "on rank 1;" in ranks({"a": 1}, {"a": 2}, {"a": 3})[0]


@pytest.mark.parametrize("value", ["", "text", "0", "-1", "70000", "65536", "8118.0", "8 118", "1e3", "²", "9" * 5000])
def test_what_is_no_port_is_named(value):
    check_refused(lambda: comm.check_port("MASTER_PORT", value, "127.0.0.1"), "MASTER_PORT = ", "is not a port")


@pytest.mark.parametrize("listens", [True, False])
def test_a_port_in_use_is_named_and_a_free_one_passes(listens):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        if listens:
            other.listen()
        check_refused(lambda: comm.check_port("MASTER_PORT", port, "127.0.0.1"),
                      f"MASTER_PORT = {port} cannot be used on 127.0.0.1 (Address already in use); set another port")
    comm.check_port("MASTER_PORT", port, "127.0.0.1")
    comm.check_port("MASTER_PORT", port, "127.0.0.1")       # the first call left it free


def test_an_address_of_another_host_is_named():
    check_refused(lambda: comm.check_port("MASTER_PORT", "8118", "192.0.2.1"), "192.0.2.1")
    check_refused(lambda: comm.check_port("MASTER_PORT", "8118", "no such host"), "no such host")


@pytest.mark.parametrize(("bound", "local", "size", "cores"), [
    (64, None, 8, 8), (64, "4", 8, 16), (64, None, 1, 64), (6, None, 8, 6), (64, "100", 100, 1)])
def test_ranks_share_the_cores_of_their_host(bound, local, size, cores, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(bound)))
    monkeypatch.delenv("MINDSEG_LOCAL_RANKS", raising=False)
    if local:
        monkeypatch.setenv("MINDSEG_LOCAL_RANKS", local)
    assert comm.cores_of_rank(size) == cores


def test_a_planned_job_keeps_its_parameters():
    """A process that only compiles the step of one rank has no communication; a broadcast would fail."""
    param = Parameter(Tensor(np.arange(3, dtype=np.float32)), name="weight")
    comm.broadcast_parameters([param], 8)
    assert param.asnumpy().tolist() == [0, 1, 2]
