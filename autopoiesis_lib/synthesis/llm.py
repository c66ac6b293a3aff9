"""`LLMProposer`: candidates from any language model behind instructor, with the program search as fallback."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from ..gates import types
from ..policy import Policy
from ..redaction import redacted_url, secrets_in_url
from .drafts import PolicyDraft, Shape, draft_model
from .endpoint import Endpoint, EndpointError, Price, Spent, basic_credentials
from .prompts import versions
from .proposer import Context, Draft, Proposer, ProposerError, Slot
from .record import Recorder, Recording, Scrubber, exchange_key
from .search import SearchProposer
from .weights import Outcome, Per, Tally

__all__ = ["LLMProposer", "Price"]

BREAKER = 3
"""Number of failures in a row after which the rest of a generation goes to the fallback.

The next generation then starts with a single attempt.
"""


Secret = str | SecretStr


class LLMProposer:
    """A proposer that writes candidates with language models.

    Args:
        models: "provider/name", or a mapping of several names to weights.
        base_url: the OpenAI-compatible server of all models, or a mapping of models to servers. A model that the
            mapping omits is requested from its provider.
        api_key: the key of all models, or a mapping of models to keys. The default is the provider's own environment
            variable, and OPENAI_API_KEY for a model with a `base_url`.
        share: the share of the slots that go to the models. The rest goes to `fallback`.
        temperature: the sampling temperature.
        max_output_tokens: the maximum number of tokens of an answer.
        context_tokens: the maximum number of tokens of prompt and answer together. If None, the limit is learned when
            the server refuses a request.
        timeout_s: the longest time of one request, in seconds.
        repairs: the number of times that a model may correct an answer that the cheap gates refuse.
        attempts: the number of attempts if the endpoint fails temporarily.
        parallel: the number of concurrent calls.
        mode: the name of an instructor mode.
        prices: the prices by model, which a dollar budget needs.
        record: a JSONL file to which every exchange is appended.
        replay: a record from which the answers are taken instead of from a model.
        fallback: the proposer for the slots without a model or without a usable answer; `SearchProposer()` if None.
        adapt: the unit of cost, "tokens" (also True), "dollars" or "seconds", by which the weights of several models
            move towards those that give more for their cost. A run resumed with the same `record` keeps what it
            learned.
        shape: "linear" makes a server with guided decoding restrict answers to weighted sums, for models too small to
            write a program.

    Keys are neither shown nor stored, and neither are the user name, password and query values of a URL.
    """

    def __init__(
        self,
        models: str | Mapping[str, float],
        *,
        base_url: Secret | Mapping[str, Secret] | None = None,
        api_key: Secret | Mapping[str, Secret] | None = None,
        share: float = 1.0,
        temperature: float = 0.8,
        max_output_tokens: int = 2_048,
        context_tokens: int | None = None,
        timeout_s: float = 60.0,
        repairs: int = 2,
        attempts: int = 3,
        parallel: int = 8,
        mode: str | None = None,
        prices: Mapping[str, Price] | None = None,
        record: str | Path | None = None,
        replay: str | Path | None = None,
        fallback: Proposer | None = None,
        adapt: bool | Per = False,
        shape: Shape = "any",
    ) -> None:
        self.models = {models: 1.0} if isinstance(models, str) else dict(models)
        if not self.models or min(self.models.values()) <= 0 or not 0 < share <= 1:
            raise ProposerError("give at least one model, weights above 0, and a share above 0 and at most 1")
        urls, keys = self._each("base_url", base_url), self._each("api_key", api_key)
        for model in self.models:
            if urls[model] is not None:
                keys[model] = keys[model] or _secret(os.environ.get("OPENAI_API_KEY"))
        self._scrubber = Scrubber(
            [
                *(key.get_secret_value() for key in keys.values() if key is not None),
                *(part for url in urls.values() if url is not None for part in _secrets_of(url.get_secret_value())),
            ]
        )
        self._per: Per | None = ("tokens" if adapt is True else adapt) or None
        if self._per == "dollars" and (missing := [model for model in self.models if model not in (prices or {})]):
            raise ProposerError(f"adapt='dollars' needs the price of {missing[0]}; give prices={{model: Price(...)}}")
        shown = {model: None if url is None else redacted_url(url.get_secret_value()) for model, url in urls.items()}
        self._settings = {
            "base_url": shown if isinstance(base_url, Mapping) else next(iter(shown.values())), "share": share,
            "temperature": temperature, "repairs": repairs, "adapt": self._per, "shape": shape,
        }  # fmt: skip
        self.share, self.shape, self.prices = share, shape, dict(prices or {})
        self._fallback = fallback or SearchProposer()
        self._recording = Recording(replay) if replay is not None else None
        self._recorder = Recorder(record, self._scrubber) if record is not None else None
        self._outcomes = _outcomes_of(record) if record is not None and self._per is not None else {}
        """Outcomes by generation and slot. A repeated call of a resumed run replaces the earlier outcome."""
        self._endpoints: dict[str, Endpoint] = {}
        if self._recording is None:
            self._endpoints = {
                model: Endpoint(
                    model, base_url=urls[model], api_key=keys[model], timeout_s=timeout_s,
                    max_output_tokens=max_output_tokens, context_tokens=context_tokens, temperature=temperature,
                    repairs=repairs, attempts=attempts, mode=mode, scrubber=self._scrubber,
                )
                for model in self.models
            }  # fmt: skip
        self._parallel = max(1, parallel)
        self._upper_bound = (max_output_tokens, repairs, context_tokens)
        self._lock = threading.Lock()
        self._failures = 0
        self.note = ""
        """The last failure of an endpoint, for progress displays; empty if the last call succeeded."""

    def _each(self, name: str, given: Secret | Mapping[str, Secret] | None) -> dict[str, SecretStr | None]:
        """Return a setting by model."""
        if not isinstance(given, Mapping):
            return dict.fromkeys(self.models, _secret(given))
        if unknown := sorted(given.keys() - self.models.keys()):
            raise ProposerError(f"{name}: there is no model {unknown[0]!r} among {', '.join(self.models)}")
        return {model: _secret(given.get(model)) for model in self.models}

    def __repr__(self) -> str:
        return f"LLMProposer({', '.join(self.models)})"

    @property
    def name(self) -> str:
        """`llm` and the models."""
        return f"llm:{'+'.join(self.models)}"

    def describe(self) -> Mapping[str, Any]:
        """Return the settings without keys and secret parts of URLs. Prices are those of the run's start."""
        prices = {model: [price.prompt, price.completion] for model, price in self.prices.items()}
        record = {"proposer": "llm", "models": self.models, **self._settings, "prices_per_million_tokens": prices}
        return dict(self._scrubber.value(record))

    def propose(self, context: Context, slots: Sequence[Slot]) -> Sequence[Draft]:
        """Return one draft per slot. The failure of a model never raises an error."""
        if context.dollars_left is not None and (missing := [m for m in self.models if m not in self.prices]):
            raise ProposerError(
                f"a dollar budget needs the price of {missing[0]}; give prices={{model: Price(prompt, completion)}}"
            )
        ours = {slot.id for slot in slots if Random(f"{context.seed}/share/{slot.id}").random() < self.share}
        until = None if context.deadline_s is None else time.monotonic() + context.deadline_s
        if self._recording is None:
            with self._lock:
                types.warm(context.contract)  # otherwise the first answer would wait for it
        drafts: dict[int, Draft] = {}
        asked = [slot for slot in slots if slot.id in ours]
        allowance = _Allowance(context.tokens_left, context.dollars_left)
        response_model = draft_model(context.contract, self._lock, self.shape)
        weights = self.weights(context)
        if self._failures >= BREAKER and asked:  # a single attempt shows if the endpoint works again
            drafts[asked[0].id] = self._draft(context, asked[0], response_model, allowance, weights, until, probe=True)
            asked = asked[1:]
        with ThreadPoolExecutor(self._parallel) as threads:
            found = threads.map(
                lambda slot: self._draft(context, slot, response_model, allowance, weights, until), asked
            )
            drafts.update(zip((slot.id for slot in asked), found, strict=True))
        rest = [slot for slot in slots if slot.id not in drafts]
        drafts.update(zip((slot.id for slot in rest), self._fallback.propose(context, rest), strict=True))
        return [drafts[slot.id] for slot in slots]

    def weights(self, context: Context) -> Mapping[str, float]:
        """Return the share of each model in a generation.

        It is the given weight, adjusted by the results of earlier generations if `adapt` is set.
        """
        if self._per is None:
            return self.models
        baselines = {
            Policy.from_source(text, context.contract).digest for text in context.contract.baselines().values()
        }
        tally = Tally(self._per, known=baselines)
        tally.add(outcome for outcome in self._outcomes.values() if outcome.generation < context.generation)
        return tally.weights(self.models)

    def _draft(
        self,
        context: Context,
        slot: Slot,
        response_model: type[PolicyDraft],
        allowance: "_Allowance",
        weights: Mapping[str, float],
        until: float | None,
        *,
        probe: bool = False,
    ) -> Draft:
        model = Random(f"{context.seed}/model/{slot.id}").choices(list(weights), list(weights.values()))[0]
        prompts = versions(context, slot)
        key = exchange_key(model, prompts[0], context.seed, context.generation, slot.id)
        call = _Call(context=context, slot=slot, model=model, key=key, prompt=prompts[0])
        if self._recording is not None:
            return self._replayed(self._recording.exchange(key), call)
        if self._failures >= BREAKER and not probe:
            return self._done(call, None, "the endpoint failed repeatedly", Spent())
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            return self._done(call, None, "the time is up", Spent())
        bound = self._bound(prompts[0])
        dollars = self.prices[model].of(*bound) if model in self.prices else 0.0
        if not allowance.reserve(sum(bound), dollars):
            return self._done(call, None, "the token or dollar budget is used up", Spent())
        draft, failed = None, None
        try:
            answer = self._endpoints[model].ask(prompts, response_model, left)
        except EndpointError as error:
            failed, spent = str(error), error.spent
            with self._lock:
                # A model that answers badly does not mean a broken endpoint: the next slot may do better.
                self._failures = BREAKER if error.permanent else 0 if error.answered else self._failures + 1
                self.note = f"{model}: {failed}; search carries on"
        else:
            spent = answer.spent
            assert isinstance(answer.draft, PolicyDraft)
            draft = self._scrubber.value(answer.draft.model_dump())
            with self._lock:
                self._failures, self.note = 0, ""
        allowance.settle(sum(bound), dollars, spent.tokens, self._price(model, spent))
        return self._done(call, draft, failed, spent)

    def _bound(self, prompt: Sequence[Mapping[str, str]]) -> tuple[int, int]:
        """Return upper bounds on the prompt and completion tokens of a call.

        Each repair sends the prompt and the previous answers again.
        """
        output, repairs, context = self._upper_bound
        chars = sum(len(message["content"]) for message in prompt)
        calls = repairs + 1
        asked = chars // 2 + output * repairs
        return (asked if context is None else min(asked, context)) * calls, output * calls

    def _price(self, model: str, spent: Spent) -> float:
        return self.prices[model].of(spent.prompt_tokens, spent.completion_tokens) if model in self.prices else 0.0

    def _done(self, call: "_Call", content: Mapping[str, str] | None, error: str | None, spent: Spent) -> Draft:
        """Record a finished call and return its draft."""
        exchange = {
            "key": call.key, "slot": call.slot.id, "model": call.model, "messages": list(call.prompt),
            "replies": list(spent.replies), "refused": list(spent.refused), "draft": content, "error": error,
            "tokens": spent.tokens, "dollars": self._price(call.model, spent), "seconds": round(spent.seconds, 3),
        }  # fmt: skip
        if self._per is not None and (content is not None or spent.replies or spent.seconds):
            exchange["outcome"] = asdict(call.outcome(content, exchange))
        if self._recorder is not None:
            with self._lock:
                self._recorder.write(exchange)
        return self._as_draft(exchange, call)

    def _replayed(self, exchange: Mapping[str, Any], call: "_Call") -> Draft:
        if exchange["draft"] is not None:
            try:
                PolicyDraft.model_validate(exchange["draft"])
            except ValidationError:
                raise ProposerError("the record holds a damaged draft; replay an undamaged record") from None
        return self._as_draft(exchange, call)

    def _as_draft(self, exchange: Mapping[str, Any], call: "_Call") -> Draft:
        """Return the draft of an exchange, in the same way for a call and for its line in the record."""
        outcome = Outcome.of_exchange(exchange)
        if outcome is not None:
            with self._lock:
                self._outcomes[outcome.generation, outcome.slot] = outcome
        tokens, dollars = int(exchange["tokens"]), float(exchange["dollars"])
        content, slot = exchange["draft"], call.slot
        if content is None:
            draft = self._fallback.propose(call.context, [slot])[0]
            # `llm_` and not `model`: the search wrote the draft, after this model had failed.
            told = {"llm_tried": call.model, "tokens": tokens, "dollars": dollars}
            return replace(draft, details={**draft.details, **told}) if tokens else draft
        return Draft(
            source=content["source"],
            move="llm-repair" if slot.parents and slot.parents[0].gate is not None else "llm",
            rationale=f"{content['rationale']} Expected: {content['expected_effect']}",
            parents=tuple(parent.id for parent in slot.parents),
            details={"model": call.model, "tokens": tokens, "dollars": dollars},
        )


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call: the model, the prompt and the slot."""

    context: Context
    slot: Slot
    model: str
    key: str
    prompt: Sequence[Mapping[str, str]]

    def outcome(self, content: Mapping[str, str] | None, exchange: Mapping[str, Any]) -> Outcome:
        """Return the outcome of the call for the model's weight."""
        found = None if content is None else Policy.from_source(content["source"], self.context.contract).digest
        better = tuple(
            (parent.id, str(parent.details["model"]))
            for parent in self.slot.parents
            if "model" in parent.details and parent.gate is None and parent.fitness is not None and parent.fitness < 1
        )
        return Outcome(
            generation=self.context.generation, slot=self.slot.id, model=self.model, digest=found, better=better,
            tokens=exchange["tokens"], dollars=exchange["dollars"], seconds=exchange["seconds"],
        )  # fmt: skip


class _Allowance:
    """The tokens and dollars that a generation may still spend. Calls in flight count at their upper bound."""

    def __init__(self, tokens: int | None, dollars: float | None) -> None:
        self._tokens, self._dollars = tokens, dollars
        self._lock = threading.Lock()

    def reserve(self, tokens: int, dollars: float) -> bool:
        """Reserve the upper bound of a call, and return True if enough was left."""
        with self._lock:
            if (self._tokens is not None and tokens > self._tokens) or (
                self._dollars is not None and dollars > self._dollars
            ):
                return False
            self._tokens = None if self._tokens is None else self._tokens - tokens
            self._dollars = None if self._dollars is None else self._dollars - dollars
            return True

    def settle(self, tokens: int, dollars: float, used_tokens: int, used_dollars: float) -> None:
        """Release the part of a reservation that a call did not use."""
        with self._lock:
            self._tokens = None if self._tokens is None else self._tokens + tokens - used_tokens
            self._dollars = None if self._dollars is None else self._dollars + dollars - used_dollars


def _secret(given: Secret | None) -> SecretStr | None:
    return SecretStr(given) if isinstance(given, str) else given


def _secrets_of(url: str) -> list[str]:
    """Return the secret parts of a base URL, including their form in an HTTP header."""
    found = secrets_in_url(url)
    user, at, _ = urlsplit(url).netloc.rpartition("@") if "://" in url and found != [url] else ("", "", "")
    return [*found, *([basic_credentials(user)] if at else [])]


def _outcomes_of(record: str | Path) -> dict[tuple[int, int], Outcome]:
    """Return the outcomes that an earlier session of the run left in the record."""
    found = (Outcome.of_exchange(exchange) for exchange in Recording(record).exchanges())
    return {(outcome.generation, outcome.slot): outcome for outcome in found if outcome is not None}
