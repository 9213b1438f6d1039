"""HTTP/2 with node's client: what shows only when many streams share one connection.

Each test is a script that connects, does what it is to do, and prints what it saw as JSON. Node
schedules its streams fairly, so what waits in here has waited at the server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.demo_process import need_program
from helpers.http2_programs import Address, Http2Programs, run_program
from helpers.server_thread import Serve

# Connects, and gives a script: `get`, `post`, `small` and `session`.
BEGINNING = """
const http2 = require("node:http2");
const fs = require("node:fs");
const [url, cafile] = process.argv.slice(2);
const session = http2.connect(url, cafile ? { ca: fs.readFileSync(cafile) } : {});
for (const event of ["goaway", "error", "frameError"]) {
  session.on(event, (...what) => console.error(event, ...what.map(String)));
}

function answer(stream) {
  return new Promise((resolve, reject) => {
    const seen = { status: null, size: 0, body: "", interim: [] };
    stream.on("headers", (fields) => seen.interim.push(fields[":status"]));
    stream.on("response", (fields) => { seen.status = fields[":status"]; });
    stream.on("data", (data) => {
      seen.size += data.length;
      if (seen.body.length < 1000) seen.body += data;
    });
    stream.on("end", () => resolve(seen));
    stream.on("error", reject);
  });
}
const get = (path) => answer(session.request({ ":path": path }));
const post = (path) => session.request({ ":path": path, ":method": "POST" });

// A small request, and how long it took.
async function small() {
  const began = performance.now();
  const seen = await get("/status/200");
  if (seen.status !== 200 || seen.body !== "status") throw new Error(JSON.stringify(seen));
  return performance.now() - began;
}

(async () => {
"""
END = """
})().then((result) => {
  session.close();
  console.log(JSON.stringify(result ?? null));
}, (error) => {
  console.error(error);
  process.exit(1);
});
"""


class Node:
    """Runs scripts that are clients of `server`."""

    def __init__(self, server: Address, directory: Path, cafile: Path | None) -> None:
        self.server = server
        self._program = need_program("node", "nodejs")
        self._directory = directory
        self._cafile = cafile

    def __call__(self, script: str) -> Any:
        """Return what the script returns."""
        path = self._directory / "client.js"
        path.write_text(BEGINNING + script + END)
        cafile = [self._cafile] if self._cafile is not None else []
        return json.loads(run_program(self._program, path, self.server.url, *cafile))


@pytest.fixture(params=["cleartext", "tls"])
def node(request: pytest.FixtureRequest, serve: Serve, tls: Any, tmp_path: Path) -> Node:
    is_tls = request.param == "tls"
    server = Http2Programs(serve, tls if is_tls else None)()
    return Node(server, tmp_path, tls.certfile if is_tls else None)


def test_many_streams_at_once(node: Node) -> None:
    result = node("""
      await small();  // it knows then how many may be open
      const sizes = Array.from({ length: 300 }, (_, i) => (i * 1237) % 50000);
      const answers = await Promise.all(sizes.map((size) => get(`/download/${size}`)));
      return answers.every((seen, i) => seen.status === 200 && seen.size === sizes[i]);
    """)
    assert result is True


def test_small_answers_pass_a_large_download_and_a_slow_upload(node: Node) -> None:
    """As many as there is time for while the download lasts; none waits for the end of it."""
    result = node("""
      const seen = { took: [], done: false };
      const upload = post("/upload");
      const uploaded = answer(upload);
      let sent = 0;
      const timer = setInterval(() => { upload.write(Buffer.alloc(1000)); sent += 1000; }, 5);
      const download = get("/download/50000000").finally(() => { seen.done = true; });
      await small();
      while (!seen.done) seen.took.push(await small());
      const { size } = await download;
      clearInterval(timer);
      upload.end();
      const { body } = await uploaded;
      return { ...seen, size, uploaded: JSON.parse(body).size === sent, sent };
    """)
    assert result["size"] == 50_000_000
    assert result["uploaded"], result
    took = sorted(result["took"])
    print(f"small answers beside a download: {len(took)}, median {took[len(took) // 2]:.1f} ms,")
    print(f"slowest {took[-1]:.1f} ms; {result['sent']} bytes were uploaded meanwhile")
    # Were they made to wait, there would be one at most.
    assert len(took) >= 5
    assert took[len(took) // 2] < 2_000


def test_upload_that_the_application_does_not_take_delays_no_other(node: Node) -> None:
    """It uses up its own window, not the connection's; nor do five of them."""
    result = node("""
      const stuck = Array.from({ length: 5 }, () => post("/upload/key"));
      const answers = stuck.map(answer);
      for (const stream of stuck) stream.write(Buffer.alloc(1000000));
      const took = [];
      for (let i = 0; i < 20; i++) took.push(await small());
      const other = post("/upload");
      other.end(Buffer.alloc(5000000));
      const { body } = await answer(other);
      for (const stream of stuck) stream.end();
      await get("/release/key");
      const sizes = (await Promise.all(answers)).map((seen) => JSON.parse(seen.body).size);
      return { size: JSON.parse(body).size, sizes, took };
    """)
    assert result["size"] == 5_000_000
    assert result["sizes"] == [1_000_000] * 5
    assert sorted(result["took"])[10] < 2_000


def test_download_that_is_not_read_delays_no_other(node: Node) -> None:
    result = node("""
      const stuck = session.request({ ":path": "/download/5000000" });
      await new Promise((resolve) => stuck.on("response", resolve));
      stuck.pause();
      const took = [];
      for (let i = 0; i < 20; i++) took.push(await small());
      const { size } = await get("/download/5000000");
      const rest = answer(stuck);
      stuck.resume();
      return { size, rest: (await rest).size, took };
    """)
    assert (result["size"], result["rest"]) == (5_000_000, 5_000_000)
    assert sorted(result["took"])[10] < 2_000


@pytest.mark.parametrize("code", ["NGHTTP2_CANCEL", "NGHTTP2_NO_ERROR", "NGHTTP2_INTERNAL_ERROR"])
def test_reset_is_told_to_the_handler_at_once(node: Node, code: str) -> None:
    """`/gone` is answered when `on_connection_close` was called; the connection lives."""
    result = node(
        """
      const wait = session.request({ ":path": "/wait/key" });
      const upload = post("/upload/key");
      upload.write(Buffer.alloc(1000));
      for (const stream of [wait, upload]) stream.on("error", () => {});
      await small();
      wait.close(http2.constants.CODE);
      const waited = await get("/gone/key");
      upload.close(http2.constants.CODE);
      await small();
      await get("/release/key");
      return waited.body;
    """.replace("CODE", code)
    )
    assert result == "gone"
    assert all(not c.streams for c in node.server.thread.connections)


def test_answers_without_a_body_and_early_answers(node: Node) -> None:
    result = node("""
      const stream = session.request({ ":path": "/echo", ":method": "HEAD" });
      let length;
      stream.on("response", (fields) => { length = fields["content-length"]; });
      const head = await answer(stream);
      const empty = [await get("/status/204"), await get("/status/304")];
      const early = post("/early");
      early.on("error", () => {});
      early.write(Buffer.alloc(500000));
      const refused = await answer(early);
      await small();
      return {
        length, head: head.size,
        empty: empty.map((seen) => [seen.status, seen.size]),
        refused: [refused.status, refused.body],
      };
    """)
    assert result == {
        "length": "1000",
        "head": 0,
        "empty": [[204, 0], [304, 0]],
        "refused": [403, "early"],
    }


def test_trailers_of_a_request_are_dropped(node: Node) -> None:
    result = node("""
      const stream = session.request(
        { ":path": "/echo", ":method": "POST" }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "x-late": "1" }));
      stream.end("body");
      return JSON.parse((await answer(stream)).body);
    """)
    assert result["body"] == "body"
    assert "x-late" not in dict(result["fields"])


def test_pings_and_new_settings(node: Node) -> None:
    result = node("""
      const ping = () => new Promise((resolve, reject) => {
        session.ping((error, took) => error ? reject(error) : resolve(took));
      });
      await small();
      for (let i = 0; i < 20; i++) await ping();
      const download = get("/download/3000000");
      await new Promise((resolve) => session.settings(
        { initialWindowSize: 1000, maxFrameSize: 1 << 20, headerTableSize: 0 }, resolve));
      const narrow = await get("/download/100000");
      await new Promise((resolve) => session.settings({ initialWindowSize: 1 << 22 }, resolve));
      return [(await download).size, narrow.size, (await get("/download/3000000")).size];
    """)
    assert result == [3_000_000, 100_000, 3_000_000]


def test_websocket_by_extended_connect(node: Node) -> None:
    """Frames by hand, as node has no WebSocket over HTTP/2."""
    result = node("""
      if (!session.remoteSettings.enableConnectProtocol) {
        await new Promise((resolve) => session.once("remoteSettings", resolve));
      }
      const offered = session.remoteSettings.enableConnectProtocol;
      const stream = session.request({
        ":method": "CONNECT", ":protocol": "websocket", ":path": "/socket/key",
        "sec-websocket-version": "13", "sec-websocket-protocol": "other, chat",
      });
      const fields = await new Promise((resolve) => stream.on("response", resolve));
      const frame = (opcode, text) => Buffer.concat(
        [Buffer.from([0x80 | opcode, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)]);
      stream.write(frame(1, "hello"));
      stream.write(frame(9, "ping"));
      let received = Buffer.alloc(0);
      const ended = new Promise((resolve) => stream.on("end", resolve));
      stream.on("data", (data) => {
        received = Buffer.concat([received, data]);
        // Both have come: close, with END_STREAM on the close frame.
        if (received.length === 13) stream.end(frame(8, "\\x03\\xe8"));
      });
      await ended;
      return {
        offered, status: fields[":status"], protocol: fields["sec-websocket-protocol"],
        received: received.toString("latin1"),
      };
    """)
    assert result["offered"] is True
    assert (result["status"], result["protocol"]) == (200, "chat")
    frames = "\x81\x05hello", "\x8a\x04ping", "\x88\x02\x03"
    assert all(part in result["received"] for part in frames), result
