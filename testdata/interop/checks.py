"""Collects what a test script found and prints it as a table."""

import asyncio
import time


class Checks:
    def __init__(self):
        self.rows = []

    def record(self, name, ok, detail=""):
        self.rows.append((name, bool(ok), str(detail)))
        print(f"{'PASS' if ok else 'FAIL'}  {name}" + (f"  ({detail})" if detail else ""), flush=True)

    async def attempt(self, name, coroutine, limit=30):
        """Runs one check; it passes unless it raises or takes too long. Its result is the detail."""
        try:
            detail = await asyncio.wait_for(coroutine, limit)
            self.record(name, True, detail or "")
            return True
        except asyncio.TimeoutError:
            self.record(name, False, f"no result within {limit} s")
        except Exception as e:  # a check may fail in any way; the others go on
            self.record(name, False, f"{type(e).__name__}: {e}")
        return False

    def close(self):
        """Prints the table and the closing line; returns the exit code."""
        width = max((len(name) for name, _, _ in self.rows), default=0)
        print("\n| check".ljust(width + 3) + " | result |\n|" + "-" * (width + 2) + "|--------|")
        for name, ok, _ in self.rows:
            print(f"| {name.ljust(width)} | {'PASS' if ok else 'FAIL'}   |")
        passed = sum(ok for _, ok, _ in self.rows)
        failed = len(self.rows) - passed
        print(f"\n{passed} passed, {failed} failed", flush=True)
        return 0 if failed == 0 and passed > 0 else 1


async def until(condition, limit, what):
    """Polls until the condition holds; what names it in the error."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit} s: {what}")
        await asyncio.sleep(0.02)


def expect(condition, what):
    if not condition:
        raise AssertionError(what)
