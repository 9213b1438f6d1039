// Listen to one room by WebSocket, server-sent events or long polling.
//
// Whatever the way, the server sends updates that each continue the cursor of
// the one before; an update that does not continue ours is never shown. So
// nothing can be lost, repeated or reordered here, however often we reconnect.

import { retryDelayMs } from "./request.js";

export const WAYS = ["websocket", "sse", "poll"];

const FIRST_SIGN_MS = 5000; // a way that says nothing for so long does not work here
const SILENCE_MS = 45000; // the server gives a sign of life every 15 s
const TRY_BETTER_MS = 5 * 60 * 1000;

class Failed extends Error {
  constructor(message, delayMs = 0) {
    super(message);
    this.delayMs = delayMs;
  }
}

class Reset extends Error {}

// The Failed that `attempt` ends with, or null; whatever else it throws is thrown.
async function failureOf(attempt) {
  try {
    await attempt;
    return null;
  } catch (error) {
    if (error instanceof Failed) return error;
    throw error;
  }
}

// Events: "update" (detail: the update), "state" (detail: {state, way, pid, message}),
// "reset" (our cursor means nothing to the server: start from the history).
export class Listener extends EventTarget {
  constructor(room, cursor, choice) {
    super();
    this.room = room;
    this.cursor = cursor;
    this.version = "";
    this.pid = null;
    this.setChoice(choice);
  }

  start() {
    this.stopped = new AbortController();
    this.run().catch((error) => {
      if (this.stopped.signal.aborted) return;
      if (!(error instanceof Reset)) throw error;
      this.dispatchEvent(new CustomEvent("reset"));
    });
    return this;
  }

  stop() {
    this.stopped.abort();
    this.interrupt();
  }

  // "auto", or the one way to use.
  setChoice(choice) {
    this.choice = choice;
    this.way = choice === "auto" ? WAYS[0] : choice;
    this.interrupt();
  }

  // Connect anew, at once: the network or the choice has changed.
  interrupt() {
    this.current?.abort();
  }

  // When did we hear of the server last?
  get silentMs() {
    return performance.now() - this.heardAt;
  }

  async run() {
    let failures = 0;
    this.brokenAt = performance.now();
    this.tell("connecting");
    while (!this.stopped.signal.aborted) {
      if (this.choice === "auto" && performance.now() - this.steppedDownAt > TRY_BETTER_MS) {
        this.way = WAYS[0];
        this.steppedDownAt = undefined;
      }
      this.current = new AbortController();
      this.live = false;
      let failure = await failureOf(this[this.way](this.current.signal));
      if (this.stopped.signal.aborted) return;
      if (this.live) this.brokenAt = performance.now();
      if (this.current.signal.aborted) continue;

      if (this.live) {
        // It worked and ended: a restart, most likely. All clients come back
        // at this moment, so do not come at exactly the same time.
        failures = 0;
        this.tell("reconnecting", failure?.message);
        await this.pause(failure?.delayMs || Math.random() * 150);
        continue;
      }
      failures += 1;
      const next = WAYS[WAYS.indexOf(this.way) + 1];
      if (failures >= 2 && next) {
        // A browser does not tell scripts why a stream was refused; a poll does.
        failure = await failureOf(this.pollOnce(0, this.current.signal));
        if (this.current.signal.aborted) continue;
        if (!failure && this.choice === "auto") {
          // It is the way that fails, and not the server.
          this.way = next;
          this.steppedDownAt = performance.now();
          failures = 0;
          continue;
        }
      }
      this.tell("reconnecting", failure?.message);
      await this.pause(failure?.delayMs || retryDelayMs(performance.now() - this.brokenAt));
    }
  }

  address(name, extra = {}) {
    const query = new URLSearchParams({ after: this.cursor, version: this.version, ...extra });
    return `/api/rooms/${encodeURIComponent(this.room)}/${name}?${query}`;
  }

  tell(state, message) {
    const { way, pid } = this;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, way, pid, message } }));
  }

  // Any sign of life: from now on this way counts as working.
  heard(pid) {
    this.heardAt = performance.now();
    const changed = !this.live || (pid && pid !== this.pid);
    this.live = true;
    if (pid) this.pid = pid;
    if (changed) this.tell("live");
  }

  accept(update) {
    if (update.after !== this.cursor) {
      throw new Failed(`expected an update after ${this.cursor}; got one after ${update.after}`);
    }
    this.cursor = update.cursor;
    if (update.version !== undefined) this.version = update.version;
    this.dispatchEvent(new CustomEvent("update", { detail: update }));
  }

  // Resolves after `ms`, or earlier when interrupted.
  pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      const done = () => {
        clearTimeout(timer);
        resolve();
      };
      this.current.signal.addEventListener("abort", done, { once: true });
      this.stopped.signal.addEventListener("abort", done, { once: true });
    });
  }

  // Each way returns (or throws Failed) when its connection has ended.

  async poll(signal) {
    // Knowing nothing of the room's state we are answered at once, and see
    // that this way works.
    this.version = "";
    while (!signal.aborted) await this.pollOnce(25, signal);
  }

  async pollOnce(waitS, signal) {
    let response, body;
    // Longer than the server holds a poll: only a dead connection comes to this.
    const limit = AbortSignal.any([signal, AbortSignal.timeout(waitS * 1000 + 15000)]);
    try {
      response = await fetch(this.address("poll", { wait: waitS }), { signal: limit, cache: "no-store" });
      body = await response.json();
    } catch {
      // No answer, or one that is not ours: a proxy's page while the server restarts.
      throw new Failed("the server cannot be reached");
    }
    if (response.status === 410) throw new Reset();
    if (!response.ok) throw new Failed(body.error?.message, 1000 * (response.headers.get("Retry-After") ?? 0));
    if (signal.aborted) return;
    this.accept(body);
    // The next poll goes to another worker: greet that one, too.
    if (body.stopping) this.version = "";
    if (waitS) this.heard(Number(response.headers.get("X-Worker")));
  }

  sse(signal) {
    return this.stream(signal, (on) => {
      const source = new EventSource(this.address("events"));
      source.addEventListener("hello", (event) => on.sign(JSON.parse(event.data).pid));
      source.onmessage = (event) => on.update(JSON.parse(event.data));
      source.onerror = () => {
        // The browser reconnects by itself and says what it saw last; it does
        // not after an HTTP error, and then the loop in run() does.
        if (source.readyState === EventSource.CLOSED) on.end();
        else on.wait();
      };
      return () => source.close();
    });
  }

  websocket(signal) {
    return this.stream(signal, (on) => {
      const url = new URL(this.address("socket"), location.href);
      url.protocol = url.protocol.replace("http", "ws");
      const socket = new WebSocket(url);
      socket.onmessage = (event) => {
        const data = JSON.parse(event.data);
        if (data.after === undefined) on.sign(data.pid);
        else on.update(data);
      };
      socket.onclose = () => on.end();
      return () => {
        socket.onmessage = socket.onclose = null;
        socket.close();
      };
    });
  }

  // Run one connection that `open` makes; end it when it is silent for too long.
  stream(signal, open) {
    return new Promise((resolve, reject) => {
      let timer;
      let close = () => {};
      const end = (error) => {
        clearTimeout(timer);
        signal.removeEventListener("abort", onAbort);
        close();
        if (error) reject(error);
        else resolve();
      };
      const onAbort = () => end();
      const within = (ms) => {
        clearTimeout(timer);
        timer = setTimeout(() => end(new Failed("no sign of life")), ms);
      };
      signal.addEventListener("abort", onAbort);
      within(FIRST_SIGN_MS);
      close = open({
        sign: (pid) => {
          within(SILENCE_MS);
          this.heard(pid);
        },
        update: (update) => {
          within(SILENCE_MS);
          try {
            this.accept(update);
            this.heard();
          } catch (error) {
            end(error);
          }
        },
        wait: () => {
          // One deadline for all of the browser's attempts together.
          if (!this.live) return;
          this.live = false;
          this.brokenAt = performance.now();
          this.tell("reconnecting");
          within(FIRST_SIGN_MS);
        },
        end: () => end(),
      });
    });
  }
}
