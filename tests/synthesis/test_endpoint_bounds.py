"""An endpoint is hostile until proved otherwise: what it may cost, on real sockets, through the real client libraries."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from autopoiesis_lib.synthesis import Context, LLMProposer, Parent, ProposerError, Slot
from autopoiesis_lib.synthesis.endpoint import Endpoint, EndpointError, retry_after
from autopoiesis_lib.synthesis.exchange import nested_too_deeply
from autopoiesis_lib.synthesis.fitting import Request, context_limit
from autopoiesis_lib.synthesis.record import Scrubber
from tests.support.mutation import mutated_json
from tests.synthesis.hostile import (
    GOOD,
    OK,
    Talk,
    bomb,
    chunks_for_ever,
    completion,
    dribbles,
    headers_for_ever,
    hostile,
    interim_for_ever,
    packed,
    redirects,
    says,
    silent,
)

CONTRACT = RequestOrdering()
PARENT = Parent(id=3, source=GOOD, fitness=0.44)
KEY = "sk-secret-0123456789"
PROMPT = [{"role": "user", "content": "Write a policy. " * 40}]
MOST_TOKENS = 100
SCRUBBER = Scrubber([KEY])


class Reply(BaseModel):
    """What the fuzzed endpoint is asked for."""

    rationale: str
    expected_effect: str
    source: str


def proposer(url: str, **changes: Any) -> LLMProposer:
    chosen: dict[str, Any] = {"base_url": url, "api_key": KEY, "timeout_s": 60.0, "attempts": 2, "parallel": 2}
    return LLMProposer("local/tiny", **chosen | changes)


def context(**changes: Any) -> Context:
    return Context(contract=CONTRACT, seed=1, generation=2, **changes)


def slots(count: int) -> list[Slot]:
    return [Slot(id=10 + i, island=0, parents=(PARENT,)) for i in range(count)]


def endpoint(url: str, **changes: Any) -> Endpoint:
    chosen: dict[str, Any] = {
        "base_url": SecretStr(url), "api_key": SecretStr(KEY), "timeout_s": 60.0, "max_output_tokens": MOST_TOKENS,
        "context_tokens": None, "temperature": 0.5, "repairs": 0, "attempts": 1, "mode": None, "scrubber": Scrubber([KEY]),
    }  # fmt: skip
    return Endpoint("local/tiny", **chosen | changes)


def refusal(url: str, deadline_s: float | None = None, **changes: Any) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        endpoint(url, **changes).ask([PROMPT], Reply, deadline_s)
    return caught.value


def deep(levels: int) -> bytes:
    return completion().replace(b'"model": "m"', b'"model": "m", "x": ' + b"[" * levels + b"]" * levels)


SLOW: dict[str, Talk] = {
    "a body a byte at a time": dribbles(OK + b"Content-Length: 9000\r\n\r\n" + completion() + b" " * 9_000),
    "headers a byte at a time": dribbles(OK + b"X-A: " + b"a" * 9_000),
    "a status line a byte at a time": dribbles(b"HTTP/1.1 200 " + b"a" * 9_000),
    "chunks a byte at a time": dribbles(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 9_000),
    "silence": silent,
    "interim replies without end": interim_for_ever,
}


class TestDeadline:
    @pytest.mark.parametrize("name", SLOW)
    def test_ends_a_call_that_the_server_would_draw_out(self, name: str) -> None:
        with hostile(SLOW[name]) as server:
            error = refusal(server.url, deadline_s=0.5)
            assert not server.finished.is_set(), "the server still had something to say"
        assert "did not answer in time" in str(error)

    def test_one_try_is_bounded_without_a_deadline(self) -> None:
        with hostile(SLOW["headers a byte at a time"]) as server:
            error = refusal(server.url, timeout_s=0.3, attempts=2)
            assert not server.finished.is_set()
        assert "did not answer in time" in str(error)

    def test_is_one_moment_for_all_slots(self) -> None:
        with hostile(silent) as server:
            drafts = proposer(server.url, parallel=1).propose(context(deadline_s=0.5), slots(6))
            assert server.connections <= 1, "the slots that waited for the first had no time left"
        assert len(drafts) == 6

    def test_covers_repairs(self) -> None:
        with hostile(says(completion("no policy"))) as server:
            error = refusal(server.url, deadline_s=0.4, repairs=10**6, attempts=10**6)
        assert error.spent.replies

    def test_ends_redirects_that_lead_nowhere(self) -> None:
        with hostile(redirects) as server:
            refusal(server.url)
            assert server.connections <= 6

    @pytest.mark.parametrize("provider", ["openai/gpt", "anthropic/claude"])
    def test_holds_for_a_provider_by_name(self, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip(provider.partition("/")[0])
        with hostile(SLOW["headers a byte at a time"]) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url.removesuffix("/v1"))
            ours = LLMProposer(provider, api_key=KEY, timeout_s=60.0, parallel=1)
            assert ours.propose(context(deadline_s=0.5), slots(1))[0].move != "llm"
            assert server.requests and not server.finished.is_set()
        assert "did not answer in time" in ours.note

    @pytest.mark.slow
    def test_ends_the_whole_command(self, tmp_path: Path) -> None:
        with hostile(dribbles(OK + b"X-A: " + b"a" * 9_000, seconds=1.0)) as server:
            command = [
                sys.executable, "-m", "autopoiesis_cli", "evolve", "request-ordering", "--trace", "azure-conv", "--seconds", "15",
                "--proposer", "llm", "--model", "local/tiny", "--base-url", server.url, "--json",
            ]  # fmt: skip
            ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
            assert not server.finished.is_set()
        assert ran.returncode == 0, ran.stderr
        assert "did not answer in time" in json.loads(ran.stdout)["notes"][0]


LARGE: dict[str, Talk] = {
    "gzip": says(bomb(31, 2_000), b"Content-Encoding: gzip\r\n"),
    "deflate": says(bomb(15, 500), b"Content-Encoding: deflate\r\n"),
    "deflate without its header": says(bomb(-15, 500), b"Content-Encoding: deflate\r\n"),
    "gzip in gzip": says(bomb(31, 500, layers=2), b"Content-Encoding: gzip, gzip\r\n"),
    "gzip in gzip in two headers": says(bomb(31, 500, 2), b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n"),
    "brotli": says(b"\x00" * 64, b"Content-Encoding: br\r\n"),
    "zstandard": says(b"\x00" * 64, b"Content-Encoding: zstd\r\n"),
    "a charset that inflates": says(
        bomb(15, 500), b"", b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain; charset=zlib\r\n"
    ),
    "an error of many bytes": says(b"x" * 20_000_000, b"", b"HTTP/1.1 500 Oops\r\n"),
    "a string of ten million characters": says(completion("x" * 10_000_000)),
    "chunks without end": chunks_for_ever,
    "headers without end": headers_for_ever,
}


class TestReplyBytes:
    @pytest.mark.parametrize("name", LARGE)
    def test_a_reply_that_grows_is_refused_in_little_memory(self, name: str) -> None:
        with hostile(says(completion())) as server:
            endpoint(server.url).ask([PROMPT], Reply, None)  # whatever the libraries load is loaded
        with hostile(LARGE[name]) as server:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            refusal(server.url)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 100_000  # KiB

    def test_a_compressed_reply_of_plain_size_is_read(self) -> None:
        with hostile(says(packed(completion()), b"Content-Encoding: gzip\r\n")) as server:
            assert endpoint(server.url).ask([PROMPT], Reply, None).draft.model_dump()["source"] == GOOD

    @pytest.mark.parametrize("levels", [40, 900, 400_000])
    def test_a_deep_reply_is_refused(self, levels: int) -> None:
        with hostile(says(deep(levels))) as server:
            assert "nested" in str(refusal(server.url))

    def test_depth_is_counted_in_levels(self) -> None:
        assert not nested_too_deeply("[" * 32 + "]" * 32)
        assert nested_too_deeply("[" * 34 + "]" * 34)
        assert not nested_too_deeply(json.dumps("[" * 1_000))

    @pytest.mark.parametrize(
        "content", ["x" * 900_000, "{[" * 400_000, "http://a@" * 90_000, '"' * 900_000, "\\" * 900_000]
    )
    def test_no_text_within_the_bound_uses_the_deadline_up(self, content: str) -> None:
        with hostile(says(completion(content))) as server:
            error = refusal(server.url, deadline_s=30.0)
        assert "did not answer in time" not in str(error)


class TestUsage:
    @pytest.mark.parametrize(
        "usage",
        [
            None, True, -(10**12), 10**400, "many", [], {}, [1, 2],
            {"prompt_tokens": -(10**12), "completion_tokens": -(10**12), "total_tokens": -2 * 10**12},
            {"prompt_tokens": 10**300, "completion_tokens": 10**300, "total_tokens": 10**300},
            {"prompt_tokens": float("nan"), "completion_tokens": float("inf"), "total_tokens": 1},
            {"prompt_tokens": "-7", "completion_tokens": [], "total_tokens": {}},
            {"prompt_tokens": False, "completion_tokens": False, "total_tokens": False},
            {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        ],
        ids=lambda item: ascii(item)[:24],
    )  # fmt: skip
    def test_is_held_to_what_the_request_could_have_used(self, usage: Any) -> None:
        with hostile(says(completion(usage=usage))) as server:
            try:
                spent = endpoint(server.url).ask([PROMPT], Reply, None).spent
            except EndpointError as error:
                spent = error.spent
            sent = max(map(len, server.requests))
        if spent.replies:
            assert 0 < spent.prompt_tokens <= 6 * sent
            assert 0 < spent.completion_tokens <= MOST_TOKENS

    def test_a_count_that_can_be_true_is_believed(self) -> None:
        with hostile(
            says(completion(usage={"prompt_tokens": 200, "completion_tokens": 30, "total_tokens": 230}))
        ) as server:
            spent = endpoint(server.url).ask([PROMPT], Reply, None).spent
        assert (spent.prompt_tokens, spent.completion_tokens) == (200, 30)

    def test_a_negative_count_does_not_lift_a_budget(self) -> None:
        usage = {"prompt_tokens": -(10**12), "completion_tokens": -(10**12), "total_tokens": -(10**12)}
        with hostile(says(completion(usage=usage))) as server:
            ours = proposer(server.url, max_output_tokens=100, repairs=0, parallel=1)
            drafts = ours.propose(context(tokens_left=12_000), slots(40))
            asked = len(server.requests)
        assert sum(int(draft.details.get("tokens", 0)) for draft in drafts) > 1_000
        assert 0 < asked < 20


class TestRetryAfter:
    @pytest.mark.parametrize(
        "told", ["1e9", "-5", "nan", "inf", "-inf", "", "soon", "0x10", "1_0", "\u0661", "9" * 5_000]
    )
    def test_what_is_no_number_of_seconds_or_date_says_nothing(self, told: str) -> None:
        assert retry_after(told) is None

    @pytest.mark.parametrize(
        ("told", "seconds"),
        [
            ("0", 0.0), (" 7 ", 7.0), ("1.5", 1.5), ("1000000000", 60.0), ("9" * 18, 60.0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ],
    )  # fmt: skip
    def test_waits_are_between_none_and_a_minute(self, told: str, seconds: float) -> None:
        assert retry_after(told) == seconds

    def test_a_date_is_as_far_away_as_it_is(self) -> None:
        waits = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
        assert waits is not None and 0 < waits <= 30

    def test_a_wait_beyond_the_deadline_is_not_begun(self) -> None:
        busy = says(b"{}", b"Retry-After: 1000000000\r\n", b"HTTP/1.1 429 Busy\r\n")
        with hostile(busy) as server:
            error = refusal(server.url, deadline_s=45.0, attempts=9)
            assert server.connections == 1
        assert "limits the rate" in str(error)


class TestReplyText:
    def test_a_reason_is_kept_with_escapes(self) -> None:
        content = {"rationale": "a\u202eb\x1b[2Jc", "expected_effect": "d\u2066e\x00", "source": GOOD}
        with hostile(says(completion(json.dumps(content)))) as server:
            draft = proposer(server.url).propose(context(), slots(1))[0]
        assert draft.move == "llm"
        assert draft.rationale == r"a\u202eb\x1b[2Jc Expected: d\u2066e\x00"

    @pytest.mark.parametrize("letter", ["\u202e", "\x1b", "\x00", "\x0b", "\u2028", "\r", "\u200b"])
    def test_a_policy_with_a_character_nobody_sees_is_refused(self, letter: str) -> None:
        content = {"rationale": "a", "expected_effect": "b", "source": f"{GOOD}# {letter} x\n"}
        with hostile(says(completion(json.dumps(content)))) as server:
            ours = proposer(server.url, repairs=0)
            assert ours.propose(context(), slots(1))[0].move != "llm"
        assert "cannot be seen by a reader" in ours.note
        assert letter not in ours.note

    @pytest.mark.parametrize(
        "body",
        [
            b"[]", b"null", b"1e400", b"NaN", b'"x"', b"", b"\xff\xfe", b"[" * 9, completion("\ud800"), completion(7),
            completion(choices="no"), completion(choices=[1]), completion(choices=[{"message": []}]), completion(choices={}),
            completion([{"type": "text"}]),
            completion('{"rationale": "\\ud800", "expected_effect": "x", "source": "y"}'),
        ],
        ids=lambda item: ascii(item)[-30:],
    )  # fmt: skip
    def test_a_reply_of_the_wrong_shape_is_one_typed_error(self, body: bytes) -> None:
        with hostile(says(body)) as server:
            error = refusal(server.url, repairs=1)
        assert "\n" not in str(error) and len(str(error)) <= 300

    def test_an_error_of_the_endpoint_is_shown_with_escapes(self) -> None:
        body = json.dumps({"error": {"message": "no\x1b[2J\u202esuch\nmodel"}}).encode()
        with hostile(says(body, b"", b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n")) as server:
            error = refusal(server.url)
        assert "\x1b" not in str(error) and "\u202e" not in str(error) and "\n" not in str(error)


class TestSecrets:
    SECRETS = ("wanda", "hunter2", "hunter%32", "sesame99", "fragment7")
    URL = "http://wanda:hunter%32@{}/v1?key=sesame99#fragment7"

    def test_those_of_a_url_reach_the_server_and_nothing_else(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        record = tmp_path / "exchanges.jsonl"
        with caplog.at_level("DEBUG"), hostile(says(completion())) as server:
            host = server.url.removeprefix("http://").removesuffix("/v1")
            ours = proposer(self.URL.format(host), record=record)
            drafts = ours.propose(context(), slots(1))
            sent = server.requests[0]
        assert b"/v1/chat/completions?key=sesame99 " in sent and b"Basic d2FuZGE6aHVudGVyMg==" in sent
        shown = record.read_text() + caplog.text + repr(drafts) + repr(ours) + repr(vars(ours)) + ours.note
        shown += json.dumps(ours.describe())
        assert not [secret for secret in (*self.SECRETS, KEY, "d2FuZGE6aHVudGVyMg") if secret in shown]
        assert ours.describe()["base_url"] == f"http://***@{host}/v1?key=***#***"
        assert record.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "url",
        [
            "http://wanda:hunter2/x@host/v1", "wanda:hunter2@host/v1", "ftp://wanda:hunter2@host", "http://wanda:hunter2@/v1",
            "http://wanda:hunter2@host:port/v1", "http:///wanda:hunter2@host", "http://[wanda:hunter2@host",
            "http:\\\\wanda:hunter2@h", "http://wanda:hunter2@host\x00/v1",
        ],
    )  # fmt: skip
    def test_a_url_that_is_none_is_refused_and_not_shown(self, url: str) -> None:
        with pytest.raises(ProposerError) as caught:
            proposer(url)
        assert "hunter2" not in str(caught.value) and "wanda" not in str(caught.value)

    def test_a_key_that_cannot_be_sent_is_not_quoted(self) -> None:
        with hostile(says(completion())) as server:
            ours = proposer(server.url, api_key=f"{KEY}\n", record=None)
            ours.propose(context(), slots(1))
        assert ours.note and KEY not in ours.note

    def test_a_key_is_a_type_that_never_prints(self) -> None:
        ours = proposer("http://127.0.0.1:9/v1", api_key=SecretStr(KEY))
        assert KEY not in repr(vars(ours)) + str(ours) + json.dumps(ours.describe())


ODD_TEXTS = [
    "\ud800", "\x00", "\x1b[2J", "\u202e", "[" * 500, "9" * 5_000, "http://u:p@h?k=v",
    "context length is 9999999999999999 tokens",
]  # fmt: skip
texts = st.text(st.characters(), max_size=40) | st.sampled_from(ODD_TEXTS)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**12), True, 1e308])
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries({"role": st.just("assistant") | values, "content": texts | values})
choice = st.fixed_dictionaries(
    {"index": values, "finish_reason": st.just("stop") | values, "message": messages | values}
)
counts = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["prompt_tokens", "completion_tokens", "total_tokens"], values)
)
replies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["id", "object", "created", "model", "error"], values),
        "choices": values | st.lists(values | choice, max_size=2),
        "usage": values | counts,
    },
)


class TestFuzz:
    @pytest.mark.slow
    @settings(max_examples=4_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        body=replies | values | st.binary(max_size=60),
        status=st.sampled_from([200, 200, 200, 204, 302, 400, 404, 429, 500, 599]),
        media=st.sampled_from(["application/json", "text/plain; charset=zlib", "text/html; charset=utf-16", ""]),
        encoding=st.sampled_from(["", "", "", "gzip", "deflate", "br", "gzip, gzip"]),
        retry=st.sampled_from(["0", "1e9", "nan", "Fri, 31 Dec 9999 23:59:59 GMT"]),
    )
    def test_any_reply_is_an_answer_or_a_typed_error(
        self, body: Any, status: int, media: str, encoding: str, retry: str
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": media, "retry-after": retry, "location": "/v1/x"}
        if encoding:
            headers["content-encoding"] = encoding
        ours = in_process()
        REPLY[:] = [lambda: httpx2.Response(status, headers=headers, stream=httpx2.ByteStream(content))]
        try:
            spent = ours.ask([PROMPT], Reply, 30.0).spent
        except EndpointError as error:
            spent = error.spent
            assert str(error).isprintable() or not str(error)
        assert 0 <= spent.completion_tokens <= MOST_TOKENS * max(1, len(spent.replies))
        json.dumps(spent.replies)

    @pytest.mark.slow
    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(seed=st.integers(0, 2**63), told=texts, retry=texts)
    def test_whatever_is_read_of_a_reply_stays_in_bounds(self, seed: int, told: str, retry: str) -> None:
        """Read 200 changed replies for each of the 500 seeds: 100,000 in all."""
        from openai._models import construct_type
        from openai.types.chat import ChatCompletion

        from autopoiesis_lib.synthesis.endpoint import _Seen

        random = Random(seed)
        for _ in range(200):
            try:
                reply = json.loads(mutated_json(WHOLE_REPLY, random).decode("utf-8", "surrogatepass"))
            except ValueError:  # a number of more digits than Python reads
                continue
            seen = _Seen()
            seen.ask(messages=PROMPT, max_tokens=MOST_TOKENS)
            seen.note(construct_type(value=reply, type_=ChatCompletion))
            spent = seen.spent(0.0, SCRUBBER)
            assert 0 < spent.prompt_tokens < 2_000 and 0 < spent.completion_tokens <= MOST_TOKENS
            json.loads(json.dumps(spent.replies))
        waits = retry_after(retry)
        assert waits is None or 0 <= waits <= 60
        limit = context_limit(told)
        assert limit is None or 0 <= limit < 10**15
        changed = Request(2_048, 0.8).after(told, PROMPT)
        if changed is not None:
            assert changed.fit([PROMPT])[1] <= 2_048


WHOLE_REPLY = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {
            "index": 0, "finish_reason": "stop", "logprobs": None,
            "message": {"role": "assistant", "content": "{\"source\": \"x\"}", "refusal": None, "tool_calls": None},
        }
    ],
    "usage": {
        "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}  # fmt: skip

REPLY: list[Callable[[], httpx2.Response]] = []
"""What the endpoint of `in_process` replies next."""


@cache
def in_process() -> Endpoint:
    """An endpoint whose client gets its replies without a network: below our bounds, above the sockets."""
    from autopoiesis_lib.synthesis import exchange

    ours = endpoint("http://127.0.0.1:9/v1")
    http = ours._client.client._client
    http._transport = httpx2.MockTransport(lambda _: REPLY[0]())
    exchange.bound(ours._client.client)
    return ours
