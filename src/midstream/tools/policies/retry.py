"""`RetryToolset`: repeats failed calls by the tool's policy, with exponential backoff and full jitter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt, wait_random_exponential

from midstream.core import clock
from midstream.core.toolsets import ToolPolicy, ToolResult
from midstream.tools.errors import TIMEOUT, TRANSIENT, UNAVAILABLE
from midstream.tools.policies.wrapper import ToolsetWrapper


class RetryToolset(ToolsetWrapper):
    """Retries `transient` failures, and `timeout` and `unavailable` of idempotent tools."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        policy = self.specs[name].policy
        if policy.retries == 0:
            return await self.inner.call(name, arguments)

        def last_result(state: RetryCallState) -> ToolResult:
            assert state.outcome is not None
            return state.outcome.result()

        retrying = AsyncRetrying(
            stop=stop_after_attempt(policy.retries + 1),
            wait=wait_random_exponential(multiplier=policy.backoff_s, max=policy.max_backoff_s),
            retry=retry_if_result(lambda result: _may_be_repeated(result, policy)),
            retry_error_callback=last_result,
            sleep=clock.sleep,
        )
        result: ToolResult = await retrying(self.inner.call, name, arguments)
        return replace(result, attempts=retrying.statistics.get("attempt_number", 1))


def _may_be_repeated(result: ToolResult, policy: ToolPolicy) -> bool:
    return result.error_kind == TRANSIENT or (policy.idempotent and result.error_kind in (TIMEOUT, UNAVAILABLE))
