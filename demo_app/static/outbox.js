// Post messages until the server has stored them, in the order they were written.
//
// Each has an id made here, so that posting it again after a lost answer stores
// it once. What waits survives a reload of the page.

import { request, retryDelayMs } from "./request.js";

const KEY = "chat-outbox";
const TIMEOUT_MS = 20000;
const STORED_MS = 10000;

// Events: "change", "failed" (detail: the item). Items: {room, text, client_id, written_at, error, stored}.
export class Outbox extends EventTarget {
  constructor() {
    super();
    try {
      // What had been stored is in the room, even if it had not come back from there.
      this.items = (JSON.parse(sessionStorage.getItem(KEY)) ?? []).filter((item) => !item.stored);
    } catch {
      this.items = [];
    }
    this.wake = () => {};
    this.run();
  }

  add(room, text) {
    const client_id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`;
    this.items.push({ room, text, client_id, written_at: Date.now() });
    this.changed();
    this.wake();
  }

  // The message came back in the room: its item has done its work.
  arrived(client_id) {
    const before = this.items.length;
    this.items = this.items.filter((item) => item.client_id !== client_id);
    if (this.items.length !== before) this.changed();
  }

  retry(client_id) {
    const item = this.items.find((item) => item.client_id === client_id);
    if (item) delete item.error;
    this.changed();
    this.wake();
  }

  // Try now: the network or the server is back.
  hurry() {
    this.wake();
  }

  of(room) {
    return this.items.filter((item) => item.room === room);
  }

  changed() {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this.items));
    } catch {
      // Full or forbidden: the outbox then lives as long as the page.
    }
    this.dispatchEvent(new CustomEvent("change"));
  }

  async run() {
    let brokenAt = null; // when the first of the attempts in vain was made
    for (;;) {
      const item = this.items.find((item) => !item.stored && !item.error);
      if (!item) {
        await this.woken();
        continue;
      }
      const { room, text, client_id } = item;
      const began = performance.now();
      const result = await request(`/api/rooms/${encodeURIComponent(room)}/messages`, {
        body: { text, client_id },
        timeoutMs: TIMEOUT_MS,
      });
      if (result.ok) {
        brokenAt = null;
        item.stored = true;
        this.changed();
        // An answer to a repeated post may come long after the message itself.
        setTimeout(() => this.arrived(client_id), STORED_MS);
      } else if (result.mayRetry) {
        brokenAt ??= began;
        await this.woken(result.retryAfterMs || retryDelayMs(performance.now() - brokenAt));
      } else {
        item.error = result.message;
        this.changed();
        this.dispatchEvent(new CustomEvent("failed", { detail: item }));
      }
    }
  }

  woken(ms) {
    return new Promise((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
