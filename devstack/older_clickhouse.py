"""Serves the embedded ClickHouse of an older line over HTTP, to run Tallyhouse's commands against it by hand.

    pip download --no-deps chdb==3.7.2            # ClickHouse 25.8.2; chdb-core==26.3.0 is 26.3.9
    python3 -m zipfile -e chdb-*.whl chdb-3.7.2
    python3 devstack/older_clickhouse.py chdb-3.7.2 18258
    export TALLYHOUSE__CLICKHOUSE__URL=http://127.0.0.1:18258 TALLYHOUSE__CLICKHOUSE__COMPRESSION=none
    tallyhouse migrate

It carries out one statement at a time, in one session, on data that it removes at the end. It answers queryID() by
itself, because the embedded ClickHouse gets no query ids. It leaves SYNC out of DROP, because the embedded ClickHouse
never removes a table's files and waits without end. It refuses compressed traffic. It listens on 127.0.0.1 only.
"""

import os
import re
import shutil
import sys
import tempfile
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Parameters of the HTTP interface. All others are settings.
NOT_SETTINGS = {
    "query", "database", "query_id", "default_format", "session_id", "session_timeout", "compress", "decompress",
    "user", "password", "wait_end_of_query",
}  # fmt: skip


def quote(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class ClickHouse:
    """The embedded server with one session."""

    def __init__(self, wheel):
        # The package itself wants pyarrow, so only its extension module is loaded.
        sys.path.insert(0, os.path.join(os.path.abspath(wheel), "chdb"))
        import _chdb

        self.folder = tempfile.mkdtemp(prefix="older-clickhouse-")
        self.connection = _chdb.connect("file:" + os.path.join(self.folder, "db"))
        self.lock = threading.Lock()

    def run(self, sql, output_format="TSV"):
        result = self.connection.query(sql, output_format)
        return result.bytes() if result else b""

    def answer(self, sql, data, database, settings, output_format):
        """Carries out a statement with these settings. `data` is that of an INSERT, or None."""
        with self.lock:
            self.run("USE " + (database or "default"))
            try:
                if settings:
                    self.run("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in settings.items()))
                return self.carry_out(sql, data, output_format)
            finally:
                for name in settings:
                    try:
                        self.run(f"SET {name} = DEFAULT")
                    except RuntimeError:
                        pass  # The server does not know it, and has refused it above.

    def carry_out(self, sql, data, output_format):
        named = re.search(r"\sFORMAT\s+(\w+)\s*;?\s*$", sql)
        if data is None:
            return self.run(sql[: named.start()], named.group(1)) if named else self.run(sql, output_format)
        path = os.path.join(self.folder, "data")
        with open(path, "wb") as file:
            file.write(data)
        self.run(f"{sql[: named.start()]} FROM INFILE {quote(path)} FORMAT {named.group(1)}")
        return b""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        url = urllib.parse.urlsplit(self.path)
        parameters = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        sql, body = parameters.get("query"), self.body()
        is_insert = sql is not None and re.match(r"\s*INSERT\b.*\sFORMAT\s+\w+\s*$", sql, re.I | re.S)
        if not is_insert:
            sql = (sql or "") + body.decode("utf8", "replace")
        query_id = parameters.get("query_id", "none")
        headers = {"X-ClickHouse-Query-Id": query_id}
        settings = {name: value for name, value in parameters.items() if name not in NOT_SETTINGS}
        try:
            if "1" in (parameters.get("compress"), parameters.get("decompress")):
                raise RuntimeError("Code: 48. set clickhouse.compression to none")
            data = body if is_insert else None
            output_format = parameters.get("default_format", "TSV")
            sql = sql.replace("queryID()", quote(query_id))
            if sql.lstrip().startswith("DROP"):
                sql = re.sub(r"\sSYNC\s*$", "", sql)
            status, answer = 200, self.server.clickhouse.answer(
                sql, data, parameters.get("database"), settings, output_format
            )
        except RuntimeError as error:
            code = re.search(r"Code: (\d+)", str(error))
            headers["X-ClickHouse-Exception-Code"] = code.group(1) if code else "1"
            status, answer = 500, str(error).encode() + b"\n"
            print(f"{str(error)[:300]} | {sql[:200]}", file=sys.stderr, flush=True)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while True:
            length = int(self.rfile.readline().split(b";")[0], 16)
            whole += self.rfile.read(length)
            self.rfile.readline()
            if length == 0:
                return whole


def main():
    wheel, port = sys.argv[1], int(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.clickhouse = ClickHouse(wheel)
    print("ClickHouse", server.clickhouse.run("SELECT version()").decode().strip(), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        shutil.rmtree(server.clickhouse.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
