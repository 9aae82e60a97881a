"""An artifact is whole or absent."""

import errno
import fcntl
import resource
import signal
import subprocess
import sys

import pytest

from bfmpipe.files import file_digest, locked, remove, replacing
from bfmpipe.types import UserError


def test_a_file_appears_under_its_name_only_when_the_block_succeeds(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # so that the rename is atomic
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("old", ["old", None])
def test_an_exception_leaves_what_was_there_and_no_temporary(tmp_path, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        write()
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ([old] if old else [])


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from bfmpipe.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "new"


def test_a_removed_file_leaves_nothing_of_a_killed_writer_but_what_another_writes_at(tmp_path):
    path, partial = tmp_path / "file.txt", tmp_path / ".file.txt.partial"
    path.write_text("old")
    partial.write_text("half")
    remove(path)
    assert not list(tmp_path.iterdir())
    remove(path)  # nor does it miss anything
    with replacing(path) as temporary:
        temporary.write_text("new")
        remove(path)
    assert path.read_text() == "new"


def test_a_second_writer_is_refused_in_one_sentence_and_the_first_one_goes_on(tmp_path):
    path = tmp_path / "file.txt"
    code = (
        "import sys; from pathlib import Path; from bfmpipe.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('the first'); print(flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        first.stdout.readline()
        with pytest.raises(UserError) as caught, replacing(path):
            pytest.fail("two write at once")
        assert str(caught.value).startswith(f"{path}: another process is writing it, ")
        assert not path.exists()
        first.communicate()
    assert first.returncode == 0
    assert path.read_text() == "the first"
    with replacing(path) as temporary:
        temporary.write_text("the second")
    assert path.read_text() == "the second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_where_locks_do_not_reach_the_one_that_was_overtaken_fails_and_no_file_is_torn(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    path = tmp_path / "file.txt"

    def overtaken():
        with replacing(path) as first:
            first.write_text("the first")
            with replacing(path) as second:
                second.write_text("the second")
            first.write_text("the first goes on")

    with pytest.raises(UserError, match="another process is writing it"):
        overtaken()
    assert path.read_text() == "the second"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["new"]


def test_any_other_error_of_a_lock_is_not_swallowed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "the server is gone")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="the server is gone"), replacing(tmp_path / "file.txt"):
        pass


def test_a_file_that_its_holder_renamed_before_the_lock_was_got_is_opened_anew(
    tmp_path, monkeypatch
):
    path, flock, calls = tmp_path / "part", fcntl.flock, []

    def late(file, kind):
        if not calls:
            path.rename(tmp_path / "whole")
        calls.append(kind)
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(path, "held") as file:
        file.write(b"mine")
    assert len(calls) == 2
    assert path.read_bytes() == b"mine"
    assert (tmp_path / "whole").read_bytes() == b""


def test_an_error_that_names_no_file_is_given_its_name(tmp_path):
    """As those of pyarrow, where the disk is full."""
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    table = pa.table({"x": range(10_000)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught, replacing(path) as temporary:
            parquet.write_table(table, temporary, compression="none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea")
