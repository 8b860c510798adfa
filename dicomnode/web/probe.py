"""`python -m dicomnode.web.probe /healthz`: a health check from inside a container; exit 0 if the node answers 200.

A container engine runs it every few seconds, so it imports nothing but the standard library. It takes port and TLS from
`CXRNODE_HTTP__PORT` and `CXRNODE_HTTP__CERTIFICATE`. If a file sets them, give the URL instead of a path.
"""

import http.client
import os
import ssl
import sys
from urllib.parse import urlsplit

_TIMEOUT_S = 8.0
_USAGE = "usage: python -m dicomnode.web.probe /healthz|/readyz|URL"


def main(arguments: list[str]) -> int:
    """Print the node's answer and return an exit code: 0 for 200, 1 for anything else, 2 for wrong arguments."""
    if len(arguments) != 1:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    parts = urlsplit(_url(arguments[0]))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    connection = _connection(parts.scheme, parts.hostname, parts.port)
    try:
        connection.request("GET", parts.path or "/healthz")
        answer = connection.getresponse()
        sys.stdout.write(f"{answer.read(65_536).decode(errors='replace')}\n")
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"{parts.hostname}:{parts.port} does not answer: {error}\n")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == http.client.OK else 1


def _url(given: str) -> str:
    if not given.startswith("/"):
        return given
    scheme = "https" if os.environ.get("CXRNODE_HTTP__CERTIFICATE") else "http"
    return f"{scheme}://127.0.0.1:{os.environ.get('CXRNODE_HTTP__PORT', '8080')}{given}"


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    # On the loopback address there is no doubt about who answers, and the certificate is for another name.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
