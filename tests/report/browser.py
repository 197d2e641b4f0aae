"""Headless Chromium, driven over the pipe of its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conftest import CHROMIUM

SECONDS = 60


class Browser:
    """A page in a browser without a network; what it asks for and complains of is kept."""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, CHROMIUM)))
        reads, self._commands = os.pipe()
        self._answers, writes = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --no-proxy-server"
        offline = ("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--remote-debugging-pipe")
        pipes = f'exec "$@" 3<&{reads} 4>&{writes}'
        # Chromium reads commands from descriptor 3 and answers on 4. These may be taken here, so a shell sets them.
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", program, *flags.split(), *offline, "about:blank"],
            pass_fds=(reads, writes),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reads)
        os.close(writes)
        self._numbers, self._buffer = itertools.count(1), b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._attached: str | None = None
        target = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._attached = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what happens meanwhile is noted."""
        number = next(self._numbers)
        attached = {} if self._attached is None else {"sessionId": self._attached}
        message = json.dumps({"id": number, "method": method, "params": parameters, **attached})
        os.write(self._commands, message.encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], SECONDS)
            assert ready, f"the browser did not answer within {SECONDS} s"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser ended"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        facts = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(facts["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(facts["args"]))
            case "Log.entryAdded":
                self.complaints.append(facts["entry"]["text"])
        return message

    def open(self, path: Path) -> float:
        """Open a file; the seconds until its tables are laid out."""
        began = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.evaluate("document.getElementById('cells') !== null"):
            assert not self.complaints, self.complaints
            time.sleep(0.02)
        self.evaluate("document.body.getBoundingClientRect().height")
        return time.monotonic() - began

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of the page, which must not throw."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, as a person at the keyboard does."""
        codes = {"Enter": 13, "Tab": 9}
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def show(self, width: int, colours: str = "light", media: str = "") -> None:
        """Set the width of the window, light or dark, and the medium, screen or print."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": colours}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
