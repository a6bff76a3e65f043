"""A judge of generated answers on any OpenAI-compatible server; without one, nothing is sent anywhere."""

from __future__ import annotations

import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException

from lke_lightning.edits import EditError

INSTRUCTION = (
    "You compare the answer that a language model gave with accepted answers. Reply with one word: yes, if the given "
    "answer states one of the accepted answers and takes nothing of it back, else no."
)

ATTEMPTS, AT_ONCE = 3, 8
"""Attempts before an answer counts as undecided, and concurrent requests."""

Asked = tuple[str, str, tuple[str, ...]]


class _NoReplyError(Exception):
    """The judge gave no verdict."""


class _RefusedError(_NoReplyError):
    """The server refused the request, so a retry is useless."""


@dataclass(frozen=True)
class Judge:
    """A model that judges whether an answer is correct, through `POST {url}/chat/completions` at temperature 0.

    It costs one request for each distinct pair of prompt and answer, and its verdicts depend on that model: name it
    beside every figure. Without a clear verdict after all attempts, the answer stays undecided.

    Args:
        url: the address up to the version, such as `http://localhost:8000/v1`.
        model: the name of the model there.
        key_variable: the environment variable that holds the key; `None`: no key is sent. The key itself is never
            written anywhere.
        timeout: seconds to wait for one verdict.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0

    def check_settings(self) -> None:
        """Check the settings without a request.

        Not done as the judge is made: jsonargparse would take an error there for one of its own.

        Raises:
            EditError: the address is invalid, no model is named, the key is missing, or the timeout is invalid.
        """
        if not _is_address(self.url):
            raise EditError(
                f"the judge's address {self.url!r} must begin with http:// or https://, and a host must follow, as in "
                "http://localhost:8000/v1 (judge.url)"
            )
        if not self.model.strip():
            raise EditError("the judge has no model: name one that is served there (judge.model)")
        if self.key_variable is not None and not os.environ.get(self.key_variable):
            raise EditError(f"the environment variable {self.key_variable!r} holds no key (judge.key_variable)")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise EditError(f"judge.timeout is {self.timeout:g}: a number of seconds above 0 is needed")

    def check(self) -> None:
        """Ask one question with a known answer.

        Raises:
            EditError: no verdict comes back.
        """
        try:
            self._ask(("The capital of France is", "Paris.", ("Paris",)))
        except _NoReplyError as error:
            raise EditError(f"the judge {self.model!r} at {self.url} gives no verdict: {error}") from error

    def __call__(self, asked: Sequence[Asked]) -> list[float]:
        """Judge (prompt, generated text, accepted answers): 1 correct, 0 wrong, NaN undecided, with a warning."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(self._decide, asked))
        reasons = [reason for verdict, reason in found if verdict != verdict]
        if reasons:
            warnings.warn(
                f"the judge left {len(reasons)} of {len(asked)} answers undecided: {reasons[0]}", stacklevel=2
            )
        return [verdict for verdict, _ in found]

    def _decide(self, asked: Asked) -> tuple[float, str]:
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                return self._ask(asked), ""
            except _NoReplyError as error:
                reason = str(error)
                if isinstance(error, _RefusedError):
                    break
                if attempt + 1 < ATTEMPTS:
                    time.sleep(0.5 * 2**attempt)
        return math.nan, reason

    def _ask(self, asked: Asked) -> float:
        prompt, text, accepted = asked
        question = (
            f"Prompt: {prompt}\nAccepted answers: {json.dumps(list(accepted), ensure_ascii=False)}\n"
            f"Given answer: {json.dumps(text, ensure_ascii=False)}"
        )
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
        sent = {"model": self.model, "messages": messages, "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self.key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_variable, '')}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(sent).encode(), headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                content = json.load(reply)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            reason = error.read(300).decode(errors="replace").strip()
            kind = _RefusedError if 400 <= error.code < 500 and error.code not in (408, 429) else _NoReplyError
            raise kind(f"HTTP {error.code} {error.reason}: {reason}") from error
        except (OSError, HTTPException) as error:  # no connection, a timeout, a server that speaks something else
            raise _NoReplyError(str(getattr(error, "reason", error)) or repr(error)) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _NoReplyError(f"the reply is no chat completion ({error!r})") from error
        word = str(content).strip().lower().lstrip("*\"'")
        if word.startswith(("yes", "no")):
            return float(word.startswith("yes"))
        raise _NoReplyError(f"neither yes nor no, but {str(content)[:80]!r}")


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
