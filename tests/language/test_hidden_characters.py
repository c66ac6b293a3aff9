"""What a reviewer read is what runs: a policy has no character that a reader cannot see, and its file is a plain one."""

import os
import stat
from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy, PolicyError
from autopoiesis_lib.policy import read_policy_text

CONTRACT = RequestOrdering()
GOOD = BASELINES["fcfs"]
LINES = GOOD.count("\n")
HIDDEN = [*map(chr, range(32)), "\x7f", "\x85", "\x9b", "\u00ad", "\u061c", "\u200b", "\u200d", "\u200e", "\u202a", "\u202e",
          "\u2028", "\u2029", "\u2066", "\u2069", "\ufeff", "\ud800", "\ue000", "\U000e0041"]  # fmt: skip
HIDDEN = [letter for letter in HIDDEN if letter not in "\n\t"]
PLACES = {"comment": "# a {} b\n", "string": 'def h() -> int:\n    """a {} b"""\n    return 1\n', "code": "X = {}1\n"}


class TestHiddenCharacters:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("letter", HIDDEN, ids=ascii)
    def test_are_refused_wherever_they_stand(self, letter: str, place: str) -> None:
        text = GOOD + PLACES[place].format(letter)
        with pytest.raises(PolicyError) as caught:
            Policy.from_source(text, CONTRACT)
        line = LINES + (2 if place == "string" else 1)
        assert str(caught.value).startswith(f"line {line}: the character {ascii(letter)[1:-1]} (U+{ord(letter):04X})")

    @pytest.mark.parametrize("text", ["# \u00e9\u4e2d\u0416 \u2265 \u00b5s\n", "# a\tb\n", "# a\r\n# b\r\n"])
    def test_letters_tabs_and_ends_of_lines_are_not_among_them(self, text: str) -> None:
        assert Policy.from_source(GOOD + text, CONTRACT).digest == Policy.from_source(GOOD, CONTRACT).digest

    def test_a_carriage_return_does_not_hide_a_line_of_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.py"
        path.write_bytes(GOOD.encode() + b"X = 2 # harmless\rX = 1\n")
        with pytest.raises(PolicyError, match="U\\+000D"):
            Policy.from_file(path, CONTRACT)


class TestPolicyFile:
    def test_is_read_with_any_ends_of_lines_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real.py").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
        (tmp_path / "link.py").symlink_to("real.py")
        assert read_policy_text(tmp_path / "link.py") == GOOD

    @pytest.mark.parametrize("kind", ["fifo", "folder", "device", "missing", "large", "latin-1", "utf-16", "name"])
    def test_that_is_none_is_one_typed_error(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "policy.py"
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "device":
                path = Path("/dev/zero")
                assert stat.S_ISCHR(path.stat().st_mode)
            case "large":
                path.write_text(GOOD + "#" * 65_536)
            case "latin-1":
                path.write_bytes(GOOD.encode() + b"# \xe9\n")
            case "utf-16":
                path.write_bytes(GOOD.encode("utf-16"))
            case "name":
                path = tmp_path / "a\0b.py"
        with pytest.raises(PolicyError) as caught:
            read_policy_text(path)
        assert "\n" not in str(caught.value)
