"""Runs vlseg's command line in a process that notes, and refuses, every look beyond this machine.

python offline.py NOTED ARGUMENT...
"""

import ipaddress
import sys

NOTED = sys.argv[1]


def watch(event: str, args: tuple) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    with open(NOTED, "a", encoding="utf-8") as file:
        file.write(f"{event} {host}\n")
    raise ConnectionRefusedError(f"{host}: not in this test")


if __name__ == "__main__":
    sys.addaudithook(watch)
    from vlseg.cli import main

    sys.exit(main(sys.argv[2:]))
