// The page: shows what Listener brings, hands what is typed to Outbox.
//
// Text from people enters the page as text nodes only.

import { Listener } from "./listen.js";
import { Outbox } from "./outbox.js";
import { identity, request, retryDelayMs } from "./request.js";

const $ = (id) => document.getElementById(id);
const WAY_NAMES = { websocket: "WebSocket", sse: "server-sent events", poll: "long polling" };
const MAX_TEXT = Number(document.body.dataset.maxText);
const GROUP_MS = 5 * 60 * 1000;
const MAX_SHOWN = 600;
const ROOMS_EVERY_MS = 10000;
const TYPING_EVERY_MS = 2500;
const PATIENCE_MS = 1500;
const NARROW = matchMedia("(max-width: 46rem)");

let me = { id: "", name: "" };
let room = document.body.dataset.room;
let messages = []; // what is shown, in order
let listener = null;
let opening = null; // aborts the opening of a room that is left meanwhile
let unseen = 0;
let atEnd = true; // is the log's end in view
let typedAt = -Infinity;
const drafts = new Map(); // room -> what is typed there and not sent
const outbox = new Outbox();

// -- small things -----------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function stored(key, fallback = null) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function store(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // Private mode: the page works, it only forgets.
  }
}

function notice(text) {
  const shown = element("p", { textContent: text });
  $("notices").append(shown);
  setTimeout(() => shown.remove(), 6000);
}

function initials(name) {
  const words = name.trim().split(/\s+/);
  const letters = words.length > 1 ? [words[0], words.at(-1)] : [name];
  return letters.map((word) => [...word][0] ?? "").join("").toLocaleUpperCase();
}

function avatar(id, name, made = element("span", { className: "avatar", "aria-hidden": "true" })) {
  let hash = 0;
  for (const letter of id) hash = (hash * 31 + letter.codePointAt(0)) % 3600;
  made.style.setProperty("--hue", String((hash * 47) % 360));
  made.textContent = initials(name);
  return made;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const fullTime = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const longDay = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });

function dayName(time) {
  const today = new Date();
  const day = new Date(time);
  if (day.toDateString() === today.toDateString()) return "Today";
  today.setDate(today.getDate() - 1);
  if (day.toDateString() === today.toDateString()) return "Yesterday";
  return longDay.format(day);
}

// Text with its web addresses as links; never through HTML.
function textNodes(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(/https?:\/\/[^\s<>"]+/g)) {
    const address = match[0].replace(/[.,;:!?')\]]+$/, "");
    if (!URL.canParse(address)) continue;
    nodes.push(text.slice(end, match.index));
    nodes.push(
      element("a", { href: address, textContent: address, target: "_blank", rel: "noopener noreferrer nofollow ugc" }),
    );
    end = match.index + address.length;
  }
  nodes.push(text.slice(end));
  return nodes;
}

// -- messages ---------------------------------------------------------------

function isDown() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function scrollDown() {
  $("log").scrollTop = $("log").scrollHeight;
  atEnd = true;
  unseen = 0;
  showUnseen();
}

function showUnseen() {
  $("newer").hidden = unseen === 0;
  $("newer").textContent = unseen === 1 ? "1 new message ↓" : `${unseen} new messages ↓`;
  document.title = `${unseen ? `(${unseen}) ` : ""}#${room} · Tornado chat`;
}

// What is drawn as a picture of its own colours; "©" or "✔" alone is a letter like others.
const EMOJI_ONLY = /^(?:\p{RGI_Emoji}\s*){1,3}$/v;

function messageItem(message, previous) {
  const follows =
    previous &&
    previous.author === message.author &&
    previous.name === message.name &&
    message.sent_at - previous.sent_at < GROUP_MS &&
    new Date(message.sent_at).toDateString() === new Date(previous.sent_at).toDateString();
  const own = message.author === me.id;
  const bubble = element("div", { className: "bubble" }, ...textNodes(message.text));
  bubble.title = fullTime.format(message.sent_at);
  if (EMOJI_ONLY.test(message.text)) bubble.classList.add("big");
  const item = element("li", { className: `message${own ? " own" : ""}${follows ? "" : " first"}` });
  if (message.id) item.dataset.id = message.id;
  const who = element("b", { className: "name", textContent: own ? "You" : message.name });
  const time = element("time", {
    dateTime: new Date(message.sent_at).toISOString(),
    textContent: clock.format(message.sent_at),
  });
  if (follows) {
    item.append(element("span", { className: "hidden" }, `${who.textContent}: `), bubble);
  } else {
    item.append(avatar(message.author, message.name), element("p", { className: "meta" }, who, " ", time), bubble);
  }
  return item;
}

function itemsFor(list, previous) {
  const items = [];
  for (const message of list) {
    const day = new Date(message.sent_at).toDateString();
    if (!previous || new Date(previous.sent_at).toDateString() !== day) {
      items.push(element("li", { className: "day" }, element("span", { textContent: dayName(message.sent_at) })));
    }
    items.push(messageItem(message, previous));
    previous = message;
  }
  return items;
}

// Everything anew, for a screen reader in silence.
function showAll() {
  const log = $("log");
  log.setAttribute("aria-live", "off");
  $("messages").replaceChildren(...itemsFor(messages, null));
  showPending();
  requestAnimationFrame(() => log.setAttribute("aria-live", "polite"));
}

function show(list) {
  const down = isDown();
  const own = list.some((message) => message.author === me.id);
  // By its id alone: another window may have made us somebody else meanwhile.
  for (const message of list) outbox.arrived(message.client_id);
  $("messages").append(...itemsFor(list, messages.at(-1) ?? null));
  messages.push(...list);
  if (messages.length > MAX_SHOWN && down) {
    messages = messages.slice(-MAX_SHOWN / 2);
    $("earlier").hidden = false;
    showAll();
  }
  showPending();
  const others = list.filter((message) => message.author !== me.id).length;
  if (document.hidden || !(down || own)) {
    unseen += others;
    showUnseen();
  }
  if (down || own) $("log").scrollTop = $("log").scrollHeight;
}

// What is not yet back from the server stands below everything else, in a list that
// screen readers do not announce: else they would read each of our messages twice.
function showPending() {
  let previous = messages.at(-1);
  const items = outbox.of(room).map((waiting) => {
    const message = { ...waiting, author: me.id, name: me.name, sent_at: waiting.written_at };
    const item = messageItem(message, previous);
    previous = message;
    item.classList.add("pending");
    if (waiting.error) {
      item.classList.add("failed");
      const again = element("button", { type: "button", textContent: "Try again" });
      again.onclick = () => outbox.retry(waiting.client_id);
      const drop = element("button", { type: "button", textContent: "Discard" });
      drop.onclick = () => outbox.arrived(waiting.client_id);
      item.append(element("p", { className: "failure" }, `Not sent: ${waiting.error}. `, again, " ", drop));
    }
    return item;
  });
  $("pending").replaceChildren(...items);
  $("empty").hidden = messages.length + items.length > 0 || listener === null;
}

outbox.addEventListener("change", () => {
  const down = isDown();
  showPending();
  if (down) $("log").scrollTop = $("log").scrollHeight;
});

outbox.addEventListener("failed", (event) => notice(`Not sent: ${event.detail.error}`));

// -- rooms ------------------------------------------------------------------

async function openRoom(name) {
  listener?.stop();
  listener = null;
  opening?.abort();
  const abort = (opening = new AbortController());
  drafts.set(room, $("text").value);
  room = name;
  $("text").value = drafts.get(name) ?? "";
  fitText();
  messages = [];
  unseen = 0;
  document.body.dataset.room = name;
  $("room-name").textContent = `#${name}`;
  $("room-note").textContent = "\u00a0";
  $("archive").href = `/archive/${encodeURIComponent(name)}`;
  $("text").placeholder = `Message #${name}`;
  $("earlier").hidden = true;
  $("typing").textContent = "";
  $("people").replaceChildren();
  $("here").textContent = "";
  showUnseen();
  showAll();
  showState({ state: "connecting" });

  for (const began = performance.now(); ; ) {
    const result = await request(`/api/rooms/${encodeURIComponent(name)}/history`, { signal: abort.signal });
    if (abort.signal.aborted) return;
    if (result.ok) {
      begin(name, result.body);
      return;
    }
    showState({ state: "offline", message: result.message });
    if (!result.mayRetry) return;
    await sleep(result.retryAfterMs || retryDelayMs(performance.now() - began));
    if (abort.signal.aborted) return;
  }
}

function begin(name, history) {
  messages = history.messages;
  $("earlier").hidden = !history.more;
  for (const message of messages) outbox.arrived(message.client_id);
  const made = (listener = new Listener(name, history.cursor, $("way").value));
  made.addEventListener("state", (event) => listener === made && showState(event.detail));
  made.addEventListener("reset", async () => {
    // A store that does not know our cursor need not know our cookies either.
    const result = await request("/api/me");
    if (listener !== made) return;
    if (result.ok) changeMe(result.body);
    openRoom(name);
  });
  made.addEventListener("update", (event) => {
    if (listener !== made) return;
    const update = event.detail;
    if (update.messages.length) show(update.messages);
    if (update.state) showRoomState(update.state);
    $("cursor").textContent = update.cursor;
    markSeen();
  });
  $("cursor").textContent = history.cursor;
  showAll();
  scrollDown();
  markSeen();
  made.start();
}

async function showEarlier() {
  const name = room;
  const log = $("log");
  $("earlier").disabled = true;
  const before = messages[0]?.id;
  const query = before ? `?before=${before}` : "";
  const result = await request(`/api/rooms/${encodeURIComponent(name)}/history${query}`);
  $("earlier").disabled = false;
  if (name !== room || messages[0]?.id !== before) return;
  if (!result.ok) return notice(result.message);
  const fromEnd = log.scrollHeight - log.scrollTop;
  messages = [...result.body.messages, ...messages];
  $("earlier").hidden = !result.body.more;
  showAll();
  log.scrollTop = log.scrollHeight - fromEnd;
}

function markSeen() {
  const last = messages.at(-1)?.id;
  if (last && !document.hidden) store("chat-seen", { ...stored("chat-seen", {}), [room]: last });
}

async function refreshRooms() {
  const result = await request("/api/rooms");
  if (!result.ok) return;
  const seen = stored("chat-seen", {});
  const rooms = result.body.rooms;
  if (!rooms.some(({ name }) => name === room)) rooms.push({ name: room, here: 1, last_id: null });
  const focused = document.activeElement?.dataset?.room;
  $("rooms").replaceChildren(
    ...rooms.map(({ name, here, last_id }) => {
      const link = element("a", { href: `/rooms/${encodeURIComponent(name)}` });
      link.dataset.room = name;
      link.append(element("span", { className: "hash", "aria-hidden": "true" }, "#"), element("span", { className: "room-label" }, name));
      if (name === room) link.setAttribute("aria-current", "page");
      else if (last_id && last_id !== seen[name]) {
        link.classList.add("unread");
        link.append(element("span", { className: "hidden" }, " (unread)"));
      }
      if (here) link.append(element("span", { className: "count", title: `${here} here` }, String(here)));
      return element("li", {}, link);
    }),
  );
  if (focused) $("rooms").querySelector(`[data-room="${CSS.escape(focused)}"]`)?.focus();
}

function go(name) {
  if (name === room) return;
  history.pushState(null, "", `/rooms/${encodeURIComponent(name)}`);
  openRoom(name);
  refreshRooms();
  if (!NARROW.matches) $("text").focus();
}

// -- state of the room and of the connection --------------------------------

function showRoomState({ people, here, typing }) {
  $("here").textContent = String(here);
  $("room-note").textContent = here === 1 ? "only you are here" : `${here} people here`;
  const items = people.map(({ id, name }) => {
    const item = element("li", {}, avatar(id, name), element("span", { className: "person", textContent: name }));
    if (id === me.id) item.append(element("small", { textContent: "you" }));
    return item;
  });
  if (here > people.length) items.push(element("li", { className: "more" }, `and ${here - people.length} more`));
  $("people").replaceChildren(...items);

  const names = typing.filter(({ id }) => id !== me.id).map(({ name }) => name);
  $("typing").classList.toggle("active", names.length > 0);
  $("typing").textContent =
    names.length === 0
      ? ""
      : names.length === 1
        ? `${names[0]} is typing`
        : names.length === 2
          ? `${names[0]} and ${names[1]} are typing`
          : "several people are typing";
}

let stateTimer;

// A restart takes a moment that nobody needs to hear of.
function showState(detail) {
  clearTimeout(stateTimer);
  if (detail.state === "reconnecting" && document.body.dataset.state === "live") {
    stateTimer = setTimeout(showStateNow, PATIENCE_MS, detail);
  } else {
    showStateNow(detail);
  }
}

function showStateNow({ state, way, pid, message }) {
  const words = {
    connecting: "Connecting…",
    reconnecting: message ? `Reconnecting: ${message}` : "Reconnecting…",
    live: `Live by ${WAY_NAMES[way]}`,
    offline: `Offline: ${message}`,
  };
  if (state === "live" && document.body.dataset.state !== "live") outbox.hurry();
  $("way-box").dataset.state = state;
  if ($("status").textContent !== words[state]) $("status").textContent = words[state];
  document.body.dataset.way = way ?? "";
  document.body.dataset.state = state;
  if (way) $("way").options[0].textContent = `Automatic · ${WAY_NAMES[way]}`;
  if (pid && $("pid").textContent !== String(pid)) {
    const known = $("pid").textContent !== "–";
    $("pid").textContent = String(pid);
    if (known) $("pid").animate([{ background: "var(--accent-soft)" }, {}], 3000);
  }
}

// -- writing ----------------------------------------------------------------

function fitText() {
  const text = $("text");
  const length = [...text.value.trim()].length;
  const near = length > MAX_TEXT * 0.9;
  $("counter").textContent = near ? `${length.toLocaleString()} of ${MAX_TEXT.toLocaleString()}` : "";
  $("counter").classList.toggle("over", length > MAX_TEXT);
  $("send").disabled = length === 0 || length > MAX_TEXT;
  // As if it were on one line, to see whether it is. The log grows for that moment.
  const top = $("log").scrollTop;
  $("compose").classList.remove("tall");
  text.style.height = "auto";
  $("compose").classList.toggle("tall", text.scrollHeight > text.clientHeight + 1);
  text.style.height = `${text.scrollHeight}px`; // the style sheet has a limit
  $("log").scrollTop = atEnd ? $("log").scrollHeight : top;
}

addEventListener("resize", fitText);

// The log is made lower by a long draft, a small window, a keyboard on the screen, a zoom.
new ResizeObserver(() => {
  if (atEnd) $("log").scrollTop = $("log").scrollHeight;
}).observe($("log"));

function send() {
  const text = $("text").value.trim();
  if (!text || [...text].length > MAX_TEXT) return;
  outbox.add(room, text);
  $("text").value = "";
  typedAt = -Infinity;
  fitText();
  scrollDown();
}

$("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
  $("text").focus();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});

$("text").addEventListener("input", () => {
  fitText();
  if ($("text").value.trim() && performance.now() - typedAt > TYPING_EVERY_MS) {
    typedAt = performance.now();
    request(`/api/rooms/${encodeURIComponent(room)}/typing`, { body: {} });
  }
});

// -- name -------------------------------------------------------------------

function showMe(user) {
  me = user;
  $("my-name").textContent = me.name;
  avatar(me.id, me.name, $("my-avatar"));
}

// All windows of a browser have the same cookies, and so are the same person.
const windows = new BroadcastChannel("chat-me");

// A new name, or new cookies and with them a new id.
function changeMe(user) {
  showMe(user);
  showAll();
  listener?.interrupt(); // so that we listen with the cookies that we have now
}

function tellMe(user) {
  changeMe(user);
  windows.postMessage(user);
}

windows.addEventListener("message", (event) => changeMe(event.data));
identity.addEventListener("renewed", (event) => tellMe(event.detail));

$("rename").addEventListener("click", () => {
  $("name").value = me.name;
  $("name-error").textContent = "";
  $("name-dialog").showModal();
  $("name").select();
});

$("name-cancel").addEventListener("click", () => $("name-dialog").close());

$("name-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = await request("/api/me", { body: { name: $("name").value } });
  if (!result.ok) {
    $("name-error").textContent = result.message;
    return;
  }
  tellMe(result.body);
  $("name-dialog").close();
});

// -- around -----------------------------------------------------------------

function openSide(open) {
  const wasOpen = document.body.classList.contains("side-open");
  document.body.classList.toggle("side-open", open);
  $("menu").setAttribute("aria-expanded", String(open));
  $("side").inert = NARROW.matches && !open;
  $("main").inert = open;
  if (open) $("side").querySelector("a, button, input")?.focus();
  else if (wasOpen) $("menu").focus();
}

NARROW.addEventListener("change", () => openSide(false));
$("menu").addEventListener("click", () => openSide(true));
$("backdrop").addEventListener("click", () => openSide(false));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("side-open")) openSide(false);
});

$("rooms").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  openSide(false);
  go(link.dataset.room);
});

$("open-room").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("new-room").value.trim().toLowerCase().replace(/^#/, "").replace(/[\s_]+/g, "-");
  if (!/^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$/.test(name)) {
    notice("A room's name has 1 to 32 letters, digits and hyphens.");
    return;
  }
  $("new-room").value = "";
  openSide(false);
  go(name);
});

addEventListener("popstate", () => {
  const name = decodeURIComponent(location.pathname.split("/").at(-1));
  if (name === room) return; // it was the skip link
  openRoom(name);
  refreshRooms();
});

$("way").addEventListener("change", () => {
  store("chat-way", $("way").value);
  $("way").options[0].textContent = "Automatic";
  listener?.setChoice($("way").value);
});

$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (getComputedStyle(document.documentElement).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  store("chat-theme", document.documentElement.dataset.theme);
});

$("earlier").addEventListener("click", showEarlier);
$("newer").addEventListener("click", () => {
  scrollDown();
  $("log").focus(); // the button is gone
});
$("log").addEventListener("scroll", () => {
  atEnd = isDown();
  if (unseen && isDown()) {
    unseen = 0;
    showUnseen();
  }
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  if (isDown()) scrollDown();
  markSeen();
  refreshRooms();
  // A device that slept may hold a connection that nobody else does.
  if (listener && listener.silentMs > 20000) listener.interrupt();
});
addEventListener("online", () => {
  listener?.interrupt();
  outbox.hurry();
});
addEventListener("offline", () => showState({ state: "offline", message: "no network" }));
addEventListener("pageshow", (event) => event.persisted && listener?.interrupt());

async function start() {
  const choice = new URLSearchParams(location.search).get("via") ?? stored("chat-way", "auto");
  if ([...$("way").options].some(({ value }) => value === choice)) $("way").value = choice;
  openSide(false);
  fitText();
  for (const began = performance.now(); ; ) {
    const result = await request("/api/me");
    if (result.ok) {
      showMe(result.body);
      break;
    }
    showState({ state: "offline", message: result.message });
    await sleep(result.retryAfterMs || retryDelayMs(performance.now() - began));
  }
  openRoom(room);
  refreshRooms();
  setInterval(() => document.hidden || refreshRooms(), ROOMS_EVERY_MS);
  if (!NARROW.matches) $("text").focus();
}

start();
