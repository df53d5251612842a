"""Answers of the interactive page, ``mobilesamv2 app``, to many visitors at once, and how long each waits.

    python benchmarks/page_visitors.py --visitors 50 --clicks 10

Each visitor opens a photo and clicks on it again and again, as fast as the page answers. Their browsers are left out: a
visitor here sends what a browser would send, over HTTP. One in ten segments everything too.
"""

from __future__ import annotations

import argparse
import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

EXAMPLE = 0
"""Number of the photo among the examples."""


class Visitor:
    """What one browser sends to the page.

    Args:
        address: of the page.
        session: what tells visitors apart; None is a new one.
    """

    def __init__(self, address: str, session: str | None = None) -> None:
        self.address = address.rstrip("/")
        self.session = session or secrets.token_hex(8)
        self.http = httpx.Client(timeout=120)
        config = self.http.get(f"{self.address}/config").json()
        self.functions = config["dependencies"]
        self.components = {component["id"]: component for component in config["components"]}

    def function(self, event: str, component: str) -> int:
        """Return the number of the function that an event of a component calls.

        Args:
            event: "click" for example.
            component: its ``elem_id``, or the text of a button.
        """
        for function in self.functions:
            for target, name in function["targets"]:
                props = self.components[target]["props"] if target in self.components else {}
                if name == event and component in (props.get("elem_id"), props.get("value"), props.get("label")):
                    return function["id"]
        raise LookupError(f"The page has no event {event} of {component}.")

    def values(self, function: int) -> list[Any]:
        """Return the values of a function's inputs as the page first shows them."""
        inputs = next(each["inputs"] for each in self.functions if each["id"] == function)
        return [self.components[number]["props"].get("value") for number in inputs]

    def send(self, event: str, component: str, data: list[Any] | None = None, event_data: Any = None) -> Any:
        """Send an event through the queue, and return the values that come back.

        Raises:
            RuntimeError: if the page refuses it or reports an error; its text is the message.
        """
        function = self.function(event, component)
        body = {
            "data": self.values(function) if data is None else data,
            "fn_index": function,
            "session_hash": self.session,
            "event_data": event_data,
        }
        joined = self.http.post(f"{self.address}/gradio_api/queue/join", json=body)
        if joined.status_code != httpx.codes.OK:
            raise RuntimeError(f"{joined.status_code}: {joined.text}")
        for message in self._messages():
            if message["msg"] == "process_completed" and message["event_id"] == joined.json()["event_id"]:
                if not message["success"]:
                    raise RuntimeError(message["output"].get("error") or "error")
                return message["output"]["data"]
        raise RuntimeError("The page closed the connection.")

    def _messages(self) -> Iterator[dict[str, Any]]:
        query = {"session_hash": self.session}
        with self.http.stream("GET", f"{self.address}/gradio_api/queue/data", params=query) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

    def open_example(self, number: int = EXAMPLE) -> dict[str, Any]:
        """Open an example, and return the answer that shows it."""
        return _value(self.send("click", "examples", [number])[1])

    def click(self, x: float, y: float) -> dict[str, Any]:
        """Click at fractions of the photo's width and height, and return the answer that shows the mask."""
        interactions = {"points": [[x, y, 1]], "box": None}
        return _value(self.send("prompt", "canvas", event_data={"number": 1, "interactions": interactions})[0])


def _value(output: Any) -> dict[str, Any]:
    """Return a component's new value, which may come as an update of the component."""
    return output["value"] if isinstance(output, dict) and "__type__" in output else output


def visit(address: str, clicks: int, everything: bool, waits: list[float], failures: list[str]) -> None:
    """Open a photo, click, and perhaps segment everything; append the seconds that each answer took."""
    try:
        visitor = Visitor(address)
        if visitor.open_example()["photo"] is None:
            failures.append("no photo")
        if everything:
            values = visitor.values(visitor.function("click", "Segment everything"))
            visitor.send("click", "Segment everything", [8 if value == 32 else value for value in values])
        rng = np.random.default_rng(0)
        for x, y in rng.uniform(0.1, 0.9, (clicks, 2)).tolist():
            begin = time.monotonic()
            answer = visitor.click(x, y)
            waits.append(time.monotonic() - begin)
            if answer["kind"] != "masks":
                failures.append(answer["text"])
    except (RuntimeError, httpx.HTTPError, KeyError) as error:
        failures.append(repr(error))


def run(address: str, visitors: int, clicks: int) -> tuple[list[float], list[str]]:
    """Let visitors come at once; return the seconds of all answers to clicks, and what failed."""
    waits: list[float] = []
    failures: list[str] = []
    threads = [
        threading.Thread(target=visit, args=(address, clicks, number % 10 == 0, waits, failures))
        for number in range(visitors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits, failures


def main() -> None:
    """Serve the page and print the seconds that visitors wait."""
    from mobilesamv2.app.demo import open_demo
    from mobilesamv2.app.page import serving

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--model", help="default: as of the page")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    args = parser.parse_args()
    demo = open_demo(args.model, args.weights)
    with serving(demo) as page:
        begin = time.monotonic()
        waits, failures = run(page.local_url, args.visitors, args.clicks)
        seconds = time.monotonic() - begin
    median, slow, slowest = np.quantile(waits, (0.5, 0.95, 1)) if waits else (float("nan"),) * 3
    print(f"{demo.model}: {args.visitors} visitors at once.")
    print(
        f"{len(waits)} of {args.visitors * args.clicks} clicks answered in {seconds:.0f} s, {len(failures)} failures."
    )
    print(f"Seconds per answer: median {median:.2f}, 95% within {slow:.2f}, slowest {slowest:.2f}.")
    for failure in dict.fromkeys(failures):
        print(failure)


if __name__ == "__main__":
    main()
