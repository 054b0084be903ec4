"""The least client that reads its command line: argparse, json, one order, one answer."""

import argparse
import json
import socket
import sys


def main() -> None:
    """Submit what the command line says, and tell that it was accepted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("argv", nargs="+")
    args = parser.parse_args()
    body = json.dumps({"argv": args.argv}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(args.socket)
        head = "POST /keep HTTP/1.1\r\nHost: floor\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = connection.recv(1 << 16)
    if not answer.startswith(b"HTTP/1.1 201 "):
        raise SystemExit(f"refused: {answer!r}")
    sys.stdout.write("Submitted\n")


if __name__ == "__main__":
    main()
