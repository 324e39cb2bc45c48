"""A judge at any endpoint with OpenAI's chat completions: OpenAI, vLLM, Ollama, LM Studio, llama.cpp.

The key is read from the environment when a request is sent. It is in no setting, key, file or message.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from lorabench.base import UserError
from lorabench.config.judging import OpenAIJudgeSpec
from lorabench.scoring.judges.comparison import Comparison, png, shown
from lorabench.scoring.judges.questions import Ask

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # answers of servers that are busy or restarting
NEEDS_KEY = "https://api.openai.com/"  # other servers may need none
EXCERPT = 200  # characters of a server's message


class Pace:
    """Spreads requests evenly over a minute, for all threads together."""

    def __init__(self, per_minute: float | None) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.lock = threading.Lock()
        self.next = 0.0

    def wait(self) -> None:
        """Wait until the next request may be sent."""
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next)
            self.next = at + self.gap
        time.sleep(at - now)


@dataclass(frozen=True)
class Failure:
    """An attempt without an answer.

    Args:
        why: Reason for the message.
        wait: Seconds that the server asks to wait; None: not known.
    """

    why: str
    wait: float | None = None


class EndpointJudge(Comparison):
    """A model at an endpoint.

    Raises:
        UserError: If `judge.model` or the key is missing, or votes would all be the same.
    """

    def __init__(self, spec: OpenAIJudgeSpec) -> None:
        if not spec.model:
            raise UserError("judge=openai needs the name of a model at the endpoint; use judge.model=gpt-4o")
        if spec.votes > 1 and not spec.temperature:
            raise UserError(
                f"judge.votes={spec.votes} needs judge.temperature above 0, or all votes are the same; "
                "use judge.temperature=1"
            )
        if spec.url.startswith(NEEDS_KEY) and not os.environ.get(spec.key_variable):
            raise UserError(
                f"judge.url={spec.url} needs a key in the environment; use export {spec.key_variable}=<key>, or "
                "judge.url=http://localhost:8000/v1 for a server of your own"
            )
        self.spec, self.parallel = spec, spec.parallel
        self.pace = Pace(spec.requests_per_minute)

    @property
    def name(self) -> str:
        return str(self.spec.model)

    def identity(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "kind": "openai", "model": spec.model, "size": spec.size, "temperature": spec.temperature,
            "max_tokens": spec.max_tokens, "extra": dict(spec.extra),
        }  # fmt: skip

    def answer(self, ask: Ask) -> str:
        spec, failure = self.spec, Failure("")
        body = self.body(ask)
        for attempt in range(spec.retries + 1):
            if attempt:
                wait = 2.0 ** (attempt - 1) if failure.wait is None else failure.wait
                if wait > spec.longest_wait:
                    why = f"{failure.why}, and asks to wait {wait:.0f} s"
                    raise UserError(
                        f"{spec.url} {why}; run the command again later, or use judge.longest_wait={wait:.0f}"
                    )
                time.sleep(wait)
            self.pace.wait()
            found = self.attempt(body)
            if isinstance(found, str):
                return found
            failure = found
        raise UserError(
            f"{spec.url} {failure.why} ({spec.retries + 1} attempts); answers so far are kept, run the same command to "
            "resume"
        )

    def attempt(self, body: dict[str, Any]) -> str | Failure:
        """Return the answer of one request, or the failure.

        Raises:
            UserError: If another attempt would fail in the same way.
        """
        spec, key = self.spec, os.environ.get(self.spec.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = self.client.post(f"{spec.url.rstrip('/')}/chat/completions", json=body, headers=headers)
        except httpx.TimeoutException:
            return Failure(f"did not answer within {spec.timeout:g} s")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise UserError(
                f"judge.url={spec.url} is not a valid URL; use judge.url=http://localhost:8000/v1"
            ) from None
        except httpx.HTTPError as error:
            return Failure(f"cannot be reached ({type(error).__name__})")
        excerpt = hidden(" ".join(response.text.split())[:EXCERPT], key)
        if response.status_code in AGAIN:
            return Failure(f"answered {response.status_code} ({excerpt})", seconds(response.headers.get("Retry-After")))
        if response.status_code in (401, 403):
            raise UserError(
                f"{spec.url} refused the request ({excerpt}); set the variable {spec.key_variable} to a valid key"
            )
        if response.status_code != 200:
            raise UserError(f"{spec.url} answered {response.status_code} ({excerpt}); use other settings of judge")
        try:
            text = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return Failure(f"sent a malformed answer ({excerpt})")
        return text if isinstance(text, str) else ""  # None: the model refused, which is an invalid answer

    def body(self, ask: Ask) -> dict[str, Any]:
        """Return the JSON of a request."""
        content = [self.part(part) for part in ask.parts]
        limit = {} if self.spec.max_tokens is None else {"max_tokens": self.spec.max_tokens}
        messages = [{"role": "user", "content": content}]
        fixed = {"model": self.spec.model, "messages": messages, "temperature": self.spec.temperature}
        return {**fixed, **limit, **self.spec.extra}

    def part(self, part: str | Path) -> dict[str, Any]:
        """Return a text or an image as a part of a message."""
        if isinstance(part, str):
            return {"type": "text", "text": part}
        data = base64.b64encode(png(shown(part, self.spec.size))).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "high"}}

    @cached_property
    def client(self) -> httpx.Client:
        """Return the HTTP client, which is made on first use."""
        return httpx.Client(timeout=self.spec.timeout)


def hidden(text: str, key: str | None) -> str:
    """Return a server's message without the key."""
    return text.replace(key, "***") if key else text


def seconds(header: str | None) -> float | None:
    """Return the wait that a Retry-After header asks for, a number or a date; None if there is none.

    >>> seconds("2"), seconds(None), seconds("soon")
    (2.0, None, None)
    """
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header or "") - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
