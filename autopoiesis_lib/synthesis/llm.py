"""`LLMProposer`: candidates by any language model behind instructor; when none answers, the search carries on."""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pydantic import ValidationError

from .drafts import PolicyDraft, draft_model
from .endpoint import Answer, Endpoint, EndpointError, Price
from .prompts import messages
from .proposer import Context, Draft, Proposer, ProposerError, Slot
from .record import Recorder, Recording, Scrubber, exchange_key
from .search import SearchProposer

__all__ = ["LLMProposer", "Price"]

BREAKER = 3
"""Failures in a row after which the rest of a generation goes to the fall-back, and the next one starts with a single try."""


class LLMProposer:
    """Writes candidates with language models.

    `models` is "provider/name" or several with weights. With a `base_url` they are asked of that OpenAI-compatible server.
    `api_key` defaults to the provider's own environment variable (OPENAI_API_KEY for a `base_url`). `share` of the slots go to
    the models, the rest to `fallback`, as does every slot for which no usable answer comes. `prices` are dollars for a million
    tokens by model, and are needed for a dollar budget. `record` is a JSONL file that every exchange is appended to; `replay` is
    such a file to answer from instead of asking. `repairs` is how often a model may mend an answer that the cheap gates refuse.
    """

    def __init__(
        self,
        models: str | Mapping[str, float],
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        share: float = 1.0,
        temperature: float = 0.8,
        max_output_tokens: int = 2_048,
        timeout_s: float = 60.0,
        repairs: int = 2,
        attempts: int = 3,
        parallel: int = 8,
        mode: str | None = None,
        prices: Mapping[str, Price] | None = None,
        record: str | Path | None = None,
        replay: str | Path | None = None,
        fallback: Proposer | None = None,
    ) -> None:
        self.models = {models: 1.0} if isinstance(models, str) else dict(models)
        if not self.models or min(self.models.values()) <= 0 or not 0 < share <= 1:
            raise ProposerError("give at least one model, weights above 0, and a share above 0 and at most 1")
        key = api_key or (os.environ.get("OPENAI_API_KEY") if base_url is not None else None)
        self._scrubber = Scrubber([key] if key else [])
        self._settings = {"base_url": base_url, "share": share, "temperature": temperature, "repairs": repairs}
        self.share, self.prices, self._fallback = share, dict(prices or {}), fallback or SearchProposer()
        self._recording = Recording(replay) if replay is not None else None
        self._recorder = Recorder(record, self._scrubber) if record is not None else None
        self._endpoints: dict[str, Endpoint] = {}
        if self._recording is None:
            self._endpoints = {
                model: Endpoint(
                    model, base_url=base_url, api_key=key, timeout_s=timeout_s, max_output_tokens=max_output_tokens,
                    temperature=temperature, repairs=repairs, attempts=attempts, mode=mode, scrubber=self._scrubber,
                )
                for model in self.models
            }  # fmt: skip
        self._parallel = max(1, parallel)
        self._upper_bound = (max_output_tokens, repairs)
        self._lock = threading.Lock()
        self._failures = 0
        self.note = ""
        """The last failure of an endpoint, for progress displays; empty while all is well."""

    def __repr__(self) -> str:
        return f"LLMProposer({', '.join(self.models)})"

    @property
    def name(self) -> str:
        """`llm` and the models."""
        return f"llm:{'+'.join(self.models)}"

    def describe(self) -> Mapping[str, Any]:
        """Settings without the key; prices as they were when the run began."""
        prices = {model: [price.prompt, price.completion] for model, price in self.prices.items()}
        record = {"proposer": "llm", "models": self.models, **self._settings, "prices_per_million_tokens": prices}
        return dict(self._scrubber.value(record))

    def propose(self, context: Context, slots: Sequence[Slot]) -> Sequence[Draft]:
        """One draft a slot; never fails because a model does."""
        if context.dollars_left is not None and (missing := [m for m in self.models if m not in self.prices]):
            raise ProposerError(
                f"a dollar budget needs the price of {missing[0]}; give prices={{model: Price(prompt, completion)}}"
            )
        ours = {slot.id for slot in slots if Random(f"{context.seed}/share/{slot.id}").random() < self.share}
        drafts: dict[int, Draft] = {}
        asked = [slot for slot in slots if slot.id in ours]
        allowance = _Allowance(context.tokens_left, context.dollars_left)
        response_model = draft_model(context.contract, self._lock)
        if self._failures >= BREAKER and asked:  # a single try tells whether the endpoint is back
            drafts[asked[0].id] = self._draft(context, asked[0], response_model, allowance, probe=True)
            asked = asked[1:]
        with ThreadPoolExecutor(self._parallel) as threads:
            found = threads.map(lambda slot: self._draft(context, slot, response_model, allowance), asked)
            drafts.update(zip((slot.id for slot in asked), found, strict=True))
        rest = [slot for slot in slots if slot.id not in drafts]
        drafts.update(zip((slot.id for slot in rest), self._fallback.propose(context, rest), strict=True))
        return [drafts[slot.id] for slot in slots]

    def _draft(
        self,
        context: Context,
        slot: Slot,
        response_model: type[PolicyDraft],
        allowance: "_Allowance",
        *,
        probe: bool = False,
    ) -> Draft:
        model = Random(f"{context.seed}/model/{slot.id}").choices(list(self.models), list(self.models.values()))[0]
        prompt = messages(context, slot)
        key = exchange_key(model, prompt, context.seed, context.generation, slot.id)
        if self._recording is not None:
            return self._replayed(self._recording.exchange(key), context, slot, model)
        if self._failures >= BREAKER and not probe:
            return self._instead(context, slot, key, model, prompt, "the endpoint failed repeatedly", 0)
        bound = self._bound(prompt)
        dollars = self.prices[model].of(*bound) if model in self.prices else 0.0
        if not allowance.reserve(sum(bound), dollars):
            return self._instead(context, slot, key, model, prompt, "the token or dollar budget is used up", 0)
        try:
            answer = self._endpoints[model].ask(prompt, response_model, context.deadline_s)
        except EndpointError as error:
            with self._lock:
                self._failures = BREAKER if error.permanent else self._failures + 1
                self.note = f"{model}: {error}; search carries on"
            allowance.settle(sum(bound), dollars, error.tokens, 0.0)
            return self._instead(context, slot, key, model, prompt, str(error), error.tokens)
        with self._lock:
            self._failures, self.note = 0, ""
        tokens = answer.prompt_tokens + answer.completion_tokens
        cost = self.prices[model].of(answer.prompt_tokens, answer.completion_tokens) if model in self.prices else 0.0
        allowance.settle(sum(bound), dollars, tokens, cost)
        return self._kept(answer, slot, key, model, prompt, tokens, cost)

    def _bound(self, prompt: Sequence[Mapping[str, str]]) -> tuple[int, int]:
        """The most tokens a call can take: each repair sends the prompt and the answers so far again."""
        output, repairs = self._upper_bound
        chars = sum(len(message["content"]) for message in prompt)
        calls = repairs + 1
        return (chars // 2 + output * repairs) * calls, output * calls

    def _kept(self, answer: Answer, slot: Slot, key: str, model: str, prompt: Any, tokens: int, cost: float) -> Draft:
        draft = answer.draft
        assert isinstance(draft, PolicyDraft)
        content = self._scrubber.value(draft.model_dump())
        self._write(
            {
                "key": key, "slot": slot.id, "model": model, "messages": list(prompt), "replies": list(answer.replies),
                "draft": content, "error": None, "tokens": tokens, "dollars": cost, "seconds": round(answer.seconds, 3),
            }
        )  # fmt: skip
        return _as_draft(content, slot, model, tokens, cost)

    def _instead(
        self, context: Context, slot: Slot, key: str, model: str, prompt: Any, error: str, tokens: int
    ) -> Draft:
        self._write(
            {
                "key": key, "slot": slot.id, "model": model, "messages": list(prompt), "replies": [],
                "draft": None, "error": error, "tokens": tokens, "dollars": 0.0, "seconds": 0.0,
            }
        )  # fmt: skip
        return self._searched(context, slot, tokens)

    def _replayed(self, exchange: Mapping[str, Any], context: Context, slot: Slot, model: str) -> Draft:
        tokens = int(exchange["tokens"])
        if exchange["draft"] is None:
            return self._searched(context, slot, tokens)
        try:
            content = PolicyDraft.model_validate(exchange["draft"]).model_dump()
        except ValidationError:
            raise ProposerError("the record holds a damaged draft; replay an undamaged record") from None
        return _as_draft(content, slot, model, tokens, float(exchange["dollars"]))

    def _searched(self, context: Context, slot: Slot, tokens: int) -> Draft:
        draft = self._fallback.propose(context, [slot])[0]
        return replace(draft, details={**draft.details, "tokens": tokens}) if tokens else draft

    def _write(self, exchange: Mapping[str, Any]) -> None:
        if self._recorder is not None:
            with self._lock:
                self._recorder.write(exchange)


class _Allowance:
    """What a generation may still spend; calls in flight count at their upper bound."""

    def __init__(self, tokens: int | None, dollars: float | None) -> None:
        self._tokens, self._dollars = tokens, dollars
        self._lock = threading.Lock()

    def reserve(self, tokens: int, dollars: float) -> bool:
        """Take the upper bound of a call, if there is enough."""
        with self._lock:
            if (self._tokens is not None and tokens > self._tokens) or (
                self._dollars is not None and dollars > self._dollars
            ):
                return False
            self._tokens = None if self._tokens is None else self._tokens - tokens
            self._dollars = None if self._dollars is None else self._dollars - dollars
            return True

    def settle(self, tokens: int, dollars: float, used_tokens: int, used_dollars: float) -> None:
        """Give back what a call did not use."""
        with self._lock:
            self._tokens = None if self._tokens is None else self._tokens + tokens - used_tokens
            self._dollars = None if self._dollars is None else self._dollars + dollars - used_dollars


def _as_draft(content: Mapping[str, str], slot: Slot, model: str, tokens: int, dollars: float) -> Draft:
    return Draft(
        source=content["source"],
        move="llm-repair" if slot.parents and slot.parents[0].gate is not None else "llm",
        rationale=f"{content['rationale']} Expected: {content['expected_effect']}",
        parents=tuple(parent.id for parent in slot.parents),
        details={"model": model, "tokens": tokens, "dollars": dollars},
    )
