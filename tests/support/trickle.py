"""Clients that never finish their handshake: one octet a second each, from one cheap epoll loop.

A program of its own, so that what it costs is not added to what others measure:

    python -m tests.support.trickle PORT CLIENTS SECONDS WITHIN

opens CLIENTS connections to 127.0.0.1:PORT within WITHIN seconds, says ``open``, sends each an
octet a second of an offer that would take minutes, for SECONDS at most, and prints what became of
them as JSON: how many were ``cut``, and the shortest and longest life in seconds.
"""

import json
import resource
import select
import socket
import sys
import time

OFFER = b"\x05\xff" + bytes(range(1, 256))
TICK = 0.01


def main(port: int, clients: int, seconds: float, within: float) -> None:
    """Open, trickle, and tell."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    poll = select.epoll()
    alive: dict[int, socket.socket] = {}
    sent: dict[int, int] = {}
    born: dict[int, float] = {}
    lives: list[float] = []

    def reap(timeout: float) -> None:
        for fd, _ in poll.poll(timeout):
            lives.append(time.monotonic() - born[fd])
            poll.unregister(fd)
            alive.pop(fd).close()

    began = time.monotonic()
    for number in range(clients):
        time.sleep(max(0.0, began + within * number / clients - time.monotonic()))
        sock = socket.create_connection(("127.0.0.1", port))
        born[sock.fileno()] = time.monotonic()
        alive[sock.fileno()] = sock
        sent[sock.fileno()] = 0
        poll.register(sock, select.EPOLLIN | select.EPOLLHUP)
    print("open", flush=True)
    began = time.monotonic()
    turns = round(1.0 / TICK)
    turn = 0
    while alive and time.monotonic() - began < seconds:
        due = began + turn * TICK
        for fd in [fd for fd in alive if fd % turns == turn % turns]:
            try:
                alive[fd].send(OFFER[sent[fd] : sent[fd] + 1])
            except OSError:
                continue  # it was cut: epoll says so, too
            sent[fd] += 1
        turn += 1
        reap(max(0.0, due + TICK - time.monotonic()))
    told = {"cut": len(lives), "shortest": min(lives, default=0), "longest": max(lives, default=0)}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
