"""The bounded reader and the atomic writer: no file can make them wait, follow a link or take more memory than stated."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autopoiesis_lib.protocol.files import (
    FileProblem,
    FileRefusedError,
    FileUnwritableError,
    read_bounded,
    write_atomically,
)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS = {
    "fifo": (_fifo, FileProblem.NOT_REGULAR),
    "folder": (Path.mkdir, FileProblem.NOT_REGULAR),
    "link": (lambda path: path.symlink_to("/etc/passwd"), FileProblem.LINK),
    "dangling link": (lambda path: path.symlink_to("nowhere"), FileProblem.LINK),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), FileProblem.LINK),
    "socket": (_socket, FileProblem.UNREADABLE),
    "sparse gigabyte": (_sparse, FileProblem.TOO_LARGE),
    "missing": (lambda _path: None, FileProblem.MISSING),
}


class TestReading:
    @pytest.mark.parametrize("kind", KINDS)
    def test_anything_but_a_small_regular_file_is_refused(self, tmp_path: Path, kind: str) -> None:
        make, problem = KINDS[kind]
        make(tmp_path / "file")
        signal.alarm(20)  # a blocking read would never come back
        try:
            with pytest.raises(FileRefusedError) as refused:
                read_bounded(tmp_path / "file", 1_000)
        finally:
            signal.alarm(0)
        assert refused.value.problem is problem

    def test_a_device_named_directly_is_refused(self) -> None:
        with pytest.raises(FileRefusedError) as refused:
            read_bounded("/dev/zero", 1_000, follow_links=True)
        assert refused.value.problem is FileProblem.NOT_REGULAR

    def test_the_bound_is_exact(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * 1_000)
        assert len(read_bounded(tmp_path / "file", 1_000)) == 1_000
        with pytest.raises(FileRefusedError, match="1000 bytes; at most 999"):
            read_bounded(tmp_path / "file", 999)

    def test_a_file_that_says_it_is_empty_is_still_bounded(self) -> None:
        with pytest.raises(FileRefusedError):
            read_bounded("/proc/kallsyms", 10)  # st_size is 0, the content is megabytes

    def test_a_link_that_a_person_named_may_be_followed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"hello")
        (tmp_path / "link").symlink_to("file")
        assert read_bounded(tmp_path / "link", 10, follow_links=True) == b"hello"

    def test_a_nul_in_a_path_is_refused(self) -> None:
        with pytest.raises(FileRefusedError):
            read_bounded("a\0b", 10)


class TestWriting:
    def test_the_mode_does_not_depend_on_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            write_atomically(tmp_path / "folder" / "file", "text")
        finally:
            os.umask(before)
        assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o644
        assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755

    def test_a_folder_that_is_a_link_is_not_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "ours").symlink_to("theirs")
        with pytest.raises(FileUnwritableError):
            write_atomically(tmp_path / "ours" / "file", "text")
        assert list((tmp_path / "theirs").iterdir()) == []

    def test_a_link_in_its_place_is_replaced_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("precious")
        (tmp_path / "file").symlink_to("victim")
        write_atomically(tmp_path / "file", "text")
        assert (tmp_path / "victim").read_text() == "precious" and (tmp_path / "file").read_text() == "text"

    def test_a_full_disk_leaves_the_old_file_and_no_rest(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
            "from autopoiesis_lib.protocol.files import *\n"
            "try: write_atomically(sys.argv[1], 'x' * 100)\n"
            "except FileUnwritableError: print('refused')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "file")], capture_output=True, text=True, check=True
        )
        assert done.stdout == "refused\n"
        assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"
