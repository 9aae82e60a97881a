"""Downloads from a server on this machine: cut and resumed, refused, no network."""

import http.server
import json
import os
import re
import socket
import threading
import zipfile

import numpy as np
import pytest

from bfmpipe import cli
from bfmpipe.data.download import download
from bfmpipe.types import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` as /walker/rnd.zip; what it does beside that is set by the tests."""

    content = CONTENT
    ranges = True
    cuts: tuple[int, ...] = ()  # bytes after which the answers are cut, one after the other
    says_length = True
    shifted = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/walker/rnd.zip":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        size = len(server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            shown = start + 1 if server.shifted else start
            self.send_header("Content-Range", f"bytes {shown}-{size - 1}/{size}")
        if server.says_length:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        end = size
        if server.cuts:
            end, server.cuts = start + server.cuts[0], server.cuts[1:]
        self.wfile.write(server.content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sets" / "rnd.zip"


@pytest.fixture
def part(path):
    path.parent.mkdir()
    return path.with_name("rnd.zip.part")


def fetch(server, path, name="walker/rnd.zip", **options):
    download(f"{server.url}/{name}", path, timeout=5, **options)


def refused(server, path, **options):
    with pytest.raises(UserError) as caught:
        fetch(server, path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert not path.exists()
    return text


def test_a_file_arrives_whole(server, path):
    seen = []
    fetch(server, path, progress=lambda *figures: seen.append(figures))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["rnd.zip"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert server.asked == [None]


def test_a_file_that_is_there_is_not_fetched_again(server, path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    fetch(server, path)
    assert (path.read_bytes(), server.asked) == (b"mine", [])


def test_a_cut_connection_is_taken_up_as_long_as_something_comes(server, path):
    server.cuts = (1_000_000, 500_000)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_cut_download_keeps_what_came_and_the_next_call_goes_on(server, path):
    server.cuts = (1_000_000, 0)
    said = refused(server, path)
    part = path.with_name("rnd.zip.part")
    assert "the connection was cut after 1,000,000 bytes, which are kept in " in said
    assert said.endswith(f"{part}; the same command goes on from there")
    assert part.read_bytes() == CONTENT[:1_000_000]
    server.asked.clear()
    fetch(server, path)
    assert server.asked == ["bytes=1000000-"]
    assert path.read_bytes() == CONTENT
    assert not part.exists()


def test_a_server_without_ranges_sends_all_again(server, path, part):
    part.write_bytes(CONTENT[:1_000_000])
    server.ranges = False
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000000-"]


def test_a_server_without_ranges_that_always_cuts_is_given_up(server, path):
    server.ranges, server.cuts = False, (1000,) * 10
    assert "the connection was cut after 1,000 bytes" in refused(server, path)
    assert len(server.asked) == 2


def test_a_server_that_does_not_say_how_much_there_is(server, path):
    server.says_length = False
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_whole_already_only_gets_its_name(server, path, part):
    part.write_bytes(CONTENT)
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_of_another_file(server, path, part):
    part.write_bytes(CONTENT + b"more")
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_bytes_from_elsewhere_are_refused(server, path, part):
    part.write_bytes(CONTENT[:1000])
    server.shifted = True
    assert "the server sent other bytes than those asked for" in refused(server, path)
    assert part.read_bytes() == CONTENT[:1000]


def test_a_file_that_is_not_there_is_named(server, path):
    url = f"{server.url}/walker/rdn.zip"
    assert refused(server, path, name="walker/rdn.zip") == f"{url}: the server says 404 Not Found"


def test_what_is_no_zip_is_thrown_away(server, path):
    server.content = b"<html>log in to the network of this hotel</html>"
    said = refused(server, path, check=zipfile.is_zipfile)
    assert said.endswith("what arrived is not the file that was asked for; try again")
    assert list(path.parent.iterdir()) == []


def test_no_network_is_said_so(path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/walker/rnd.zip"
        with pytest.raises(UserError) as caught:
            download(url, path, timeout=5)
    text = str(caught.value)
    assert text.startswith(f"{url}: cannot be reached (")
    assert "Connection refused" in text
    assert "this machine may have no network: fetch the file on another one" in text


def test_a_name_that_nobody_knows_is_said_so(path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"cannot be reached \(.*name resolution"):
        download("https://nowhere.invalid/rnd.zip", path)


def test_two_downloads_do_not_write_to_one_file(server, path, part):
    import fcntl

    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert refused(server, path) == f"{part}: another download is writing to it"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_may_not_be_written_is_named(server, path, part):
    path.parent.chmod(0o500)
    assert refused(server, path) == f"{part}: cannot be written (Permission denied)"


def test_a_place_that_is_none_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(server, tmp_path / "file" / "rnd.zip")
    assert said == f"{tmp_path / 'file' / 'rnd.zip.part'}: cannot be written (File exists)"


# the command


def run(served, archive, **changed):
    cfg = {"domain": "walker", "algorithm": "rnd", "server": served.url, **changed}

    return cli.main(["download", "--cfg", json.dumps(cfg), "--archive", str(archive)])


def test_the_command_fetches_a_zip_that_is_imported(server, path, tmp_path, capsys):
    from bfmpipe.data import exorl
    from tests.data import exorl_files as files

    made = files.pack(files.write(tmp_path / "buffer", 2, steps=4), tmp_path / "made.zip")
    server.content = made.read_bytes()
    assert run(server, path) == 0
    assert run(server, path) == 0
    assert "is there already; delete it to download it again" in capsys.readouterr().out
    assert len(server.asked) == 1
    explorer = exorl.Explorer(exorl.Config(path=str(path)), files.domain())
    assert len(list(explorer.episodes())) == 2


def test_what_is_there_and_is_no_zip_is_not_taken_for_the_set(server, tmp_path, capsys):
    garbage = tmp_path / "rnd.zip"
    garbage.write_bytes(b"PK\x03\x04 and no end")
    for place, said in (
        (garbage, "is there already and is no whole zip; move it away"),
        (tmp_path, "is a directory, not a file"),
    ):
        assert run(server, place) == 2
        assert f"bfmpipe download: error: {place}: {said}" in capsys.readouterr().err
    assert garbage.read_bytes() == b"PK\x03\x04 and no end"
    assert server.asked == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "rdn"}, "'rdn' is not a choice; did you mean rnd?"),
        ({"domain": "humanoid"}, "'humanoid' is not a choice"),
        ({"server": "file:///etc"}, "server: 'file:///etc'"),
        ({"domain": "quadruped"}, "the server says 404 Not Found"),
    ],
)
def test_a_wrong_set_is_one_sentence(server, path, capsys, changed, said):
    assert run(server, path, **changed) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bfmpipe download: error: ")
    assert said in last
