# SPDX-License-Identifier: BSD-3-Clause
"""The server behind `fastdet view`, for this machine alone unless it is told otherwise.

Streamlit runs `page.py` in this process at each change of a filter, so all pages of all browsers
share the one collection that was read before the server starts. The page writes nothing.
"""

import contextlib
import errno
import importlib.util
import ipaddress
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastdet.viewing.collection import Collection

PORT = 8501  # the first that is tried
PORTS = 50

_shown: list[Collection] = []


def shown() -> Collection:
    """The collection that the page shows."""
    return _shown[-1]


def show(collection: Collection) -> None:
    """Chooses the collection that the page shows."""
    _shown[:] = [collection]


def check_packages() -> None:
    """Raises an error unless the server can run, before any data is read."""
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:3]))
        raise ValueError(f"fastdet view: expected Python 3.11 or newer, got {version}")
    if importlib.util.find_spec("streamlit") is None:
        raise ModuleNotFoundError("No module named 'streamlit'", name="streamlit")


def free_port(address: str, port: int | None) -> int:
    """A port on which a server can start: the given one, or the first free one from PORT on.

    Raises:
        ValueError: no such port, or no such address on this machine.
        OSError: the port is in use.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port: expected a number from 1 to 65535, got {port}")
    for candidate in range(PORT, PORT + PORTS) if port is None else [port]:
        try:
            _bind(address, candidate)
        except PermissionError as error:
            raise ValueError(f"port: expected one that you may use, got {candidate}") from error
        except (socket.gaierror, OSError) as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(
                    f"address: expected one of this machine, such as 127.0.0.1, got {address}"
                ) from error
            continue
        return candidate
    ports = f"{PORT} to {PORT + PORTS - 1}" if port is None else str(port)
    raise OSError(f"port {ports} of {address}: already in use: give another --port")


def is_local(address: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def serve(collection: Collection, address: str, port: int, open_browser: bool) -> None:
    """Runs the server until Ctrl-C or SIGTERM.

    Args:
        collection: what the page shows.
        address: of this machine.
        port: a free one.
        open_browser: whether to open the page in the browser.
    """
    from streamlit.web import bootstrap

    show(collection)
    threading.Thread(target=_say_when_it_answers, args=(address, port), daemon=True).start()
    options: dict[str, Any] = {
        "server_address": address,
        "server_port": port,
        "server_headless": not open_browser,
        "server_fileWatcherType": "none",
        "server_runOnSave": False,
        "browser_gatherUsageStats": False,
        "client_toolbarMode": "minimal",
        "client_showErrorDetails": "none",
        "global_developmentMode": False,
        "logger_hideWelcomeMessage": True,
        "logger_level": "error",
    }
    bootstrap.load_config_options(options)
    bootstrap.run(str(Path(__file__).with_name("page.py")), False, [], options)


def _say_when_it_answers(address: str, port: int) -> None:
    host = f"[{address}]" if ":" in address else address
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1.0):
            print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
            return
        time.sleep(0.05)


def _bind(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
